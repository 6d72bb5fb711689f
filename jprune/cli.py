"""The command line: look at saved parameters, shrink a network, cite.

    jprune report params.npz                      what is left, leaf by leaf
    jprune report params.npz --mask mask.npz      by a mask instead of by zeros
    jprune shrink models:vit --flops 0.5 --out D  a smaller network, no code
    jprune cite swd                               BibTeX of a method's papers
    jprune flops models:small_vit                 operations of one call
    jprune groups models:small_vit                axes that must shrink together

`report` reads `.npz` archives whose keys are leaf paths, `.npy` and `.safetensors`
files, folders of `.npy` files (paths as names), and Orbax checkpoints. Nothing is
unpickled. `jprune report --help` shows how to write such an archive from any pytree.

`flops`, `groups` and `shrink` take `module:callable`, a function without arguments that
returns `(fn, variables, *args)`; arrays may be `jax.ShapeDtypeStruct`s where nothing is
computed, and `--weights FILE` fills them in.

`shrink` removes whole channels, heads and units of lowest score until the target is
met, verifies that the smaller network equals the dense one with them zeroed, and leaves
`plan.json`, `weights.safetensors` and `report.txt`.

`python -m jprune` is the same as the installed `jprune`.

Each sub-command is one `_add_...` function, which declares its arguments, and one
function from the parsed arguments to the text that is printed. There is no training
here: that is `python -m experiments.train`.
"""

import argparse
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import surgery
from jprune._archive import by_path, read_arrays, write_safetensors
from jprune._cite import cite, cited_names
from jprune._errors import type_error, value_error
from jprune._version import __version__
from jprune.analysis import flops, report
from jprune.surgery._packed import key_like, numbers

_SAVING = """To write such an archive from any pytree:

  numpy.savez("params.npz", **{
      jax.tree_util.keystr(path, simple=True, separator="/"): leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(params)})
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command and prints what it returns.

    Args:
      argv: the arguments after the program's name; None: those of the process.

    Returns:
      0, or 1 after an error, whose message goes to standard error; 130 after Ctrl-C.
      Wrong usage leaves through argparse with status 2.
    """
    args = _parser().parse_args(argv)
    try:
        text = args.run(args)
    except (ValueError, TypeError, OSError, MemoryError) as error:
        if args.traceback:
            raise
        print(str(error) or type(error).__name__, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped.", file=sys.stderr)
        return 130
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader, as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jprune", description="Pruning for JAX.")
    parser.add_argument("--version", action="version", version=f"jprune {__version__}")
    parser.add_argument(
        "--traceback", action="store_true", help="raise errors instead of saying them"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_report(commands)
    _add_cite(commands)
    _add_flops(commands)
    _add_groups(commands)
    _add_shrink(commands)
    return parser


def _add_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="kept scalars, sparsity and bytes of saved parameters",
        epilog=_SAVING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", help="archive, file, folder or checkpoint, see above")
    parser.add_argument("--mask", metavar="FILE", help="mask with the same paths")
    parser.add_argument(
        "--scope",
        metavar="REGEX",
        help="leaves that take part, searched in the path (by default the weights, as "
        "in masks.prunable; .* for all)",
    )
    parser.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> str:
    params = read_arrays(args.file)
    mask = None if args.mask is None else read_arrays(args.mask)
    return str(report(params, mask, scope=args.scope))


def _add_cite(commands: Any) -> None:
    parser = commands.add_parser("cite", help="BibTeX of a method's papers")
    parser.add_argument("name", nargs="*", help="methods; none: jprune itself")
    parser.add_argument("--list", action="store_true", help="the names it knows")
    parser.set_defaults(run=_cite)


def _cite(args: argparse.Namespace) -> str:
    if args.list:
        return "\n".join(cited_names())
    return "\n\n".join(map(cite, args.name)) if args.name else cite()


_MODEL = """MODEL is module:callable, a function without arguments that returns
(fn, variables, *args). Modules are looked for in the working directory too. Arrays may
be jax.ShapeDtypeStruct, for example from jax.eval_shape(model.init, key, x).
"""


def _add_flops(commands: Any) -> None:
    parser = _add_model_command(commands, "flops", "operations of one call")
    parser.set_defaults(run=_flops)


def _flops(args: argparse.Namespace) -> str:
    fn, variables, *rest = _model(args)
    with _blaming(args.model):
        count = flops(fn)(variables, *rest)
        size = surgery.groups(fn)(variables, *rest).parameters()
    return f"{count:,} FLOPs (2 per MAC)\n{size:,} parameters"


def _add_groups(commands: Any) -> None:
    text = "groups of axes that shrink together, and what is frozen and why"
    parser = _add_model_command(commands, "groups", text)
    parser.set_defaults(run=_groups)


def _groups(args: argparse.Namespace) -> str:
    fn, variables, *rest = _model(args)
    with _blaming(args.model):
        return surgery.groups(fn)(variables, *rest).table()


def _add_shrink(commands: Any) -> None:
    text = "a smaller network: plan, weights and report in a folder, verified"
    parser = _add_model_command(commands, "shrink", text)
    target = parser.add_mutually_exclusive_group(required=True)
    for name, what in (("flops", "FLOPs"), ("params", "parameters")):
        target.add_argument(
            f"--{name}", type=float, metavar="SHARE", help=f"of the {what} to keep"
        )
    parser.add_argument(
        "--round-to",
        type=int,
        default=1,
        metavar="N",
        help="kept widths are multiples of N, or whole",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.set_defaults(run=_shrink)


def _shrink(args: argparse.Namespace) -> str:
    fn, variables, *rest = _model(args)
    args.out = args.out.expanduser()
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise value_error(f"`--out {args.out}` must be a new or an empty folder.")
    for path, leaf in _leaves(variables).items():
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise value_error(
                f"`MODEL` {args.model!r}: leaf {path} has a shape but no values. Give "
                "`--weights FILE`, or return arrays."
            )
    with _blaming(args.model):
        deps = surgery.groups(fn)(variables, *rest)
        target = {"flops": args.flops, "params": args.params}
        plan = surgery.select(
            deps, deps.scores(variables), round_to=args.round_to, **target
        )
        checked = surgery.verify(fn, plan, variables, *rest)
        packed = plan.pack(variables)
        small = surgery.shrink(fn, plan)
        counts = [flops(f)(v, *rest) for f, v in ((fn, variables), (small, packed))]
    kept = {name: n for name, (n, _) in plan.groups.items()}
    sizes = deps.parameters(), deps.parameters(kept)
    text = (
        f"FLOPs       {counts[0]:>16,} -> {counts[1]:>16,}\n"
        f"parameters  {sizes[0]:>16,} -> {sizes[1]:>16,}\n\n"
        f"{checked}\n\n{deps.table()}\n"
    )
    if not checked.ok:
        raise value_error(
            f"`MODEL` {args.model!r}: the smaller network differs from the dense one "
            f"with the same parts zeroed; nothing is written.\n{checked}"
        )
    with _whole(args.out) as folder:
        plan.save(folder / "plan.json")
        write_safetensors(
            folder / "weights.safetensors",
            _leaves(packed),
            {"plan": (folder / "plan.json").read_text(encoding="utf-8")},
        )
        (folder / "report.txt").write_text(text, encoding="utf-8")
    return f"{text}\nwritten to {args.out}"


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write to; it becomes `out` if nothing was raised."""
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{out.name[:100]}.", dir=out.parent, ignore_cleanup_errors=True
    ) as beside:
        made = Path(beside) / "made"
        made.mkdir()
        yield made
        if out.is_dir() and not out.is_symlink():
            out.rmdir()  # it is empty
        if out.exists():
            for part in made.iterdir():
                shutil.move(part, out / part.name)
        else:
            made.rename(out)


def _add_model_command(commands: Any, name: str, text: str) -> Any:
    parser = commands.add_parser(
        name,
        help=text,
        epilog=_MODEL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="module:callable")
    parser.add_argument(
        "--weights", metavar="FILE", help="values of the variables, as `report` reads"
    )
    return parser


@contextmanager
def _blaming(spec: str) -> Iterator[None]:
    """What a user's module raises is said with the module's name."""
    try:
        yield
    except (ValueError, TypeError):
        raise  # ours, or as clear: they name the leaf
    except Exception as error:
        raise value_error(
            f"`MODEL` {spec!r}: {type(error).__name__}: {error}"
        ) from error


def _model(args: argparse.Namespace) -> tuple[Any, ...]:
    """What the named callable returns, with the weights of a file if one is given."""
    made = _made(args.model)
    if args.weights is None:
        return made
    fn, variables, *rest = made
    return fn, _filled(variables, read_arrays(args.weights), args.weights), *rest


def _made(spec: str) -> tuple[Any, ...]:
    """What the named callable returns: a function and its arguments."""
    module, _, name = spec.partition(":")
    if not module or not name:
        raise value_error(f"`MODEL` must be module:callable, got {spec!r}.")
    sys.path.insert(0, str(Path.cwd()))
    try:
        made = getattr(importlib.import_module(module), name)()
    except (Exception, SystemExit) as error:
        kind = type(error).__name__
        hint = ""
        if kind == "TypeError":
            hint = (
                " It is called without arguments and returns `(fn, variables, *args)`."
            )
        raise value_error(f"`MODEL` {spec!r}: {kind}: {error}.{hint}") from error
    finally:
        sys.path.remove(str(Path.cwd()))
    if not isinstance(made, tuple) or len(made) < 2 or not callable(made[0]):
        raise type_error(
            f"`MODEL` {spec!r} must return `(fn, variables, *args)`, got {type(made)}."
        )
    rest = [x for x in jax.tree.leaves(made[1]) if not hasattr(x, "shape")]
    if not all(map(callable, rest)) or not _leaves(made[1]):
        raise type_error(
            f"`MODEL` {spec!r}: the variables must be a tree of arrays, got "
            f"{made[1]!r}."
        )
    return made


def _leaves(tree: Any) -> dict[str, Any]:
    """What a file holds, by path: random keys as numbers, functions not at all."""
    leaves = by_path(tree).items()
    return {path: numbers(leaf) for path, leaf in leaves if hasattr(leaf, "shape")}


def _filled(variables: Any, arrays: Mapping[str, np.ndarray], name: str) -> Any:
    """The tree with the arrays of a file, which must be those and no others."""
    wanted = _leaves(variables)
    missing, more = (
        sorted(wanted.keys() - arrays.keys()),
        sorted(arrays.keys() - wanted.keys()),
    )
    if missing or more:
        raise value_error(
            f"`--weights {name}` does not fit the variables: missing {missing[:5]}, "
            f"unexpected {more[:5]}."
        )
    for path, leaf in wanted.items():
        if arrays[path].shape != tuple(leaf.shape):
            raise value_error(
                f"`--weights {name}`: leaf {path} must have the shape "
                f"{tuple(leaf.shape)}, got {arrays[path].shape}."
            )
    new = {path: _cast(arrays[path], leaf, path, name) for path, leaf in wanted.items()}
    leaves = [
        key_like(new[path], leaf) if path in new else leaf
        for path, leaf in by_path(variables).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(variables), leaves)


def _cast(array: np.ndarray, leaf: Any, path: str, name: str) -> jax.Array:
    """The array in the data type of its leaf; another kind of number is an error."""
    dtype = np.dtype(leaf.dtype)
    both = (
        jnp.issubdtype(array.dtype, jnp.floating),
        jnp.issubdtype(dtype, jnp.floating),
    )
    with np.errstate(over="ignore"):
        cast = array.astype(dtype) if all(both) else array
    lost = np.isfinite(array) & ~np.isfinite(cast) if all(both) else np.zeros(())
    if cast.dtype != dtype or lost.any():
        raise value_error(
            f"`--weights {name}`: leaf {path} must hold {dtype}, got {array.dtype}"
            f"{' beyond its range' * bool(lost.any())}. Cast it."
        )
    return jnp.asarray(cast)
