"""README.md: its example runs as printed, and its commands are what they claim."""

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_the_example_prints_what_the_readme_shows(capsys):
    (code, _), (shown,) = blocks("python"), blocks("text")
    names: dict[str, Any] = {}
    with jax.numpy_rank_promotion("allow"):  # As the reader has it.
        exec(compile(code, "README.md", "exec"), names)
    assert capsys.readouterr().out == shown
    # What the text claims: exactly 90 of 100, and the ten inputs that matter are left.
    kernel = np.asarray(names["params"]["kernel"])[:, 0]
    assert np.flatnonzero(kernel).tolist() == list(range(0, 100, 10))
    np.testing.assert_allclose(kernel[::10], 1.0, atol=1e-3)


def test_the_surgery_example_halves_the_network(capsys):
    _, code = blocks("python")
    names: dict[str, Any] = {}
    with jax.numpy_rank_promotion("allow"):  # As the reader has it.
        exec(compile(code, "README.md", "exec"), names)
    shapes, verified = capsys.readouterr().out.splitlines()
    assert shapes == "{'b1': (64,), 'w1': (32, 64), 'w2': (64, 10)} (8, 10)"
    assert verified == "True"


def test_both_commands_are_one_line_from_nothing():
    main, tests = blocks("sh")
    for command in (main, tests):
        assert command.count("\n") == 1
        assert command.startswith('python3 -m venv .venv && .venv/bin/pip install -e "')
    assert "experiments.train digits" in main and "-m pytest" in tests
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in re.findall(r'-e "\.\[(\w+)\]"', main + tests):
        assert extra in extras["optional-dependencies"]


def test_links_to_files_resolve():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert target.startswith("https://") or (ROOT / target).exists(), target


METHODS = TEXT[TEXT.index("| method |") :].partition("\n\n")[0].splitlines()[2:]
KINDS = {
    "at initialization",
    "gradient map",
    "penalty",
    "projection",
    "pure function",
    "reparameterization",
    "wrapper",
}


@pytest.mark.parametrize("row", METHODS)
def test_rows_of_the_methods_table_exist(row: str):
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    _, kinds, _, functions, configs, ours, _ = cells
    assert set(kinds.split(", ")) <= KINDS
    named = re.findall(r"`(\w+)\.(\w+)", functions)
    assert named
    for package, name in named:
        assert hasattr(importlib.import_module(f"jprune.{package}"), name), name
    for config in re.findall(r"`(\w+)`", configs):
        assert (ROOT / "experiments" / "configs" / f"{config}.py").exists()
    if number := re.search(r"\d", ours):
        files = re.findall(r"\((experiments/results/[^)]+)\)", ours)
        assert files, f"{row}: {number.group()}... names no result file"
