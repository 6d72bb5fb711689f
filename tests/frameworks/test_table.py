"""The table of frameworks: every column has a test in every framework's file."""

import ast
from pathlib import Path

import pytest

COLUMNS = (
    "build",
    "call",
    "train_step",
    "statistics",
    "save",
    "fresh_process",
    "difference",
)


@pytest.mark.parametrize("framework", ["nnx", "linen", "equinox", "haiku", "keras"])
def test_every_column_is_filled(framework):
    file = Path(__file__).with_name(f"test_{framework}.py")
    tree = ast.parse(file.read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert not [c for c in COLUMNS if f"test_{c}" not in names]
