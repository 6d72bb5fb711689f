"""Programs as data: tracing, dead code, counting. Not public.

`_compat` is the only file of jprune that touches JAX beyond its public modules.
"""
