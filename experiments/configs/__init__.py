"""One file per experiment; the docstring is its document."""
