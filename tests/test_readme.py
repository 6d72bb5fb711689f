"""README.md: its example runs as printed, and its commands are what they claim."""

import re
import tomllib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import methods_page

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


def test_the_readme_fits_two_screens():
    assert len(TEXT.splitlines()) <= 150


def test_the_families_are_those_of_the_page_of_methods():
    table = TEXT[TEXT.index("| family |") :].partition("\n\n")[0].splitlines()[2:]
    families = [row.split("|")[1].strip() for row in table]
    assert families == list(methods_page.KINDS)
