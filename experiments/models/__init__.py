"""Flax networks that the experiments and the benchmarks train and prune."""
