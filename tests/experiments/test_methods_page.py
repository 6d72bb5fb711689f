"""The page of methods is what its registry says, and the registry is true."""

import importlib
import re

import pytest

from experiments import methods_page
from experiments.methods_page import METHODS, ROOT
from jprune._cite import cited_names


def test_the_page_is_written_anew():
    fresh = "run python -m experiments.methods_page"
    assert methods_page.PAGE.read_text() == methods_page.page(), fresh


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_a_row_is_true(method):
    assert method.kind in methods_page.KINDS
    for name in method.functions:
        package, _, function = name.partition(".")
        module = importlib.import_module(f"jprune.{package}")
        assert callable(getattr(module, function))
    assert (ROOT / "experiments" / "configs" / f"{method.config}.py").exists()
    assert not method.cite or method.cite in cited_names()
    rows = methods_page.ours(method)
    assert rows, f"no experiments/results/{method.config}_seed0.json: run the config"
    dense, *mine = rows
    assert dense.startswith("dense ") and mine, "no run of the file is this method's"


def test_every_recipe_that_names_a_paper_has_a_row():
    """A method that `cite` knows and that trains or decides is on the page."""
    listed = {name.partition(".")[2] for m in METHODS for name in m.functions}
    parts = {"transforms": KEPT_OFF, "reparam": set(), "at_init": KEPT_OFF}
    for package, off in parts.items():
        module = importlib.import_module(f"jprune.{package}")
        public = {name for name in cited_names() if hasattr(module, name)}
        assert public <= listed | off, public - listed - off


KEPT_OFF = {
    # building blocks of a recipe that has a row, and tools
    "rescale_filters",  # its config has no result yet
    "merge_clusters",
    "truncate_rank",
    "add_masked_l1",
    "prune_once",
    "add_pruned_decay",
    "shuffle",
    "flow",
    "emptied",
    "critical_sparsity",
    "initialize",
    "rescale",
    "train_early",
}


def test_links_of_the_page_resolve():
    text = methods_page.PAGE.read_text()
    for target in re.findall(r"\]\((?!https)([^)#]+)\)", text):
        assert (methods_page.PAGE.parent / target).exists(), target
