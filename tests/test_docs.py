"""The documentation: every Python block runs, every page is in the navigation, every
public name stands on an API page, every relative link leads somewhere.

A page is one program: its blocks run in order and share their names. What a block
`assert`s is checked.
"""

import importlib
import pydoc
import re
import runpy
import types
from pathlib import Path
from typing import Any

import jax
import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def page_id(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def python_blocks(page: Path) -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE
    )


WITH_CODE = [page for page in PAGES if python_blocks(page)]


# Keras' own, where it writes a file.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("page", WITH_CODE, ids=page_id)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)  # Files that an example writes go there.
    names: dict[str, Any] = {"__name__": page.stem}
    text = page.read_text()
    with jax.numpy_rank_promotion("allow"):  # As the reader has it.
        for code in python_blocks(page):
            line = text[: text.index(code)].count("\n")
            exec(compile("\n" * line + code, str(page), "exec"), names)


def nav_pages(node: Any) -> list[str]:
    if isinstance(node, str):
        return [node]
    children = node.values() if isinstance(node, dict) else node
    return [page for child in children for page in nav_pages(child)]


def test_the_navigation_lists_every_page_once():
    text = (ROOT / "mkdocs.yml").read_text().replace("!ENV", "")
    listed = nav_pages(yaml.safe_load(text)["nav"])
    pages = [*PAGES, *DOCS.glob("notebooks/*.py")]
    assert sorted(listed) == sorted(page_id(page) for page in pages)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_relative_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        assert (page.parent / target).exists(), f"{page_id(page)}: {target}"


@pytest.mark.parametrize("page", sorted(DOCS.glob("api/*.md")), ids=lambda p: p.stem)
def test_an_api_page_says_how_to_read_it(page: Path):
    """In the repository; the site, which fills it, keeps its heading alone."""
    text = page.read_text()
    assert "mkdocs serve" in text
    for call in re.findall(r"help\((jprune[.\w]*)\)", text):
        assert pydoc.locate(call) is not None, call
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    file = types.SimpleNamespace(src_uri=f"api/{page.name}")
    built = hooks["on_page_markdown"](text, page=types.SimpleNamespace(file=file))
    assert built.startswith(f"# jprune.{page.stem}\n\n::: jprune.{page.stem}")


PACKAGES = "analysis|at_init|compress|masks|reparam|scores|surgery|transforms"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda p: p.name)
def test_names_of_the_library_exist(page: Path):
    """In prose and tables too, which no block runs."""
    named = re.findall(rf"\b({PACKAGES})\.(?!md\b|py\b)([a-z]\w*)", page.read_text())
    gone = [
        f"{package}.{name}"
        for package, name in dict.fromkeys(named)
        if not hasattr(importlib.import_module(f"jprune.{package}"), name)
    ]
    assert not gone
