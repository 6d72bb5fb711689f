"""Methods: small functions from the lab, and the dense run if they ask for it, to rows.

The keyword-only arguments of one are the settings a configuration must give. `swept`
holds those whose runs differ in traced numbers and share a program; `reparameterized`
those that train theta; the other files one method each.
"""
