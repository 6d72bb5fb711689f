"""Every example in a docstring of jprune runs and prints what it says."""

import doctest
import importlib
from pathlib import Path

import jax
import pytest

import jprune

FOLDER = Path(jprune.__file__).parent


def modules_with_examples() -> list[str]:
    files = sorted(f for f in FOLDER.rglob("*.py") if ">>> " in f.read_text())
    paths = [f.relative_to(FOLDER.parent).with_suffix("") for f in files]
    return [".".join(path.parts).removesuffix(".__init__") for path in paths]


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples(name: str, capsys):
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    module = importlib.import_module(name)
    promotion = "allow" if ".frameworks." in name else "raise"  # Keras promotes
    with jax.numpy_rank_promotion(promotion):
        failed, tried = doctest.testmod(module, optionflags=flags)
    assert tried and not failed, capsys.readouterr().out
