"""Systems whose experiments are no single classifier: each has a `RUNNER`."""
