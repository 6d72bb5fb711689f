"""Plans on disk: JSON of kept original indices by path and axis, read with suspicion.

A file may come from anywhere, be cut short or be edited by hand. Whatever is not what
`Plan.save` writes is an error that names the file, before anything of the size that it
claims is allocated.
"""

import json
import os
import pathlib
import tempfile
from typing import Any

import numpy as np

from jprune._errors import PREFIX, value_error
from jprune._tree import KeyTuple

FORMAT = "jprune-plan-1"
LONGEST = 2**31 - 1
"""The longest axis that a plan file may name."""

Parts = dict[str, Any]
"""The fields of a `Plan`."""


def text(plan: Any) -> str:
    """A plan as JSON."""
    pairs = (*plan.ties, *plan.state)
    ends = [path for pair in pairs for path in pair if path is not None]
    for key in (*plan.keep, *ends, *plan.free, *plan.inputs):
        _require_path(list(key))
    data = {
        "format": FORMAT,
        "leaves": [_leaf(key, masks) for key, masks in plan.keep.items()],
        "ties": [[list(a), list(b)] for a, b in plan.ties],
        "free": [list(p) for p in plan.free],
        "declared": plan.declared,
    }
    if plan.state:
        data["state"] = [list(pair) for pair in plan.state]
        data["inputs"] = [_leaf(key, masks) for key, masks in plan.inputs.items()]
    if plan.lookups:
        data["lookups"] = [[[list(p), a] for p, a in axes] for axes in plan.lookups]
    return json.dumps(data)


def _leaf(key: KeyTuple, masks: Any) -> dict[str, Any]:
    """One leaf: the size and the kept indices of each axis, null where all stay."""
    return {
        "path": list(key),
        "shape": [None if m is None else m.size for m in masks],
        "keep": [
            None if m is None or m.all() else np.flatnonzero(m).tolist() for m in masks
        ],
    }


def write(path: str | pathlib.Path, text: str) -> None:
    """Writes a plan: the file is the old one or the new one, never half of it."""
    target = pathlib.Path(path)
    folder = str(target.parent)
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"{PREFIX}`path` {str(path)!r} lies in no folder: make {folder!r}."
        )
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text + "\n")
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def content(path: str | pathlib.Path) -> bytes:
    """The bytes of a plan's file.

    Raises:
      FileNotFoundError: saying where it was looked for and which files are there.
      ValueError: it is a folder.
    """
    file = pathlib.Path(path)
    if file.is_dir():
        raise value_error(f"`path` {str(path)!r} is a folder, no file of `Plan.save`.")
    if not file.exists():
        near = sorted(x.name for x in file.parent.glob("*.json"))[:5]
        there = f"; there are {', '.join(near)}" if near else ""
        raise FileNotFoundError(
            f"{PREFIX}`path` must be a file that `Plan.save` wrote, got {str(path)!r}, "
            f"which is not in {str(file.parent.absolute())!r}{there}."
        )
    return file.read_bytes()


def read(given: str | bytes, source: Any) -> Parts:
    """The parts of a plan from its JSON.

    Raises:
      ValueError: naming the source, if it is anything but what `text` gives.
    """
    try:
        return _parts(json.loads(given))
    except (ValueError, RecursionError) as error:
        raise value_error(
            f"`{source}` is not a plan written by `Plan.save`: {error}."
        ) from None


def _parts(data: Any) -> Parts:
    _require(isinstance(data, dict), "it is no JSON object")
    _require(data.get("format") == FORMAT, f"format {data.get('format')!r}")
    declared = data.get("declared")
    _require(
        isinstance(declared, bool), f"`declared` {declared!r} is not true or false"
    )
    parts: Parts = {
        "keep": _leaves(_list(data, "leaves")),
        "ties": tuple((_path(a), _path(b)) for a, b in _pairs(data, "ties")),
        "free": tuple(map(_path, _list(data, "free"))),
        "declared": declared,
    }
    if "state" in data:
        parts["state"] = tuple(
            (_path(a), None if b is None else _path(b))
            for a, b in _pairs(data, "state")
        )
        parts["inputs"] = _leaves(_list(data, "inputs"), free=True)
    if "lookups" in data:
        shapes = {path: len(masks) for path, masks in parts["keep"].items()}
        parts["lookups"] = tuple(_axes(x, shapes) for x in _list(data, "lookups"))
    return parts


def _axes(axes: Any, ranks: dict[KeyTuple, int]) -> tuple:
    """Axes of leaves that are one axis, as (path, axis)."""
    _require(isinstance(axes, list), "an entry of `lookups` is no list of axes")
    found = []
    for pair in axes:
        _require(isinstance(pair, list) and len(pair) == 2, f"{pair!r} is no axis")
        path, axis = _path(pair[0]), pair[1]
        inside = _whole(axis) and axis < ranks.get(path, 0)
        _require(inside, f"{pair!r} is no axis of a leaf of the plan")
        found.append((path, axis))
    return tuple(found)


def _leaves(leaves: list, free: bool = False) -> dict[KeyTuple, Any]:
    """The kept positions by path; `free`: axes without a size are None."""
    keep: dict[KeyTuple, Any] = {}
    for leaf in leaves:
        _require(isinstance(leaf, dict), "a leaf is no JSON object")
        path = _path(leaf.get("path"))
        _require(path not in keep, f"the leaf {path} stands twice")
        shape, kept = _list(leaf, "shape"), _list(leaf, "keep")
        _require(len(shape) == len(kept), f"`shape` and `keep` of {path} differ")
        for size, indices in zip(shape, kept, strict=True):
            if free and (size, indices) == (None, None):
                continue
            _require(_whole(size), f"{size!r} is no size of an axis")
            _require(size <= LONGEST, f"{path} has an axis of {size}, above {LONGEST}")
        pairs = zip(shape, kept, strict=True)
        keep[path] = tuple(None if n is None else _mask(n, k) for n, k in pairs)
    return keep


def _pairs(data: Any, name: str) -> list:
    pairs = _list(data, name)
    for pair in pairs:
        _require(
            isinstance(pair, list) and len(pair) == 2,
            f"an entry of `{name}` is no pair of paths",
        )
    return pairs


def _mask(size: int, kept: Any) -> np.ndarray:
    """Kept indices as a bool vector. [size]"""
    if kept is None:
        return np.ones(size, bool)
    _require(isinstance(kept, list), f"{kept!r} is no list of indices")
    for index in kept:
        _require(_whole(index) and index < size, f"{index!r} is no index below {size}")
    _require(len(set(kept)) == len(kept), "a repeated index")
    mask = np.zeros(size, bool)
    mask[np.asarray(kept, np.int64)] = True
    return mask


def _whole(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x >= 0


def _list(data: dict, name: str) -> list:
    found = data.get(name)
    _require(isinstance(found, list), f"`{name}` is missing or no list")
    return found or []


def _path(keys: Any) -> KeyTuple:
    _require_path(keys)
    return tuple(keys)


def _require_path(keys: Any) -> None:
    good = isinstance(keys, list) and all(
        isinstance(k, str) or (isinstance(k, int) and not isinstance(k, bool))
        for k in keys
    )
    _require(good, f"{keys!r} is no path of texts and whole numbers")


def _require(holds: bool, why: str) -> None:
    if not holds:
        raise ValueError(why)
