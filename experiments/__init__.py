"""Experiments: one trainer, one file per experiment, on jprune's public names only.

A configuration (`configs/<name>.py`) is a document with literals; `build.py` is the one
place where its strings become functions; `train.py` is the command.
"""
