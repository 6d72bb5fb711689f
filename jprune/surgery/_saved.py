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

from jprune._errors import value_error
from jprune._tree import KeyTuple

FORMAT = "jprune-plan-1"
LONGEST = 2**31 - 1
"""The longest axis that a plan file may name."""

Parts = tuple[dict[KeyTuple, tuple[np.ndarray, ...]], tuple, tuple, bool]


def text(parts: Parts) -> str:
    """A plan as JSON."""
    keep, ties, free, declared = parts
    for key in (*keep, *(p for pair in ties for p in pair), *free):
        _require_path(list(key))
    data = {
        "format": FORMAT,
        "leaves": [
            {
                "path": list(key),
                "shape": [m.size for m in masks],
                "keep": [
                    None if m.all() else np.flatnonzero(m).tolist() for m in masks
                ],
            }
            for key, masks in keep.items()
        ],
        "ties": [[list(a), list(b)] for a, b in ties],
        "free": [list(p) for p in free],
        "declared": declared,
    }
    return json.dumps(data)


def write(path: str | pathlib.Path, text: str) -> None:
    """Writes a plan: the file is the old one or the new one, never half of it."""
    target = pathlib.Path(path)
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
    keep: dict[KeyTuple, tuple[np.ndarray, ...]] = {}
    for leaf in _list(data, "leaves"):
        _require(isinstance(leaf, dict), "a leaf is no JSON object")
        path = _path(leaf.get("path"))
        _require(path not in keep, f"the leaf {path} stands twice")
        shape, kept = _list(leaf, "shape"), _list(leaf, "keep")
        _require(len(shape) == len(kept), f"`shape` and `keep` of {path} differ")
        for size in shape:
            _require(_whole(size), f"{size!r} is no size of an axis")
            _require(size <= LONGEST, f"{path} has an axis of {size}, above {LONGEST}")
        keep[path] = tuple(map(_mask, shape, kept))
    pairs = _list(data, "ties")
    for pair in pairs:
        _require(isinstance(pair, list) and len(pair) == 2, "a tie is no pair of paths")
    ties = tuple((_path(a), _path(b)) for a, b in pairs)
    free = tuple(map(_path, _list(data, "free")))
    declared = data.get("declared")
    _require(
        isinstance(declared, bool), f"`declared` {declared!r} is not true or false"
    )
    return keep, ties, free, bool(declared)


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
