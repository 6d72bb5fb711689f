"""The shape of the code, held by its syntax trees: layers, sizes, public names.

A layer imports only layers below it and its own package. What may not hold everywhere
is listed in `EXCEPTIONS`, each with its reason.
"""

import ast
import graphlib
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "jprune"

LAYERS = {
    **dict.fromkeys(("selection", "_jaxpr"), 1),
    **dict.fromkeys(("scores", "masks"), 2),
    **dict.fromkeys(("transforms", "reparam", "at_init", "surgery"), 3),
    **dict.fromkeys(("compress", "analysis"), 4),
    "frameworks": 5,
    **dict.fromkeys(("", "cli"), 6),
    "__main__": 7,
}
"""Layer of each package or module; "" is the root, any `_file.py` beside it is 0."""

THIRD_PARTY = {
    0: {"jax", "numpy"},
    1: {"jax", "numpy"},
    2: {"jax", "numpy"},
    3: {"jax", "numpy", "optax"},
    4: {"jax", "numpy", "optax", "scipy"},
    5: {"jax", "numpy", "optax"},
    6: {"jax", "numpy"},
    7: set(),
}
"""What each layer may import beside the standard library."""

FRAMEWORKS = {"flax", "haiku", "equinox", "keras"}
"""What a file of `jprune/frameworks` may import in addition: one of them."""

MAX_PUBLIC_NAMES = 176
"""Names that a newcomer meets. A new one that helps is welcome, with a thought of which
other has become needless; helpers, states and results stay in their modules."""

EXCEPTIONS: dict[str, str] = {
    "import orbax in _archive.py": "read where an Orbax folder is given",
    "import matplotlib in analysis/_plots.py": "inside the functions that draw",
    "import matplotlib in analysis/_plot_structure.py": "for type checkers only",
    "lines jprune/_cite.py": "a list of references, one block a paper",
    "lines tests/transforms/table.py": "a table, one row a transformation",
    "late import jprune.surgery.rules in surgery/_registry.py": "rules register here",
    "late import jprune.surgery._state in surgery/_plan.py": "packs states",
}
"""Allowed departures, each with its reason. Keys are written as the tests report them:
`import NAME in FILE`, `late import NAME in FILE` (inside a function, against a cycle),
`lines FILE`, `function FILE:NAME`."""

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60


def sources(*folders: str) -> list[Path]:
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    return sorted(f for f in files if "runs" not in f.relative_to(ROOT).parts)


MODULES = {
    ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f
    for f in sources("jprune")
}
TREES = {name: ast.parse(file.read_text()) for name, file in MODULES.items()}


def imports(
    name: str, tree: ast.AST
) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """The modules imported anywhere in a file, in full, with the importing node."""
    package = name if MODULES.get(name, Path()).name == "__init__.py" else None
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (package or name.rpartition(".")[0]).split(".")
            start = base[: len(base) - node.level + 1] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{source}.{alias.name}"
                yield node, full if full in MODULES else source


def part(module: str) -> str:
    """`selection` of `jprune.selection._kth`, "" of `jprune`."""
    return module.split(".")[1] if "." in module else ""


def layer(module: str) -> int:
    top = part(module)
    if top not in LAYERS and not (LIBRARY / f"{top}.py").exists():
        pytest.fail(f"jprune/{top} has no layer: add it to LAYERS.")
    return LAYERS.get(top, 0)


def short(module: str) -> str:
    return MODULES[module].relative_to(LIBRARY).as_posix()


def test_a_layer_imports_only_what_lies_below():
    bad = []
    for name, tree in TREES.items():
        for node, target in imports(name, tree):
            if target.partition(".")[0] != "jprune":
                continue
            own = part(name) == part(target) or layer(name) == layer(target) == 0
            if not own and layer(target) >= layer(name):
                bad.append(f"{short(name)}:{node.lineno} imports {target}")
    assert not bad, "\n".join(bad)


def test_packages_are_imported_at_their_first_use():
    """`import jprune.masks` runs without surgery; every package is named twice."""
    code = (
        "import sys, jprune.masks; assert jprune.masks.apply;"
        "print([m for m in sys.modules if m.startswith(('jprune.surgery',"
        " 'jprune._jaxpr', 'jprune.compress', 'jprune.transforms', 'optax'))])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT)
    assert out.stdout.decode().strip() == "[]", out.stdout + out.stderr
    typed = {t for _, t in imports("jprune", TREES["jprune"]) if t in MODULES}
    names = {"jprune._cite", "jprune._version"}
    packages = {f"jprune.{name}" for name in importlib.import_module("jprune").__all__}
    assert typed - names == packages & set(MODULES)


def typing_only(tree: ast.Module) -> list[ast.AST]:
    """What stands under `if TYPE_CHECKING`."""
    blocks = [n for n in tree.body if isinstance(n, ast.If)]
    blocks = [b for b in blocks if ast.unparse(b.test) == "TYPE_CHECKING"]
    return [n for block in blocks for n in block.body]


def test_no_import_cycles():
    """Imports inside functions count too; those for type checkers are never run."""

    def allowed(name: str, node: ast.AST, target: str) -> bool:
        if node in typing_only(TREES[name]):
            return True
        late = f"late import {target} in {short(name)}"
        return node not in TREES[name].body and late in EXCEPTIONS

    graph = {
        name: {
            target
            for node, target in imports(name, tree)
            if target in MODULES and target != name and not allowed(name, node, target)
        }
        for name, tree in TREES.items()
    }
    graphlib.TopologicalSorter(graph).prepare()


def test_third_parties_are_those_of_the_layer():
    bad = []
    for name, tree in TREES.items():
        allowed = THIRD_PARTY[layer(name)] | sys.stdlib_module_names | {"jprune"}
        roots = {target.partition(".")[0] for _, target in imports(name, tree)}
        if part(name) == "frameworks":
            used = roots & FRAMEWORKS
            assert len(used) <= 1, f"{short(name)} imports {sorted(used)}: one a file"
            allowed |= used
        for node, target in imports(name, tree):
            root = target.partition(".")[0]
            if root in allowed or f"import {root} in {short(name)}" in EXCEPTIONS:
                continue
            bad.append(f"import {root} in {short(name)}:{node.lineno}")
    assert not bad, "\n".join(bad)


def test_nothing_imports_the_frameworks():
    bad = [
        f"{short(name)}:{node.lineno}"
        for name, tree in TREES.items()
        for node, target in imports(name, tree)
        if part(target) == "frameworks" and part(name) != "frameworks"
    ]
    assert not bad, bad


def test_matplotlib_is_imported_inside_functions_only():
    for name, tree in TREES.items():
        top = [t for node, t in imports(name, tree) if node in tree.body]
        assert not any(t.startswith("matplotlib") for t in top), short(name)


def test_jax_internals_only_in_the_adapter():
    internal = re.compile(r"\bjax\.(_src|extend)\b|from jax import (_src|extend)\b")
    bad = []
    for name, tree in TREES.items():
        if name == "jprune._jaxpr._compat":
            continue
        code = ast.unparse(_without_docstrings(tree))
        bad += [f"{short(name)}: {m.group()}" for m in internal.finditer(code)]
    assert not bad, "\n".join(bad)


def test_experiments_use_public_names_only():
    bad = []
    for file in sources("experiments"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                if re.match(r"jprune\b.*\._(?!_version__)", name):
                    bad.append(f"{file.relative_to(ROOT)}: {name}")
    assert not bad, "\n".join(bad)


def test_file_and_function_sizes():
    bad = []
    for file in sources("jprune", "experiments", "tests"):
        path, text = file.relative_to(ROOT).as_posix(), file.read_text()
        if (
            len(text.splitlines()) > MAX_FILE_LINES
            and f"lines {path}" not in EXCEPTIONS
        ):
            bad.append(f"lines {path}: {len(text.splitlines())}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                key = f"function {path}:{node.name}"
                if _bare_lines(node) > MAX_FUNCTION_LINES and key not in EXCEPTIONS:
                    bad.append(f"{key}: {_bare_lines(node)}")
    assert not bad, "\n".join(bad)


def test_every_exception_is_still_needed():
    existing = {f"lines {f.relative_to(ROOT).as_posix()}" for f in _all_sources()}
    for key, reason in EXCEPTIONS.items():
        kind, _, rest = key.partition(" ")
        assert reason and kind in ("import", "late", "lines", "function"), key
        if kind == "lines":
            assert key in existing, f"{key}: the file is gone"
        if kind == "function":
            assert f"lines {rest.partition(':')[0]}" in existing, f"{key}: file is gone"


def test_no_file_of_mixed_helpers():
    names = {"utils", "util", "helpers", "misc", "common"}
    assert not [f for f in _all_sources() if f.stem.strip("_") in names]


PUBLIC = [
    name
    for name, file in MODULES.items()
    if file.name == "__init__.py" and name.count(".") < 2 and part(name)[:1] != "_"
]


def exported(package: str) -> list[str]:
    """The names an `__init__.py` re-exports, all written `import name as name`."""
    names = []
    if package == "jprune":  # its packages are imported when they are first used
        return list(importlib.import_module(package).__all__)
    *body, last = TREES[package].body
    assert ast.unparse(last) == "__dir__ = settled(globals())", short(package)
    for node in body:
        if isinstance(node, ast.ImportFrom):
            if node.module == "jprune._public":
                continue
            for alias in node.names:
                assert alias.asname == alias.name, f"{short(package)}: {alias.name}"
                names.append(alias.name)
        else:
            assert isinstance(node, ast.Expr), f"{short(package)}:{node.lineno} is code"
    return names


def test_the_public_surface_stays_small():
    counts = {package: len(exported(package)) for package in PUBLIC}
    assert sum(counts.values()) <= MAX_PUBLIC_NAMES, (
        f"{sum(counts.values())} public names, `MAX_PUBLIC_NAMES` is "
        f"{MAX_PUBLIC_NAMES}. Which other has become needless? If none, raise it: "
        f"{counts}"
    )


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_resolve_and_are_documented(package: str):
    module = importlib.import_module(package)
    assert module.__doc__, package
    bad = []
    for name in exported(package):
        value = getattr(module, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            bad += [f"{package}.{name}: {what}" for what in _undocumented(name, value)]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("package", [name for name in PUBLIC if name != "jprune"])
def test_the_docstring_of_a_package_is_its_table_of_contents(package: str):
    """It names all that is public, and nothing of the package that is not."""
    doc = inspect.getdoc(importlib.import_module(package)) or ""
    quoted = set(re.findall(r"`(\w+)`", doc))
    quoted |= set(re.findall(rf"`(?:jprune\.)?{part(package)}\.(\w+)`", doc))
    public = set(exported(package))
    assert not public - set(re.findall(r"`(\w+)", doc)), "not in the docstring"
    trees = [tree for name, tree in TREES.items() if name.startswith(f"{package}._")]
    kinds = (ast.FunctionDef, ast.ClassDef)
    private = {n.name for t in trees for n in t.body if isinstance(n, kinds)} - public
    assert not private & quoted, "in the docstring, but not public"


@pytest.mark.parametrize("package", [name for name in PUBLIC if name != "jprune"])
def test_docstrings_send_nobody_to_what_is_not_public(package: str):
    """A public docstring names no function of its package that one cannot import."""
    module, public = importlib.import_module(package), set(exported(package))
    trees = [tree for name, tree in TREES.items() if name.startswith(f"{package}._")]
    found = {n.name for t in trees for n in t.body if isinstance(n, ast.FunctionDef)}
    bad = []
    for name in exported(package):
        value = getattr(module, name)
        known = public | set(dir(value))
        if inspect.isroutine(value):
            known |= set(inspect.signature(value).parameters)
        words = re.findall(r"`(\w+)`", inspect.getdoc(value) or "")
        bad += [f"{name}: {word}" for word in words if word in found - known]
        private = r"(?:from|import) jprune[\w.]*\._\w+"
        bad += [
            f"{name}: {m}" for m in re.findall(private, inspect.getdoc(value) or "")
        ]
    assert not bad, "\n".join(bad)


def test_the_docstring_of_jprune_lists_its_packages():
    doc = importlib.import_module("jprune").__doc__ or ""
    listed = re.findall(r"^\* `jprune\.(\w+)`", doc, re.M)
    public = set(exported("jprune")) - {"__version__"}
    assert set(listed) == public | {"frameworks"}


FRAMEWORK_FILES = sorted(f.stem for f in (LIBRARY / "frameworks").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", FRAMEWORK_FILES)
def test_modules_of_frameworks_say_what_is_public(name: str):
    """What `__all__` says is there, has a docstring, and is what the page teaches."""
    tree = TREES[f"jprune.frameworks.{name}"]
    (said,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    kinds = (ast.FunctionDef, ast.ClassDef)
    found = {n.name: ast.get_docstring(n) for n in tree.body if isinstance(n, kinds)}
    assert all(found.get(public) for public in said), said
    page = (ROOT / "docs" / "frameworks" / f"{name}.md").read_text()
    (alias,) = re.findall(rf"from jprune\.frameworks import {name} as (\w+)", page)
    assert {*re.findall(rf"\b{alias}\.(\w+)", page)} == set(said)


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_are_tested(package: str):
    tests = (f for f in sources("tests") if f != Path(__file__).resolve())
    words = {w for f in tests for w in re.findall(r"\w+", f.read_text())}
    module = importlib.import_module(package)
    # A State is tested through its transformation, a type alias through its users.
    names = [name for name in exported(package) if not name.endswith("State")]
    missing = [name for name in names if name not in words]
    values = {name: getattr(module, name) for name in missing}
    assert not [
        n for n, v in values.items() if inspect.isroutine(v) or inspect.isclass(v)
    ]


def test_no_machine_paths():
    # An absolute path after a blank, quote or bracket; those of every machine may pass.
    path = re.compile(r"(?<=[\s\"'`(=])/(?!usr/bin/env|dev/null)[a-z]{2,}/[a-z]")
    outside = re.compile(r"\.\.(?:/[a-z]+)+\b(?!\.md)")  # a page may link to a page
    kinds = {".py", ".md", ".toml", ".cff", ".yaml", ".yml", ".json", ".jsonl", ""}
    bad = []
    for file in _text_files():
        if file.suffix not in kinds or file == Path(__file__).resolve():
            continue
        for match in [
            *path.finditer(text := file.read_text()),
            *outside.finditer(text),
        ]:
            line = text.count("\n", 0, match.start()) + 1
            bad.append(f"{file.relative_to(ROOT)}:{line}: {match.group()}")
    assert not bad, "\n".join(bad)


def _all_sources() -> list[Path]:
    return sources("jprune", "experiments", "tests")


def _text_files() -> Iterator[Path]:
    folders = ("jprune", "experiments", "tests", "docs", ".ci")
    skipped = {"runs", "__pycache__"}
    for folder in folders:
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and not skipped & set(file.relative_to(ROOT).parts):
                yield file
    # In a linked work tree `.git` is a file that names where the repository lies.
    yield from (f for f in ROOT.glob("*") if f.is_file() and f.name != ".git")


def _docstring(node: ast.AST) -> ast.Expr | None:
    body = getattr(node, "body", None)
    first = body[0] if isinstance(body, list) and body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        return first if isinstance(first.value.value, str) else None
    return None


def _without_docstrings(tree: ast.Module) -> ast.Module:
    tree = ast.parse(ast.unparse(tree))
    for node in ast.walk(tree):
        if (doc := _docstring(node)) is not None:
            doc.value = ast.Constant("")
    return tree


def _bare_lines(node: ast.FunctionDef) -> int:
    """Lines from `def` to the end, without the docstrings of it and its closures."""
    docs = [doc for n in ast.walk(node) if (doc := _docstring(n)) is not None]
    spans = [(doc.end_lineno or 0) - doc.lineno + 1 for doc in docs]
    return (node.end_lineno or 0) - node.lineno + 1 - sum(spans)


def _undocumented(name: str, value: object) -> list[str]:
    """What the docstring of a public function or class leaves out."""
    doc = inspect.getdoc(value) or ""
    if not doc or doc.startswith(f"{name}("):
        return ["no docstring"]
    if inspect.isclass(value):
        fields = getattr(value, "_fields", getattr(value, "__dataclass_fields__", ()))
        return [f"field {f}" for f in fields if f not in doc and f[0] != "_"]
    signature = inspect.signature(value)  # pyright: ignore[reportArgumentType]
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    names = [p.name for p in signature.parameters.values() if p.kind not in variadic]
    missing = [f"argument {n}" for n in names if not re.search(rf"\b{n}\b.*:", doc)]
    silent = signature.return_annotation in (None, "None")
    if not (silent or "Returns:" in doc or "Yields:" in doc):
        missing.append("no Returns")
    return missing
