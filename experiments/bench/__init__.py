"""Timings, each a ratio within one run, and the bounds they must keep."""
