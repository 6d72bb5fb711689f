"""API pages list what their package exports: written when the site is built.

A page `api/NAME.md` gets one entry for each public name of `jprune.NAME`, in the order
in which its `__init__.py` exports them (or for each module of `jprune.frameworks`).
"""

import ast
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1] / "jprune"


def public_names(package: str) -> list[str]:
    """The names that `jprune/PACKAGE/__init__.py` re-exports as `name as name`."""
    tree = ast.parse((PACKAGE / package / "__init__.py").read_text())
    return [
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    ]


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Adds the entries to an API page."""
    source = Path(page.file.src_uri)
    if source.parts[0] != "api":
        return markdown
    package = source.stem
    if package == "frameworks":
        files = sorted((PACKAGE / package).glob("[a-z]*.py"))
        entries = [f"::: jprune.{package}.{file.stem}" for file in files]
    else:
        hidden = "    options:\n      members: []\n      show_root_heading: false\n"
        entries = [f"::: jprune.{package}\n{hidden}"]
        entries += [f"::: jprune.{package}.{name}" for name in public_names(package)]
    heading = markdown.partition("\n")[0]  # the rest is for readers of the repository
    return "\n\n".join([heading, *entries])
