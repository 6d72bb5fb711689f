"""One file per method: a small function from (lab, dense run) to rows of the table.

Its keyword-only arguments are the settings a configuration must give. It builds a
program once, trains with it for each sparsity asked, removes, and yields a row for
each.
"""
