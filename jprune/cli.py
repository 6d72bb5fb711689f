"""The command line: look at saved parameters, and cite.

    jprune report params.npz                      what is left, leaf by leaf
    jprune report params.npz --mask mask.npz      by a mask instead of by zeros
    jprune cite swd                               BibTeX of a method's papers
    jprune flops models:small_vit                 operations of one call
    jprune groups models:small_vit                axes that must shrink together

`report` reads `.npz` archives whose keys are leaf paths, single `.npy` files, and
folders of `.npy` files (paths as names). Nothing is unpickled. `jprune report --help`
shows how to write such an archive from any pytree with one call of `numpy.savez`.

`flops` and `groups` take `module:callable`, a function without arguments that returns
`(fn, variables, *args)`; arrays may be `jax.ShapeDtypeStruct`s, nothing is computed.

`python -m jprune` is the same as the installed `jprune`.

Each sub-command is one `_add_...` function, which declares its arguments, and one
function from the parsed arguments to the text that is printed. There is no training
here: that is `python -m experiments.train`.
"""

import argparse
import importlib
import math
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import surgery
from jprune._cite import cite, cited_names
from jprune._errors import type_error, value_error
from jprune._version import __version__
from jprune.analysis import flops, report

Tree = dict[str, np.ndarray]

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
      0, or 1 after an error, whose message goes to standard error. Wrong usage leaves
      through argparse with status 2.
    """
    args = _parser().parse_args(argv)
    try:
        text = args.run(args)
    except (ValueError, TypeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jprune", description="Pruning for JAX.")
    parser.add_argument("--version", action="version", version=f"jprune {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_report(commands)
    _add_cite(commands)
    _add_flops(commands)
    _add_groups(commands)
    return parser


def _add_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="kept scalars, sparsity and bytes of saved parameters",
        epilog=_SAVING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", help=".npz (keys = paths), .npy, or a folder of .npy")
    parser.add_argument("--mask", metavar="FILE", help="mask with the same paths")
    parser.add_argument(
        "--scope",
        metavar="REGEX",
        help="leaves that take part, searched in the path (by default the weights, as "
        "in masks.prunable; .* for all)",
    )
    parser.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> str:
    params = _load(args.file)
    mask = None if args.mask is None else _load(args.mask)
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
    fn, variables, *rest = _model(args.model)
    scalars = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))
    return f"{flops(fn)(variables, *rest):,} FLOPs (2 per MAC)\n{scalars:,} scalars"


def _add_groups(commands: Any) -> None:
    text = "groups of axes that shrink together, and what is frozen and why"
    parser = _add_model_command(commands, "groups", text)
    parser.set_defaults(run=_groups)


def _groups(args: argparse.Namespace) -> str:
    fn, variables, *rest = _model(args.model)
    return surgery.groups(fn)(variables, *rest).table()


def _add_model_command(commands: Any, name: str, text: str) -> Any:
    parser = commands.add_parser(
        name,
        help=text,
        epilog=_MODEL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="module:callable")
    return parser


def _model(spec: str) -> tuple[Any, ...]:
    """What the named callable returns: a function and its arguments."""
    module, _, name = spec.partition(":")
    if not module or not name:
        raise value_error(f"`MODEL` must be module:callable, got {spec!r}.")
    sys.path.insert(0, str(Path.cwd()))
    try:
        made = getattr(importlib.import_module(module), name)()
    except ModuleNotFoundError as error:
        raise value_error(f"`MODEL` {spec!r}: {error}.") from error
    except AttributeError as error:
        raise value_error(f"`MODEL` {spec!r}: {error}.") from error
    finally:
        sys.path.remove(str(Path.cwd()))
    if not isinstance(made, tuple) or len(made) < 2 or not callable(made[0]):
        raise type_error(
            f"`MODEL` {spec!r} must return `(fn, variables, *args)`, got {type(made)}."
        )
    return made


def _load(name: str) -> Tree:
    """The arrays of a file or folder, by path."""
    file = Path(name)
    if file.is_dir():
        arrays = {
            part.relative_to(file).with_suffix("").as_posix(): _read(part)
            for part in sorted(file.rglob("*.npy"))
        }
    elif file.suffix == ".npz":
        arrays = dict(_read(file))
    elif file.suffix == ".npy":
        arrays = {file.stem: _read(file)}
    else:
        raise value_error(
            f"{name!r} must be an .npz archive, an .npy file or a folder of .npy "
            "files; `jprune report --help` shows how to write one from any pytree."
        )
    if not arrays:
        raise value_error(f"{name!r} holds no array.")
    return {path: _typed(name, path, array) for path, array in arrays.items()}


def _read(file: Path) -> Any:
    """`numpy.load` without pickles, its errors naming the file."""
    try:
        loaded = np.load(file, allow_pickle=False)
        return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
    except FileNotFoundError as error:
        raise value_error(f"There is no file {str(file)!r}.") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise value_error(f"{str(file)!r} cannot be read: {error}") from error


def _typed(name: str, path: str, array: np.ndarray) -> np.ndarray:
    """The array with its data type; NumPy writes bfloat16 as two untyped bytes."""
    if array.dtype.kind != "V":
        return array
    if array.dtype.itemsize == 2:
        return array.view(jnp.bfloat16)
    raise type_error(
        f"{name!r}: leaf {path} has the data type {array.dtype}, which NumPy did not "
        "keep. Save it as float32."
    )
