"""How far two outputs are apart, and whether data can show it at all."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._errors import listing, value_error
from jprune._tree import named_leaves
from jprune._typing import PyTree


def relative_difference(tree: PyTree, reference: PyTree) -> float:
    """Largest absolute difference over the largest absolute reference value.

    Taken leaf by leaf; the worst leaf counts. Integer and bool leaves must be equal. A
    shape that differs, or a value that is not finite on one side only, gives infinity.
    """
    worst = 0.0
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True)
    for leaf, expected in jax.device_get(list(pairs)):
        leaf, expected = np.asarray(leaf), np.asarray(expected)
        if leaf.shape != expected.shape:
            return float("inf")
        if not jnp.issubdtype(expected.dtype, jnp.inexact):
            if not np.array_equal(leaf, expected):
                return float("inf")
            continue
        finite = np.isfinite(expected)
        if not np.array_equal(finite, np.isfinite(leaf)):
            return float("inf")
        gap = np.abs(np.where(finite, leaf, 0) - np.where(finite, expected, 0))
        top = np.abs(np.where(finite, expected, 0)).max(initial=0)
        worst = max(worst, float(gap.max(initial=0) / max(top, 1e-30)))
    return worst


def require_shown(name: str, outputs: PyTree) -> None:
    """Raises for outputs that would equal those of almost any other function.

    Args:
      name: of the function that checks itself on them.
      outputs: the reference, on the arguments given.

    Raises:
      ValueError: no floating output has an entry that is finite and not 0.
    """
    rows = [(path, x) for path, x in named_leaves(outputs) if _floating(x)]
    if any(np.any(np.isfinite(x) & (np.asarray(x) != 0)) for _, x in rows):
        return
    got = [f"{path or 'the output'}: {_said(np.asarray(x))}" for path, x in rows]
    raise value_error(
        f"`{name}` compares outputs on `args`: expected one that is finite and not 0, "
        f"got{listing(got) if got else ' no floating output'}\nPass a few real "
        "examples."
    )


def require_examples(name: str, args: tuple) -> None:
    """Raises unless an argument holds two examples that differ, along its axis 0.

    Args:
      name: of the function that learns from them what does not vary.
      args: the arguments behind the variables.

    Raises:
      ValueError: one example, equal ones, or none.
    """
    rows = [(path, x) for path, x in named_leaves(args) if _plain(x)]
    for _, x in rows:
        x = np.asarray(x)
        if x.ndim and len(x) > 1 and (x != x[:1]).any():
            return
    got = [f"args[{path}]: {_examples(np.asarray(x))}" for path, x in rows]
    raise value_error(
        f"`{name}` must see what varies with the input: expected two or more examples "
        f"that differ, along axis 0 of an argument; got"
        f"{listing(got) if got else ' no array'}\nPass a few real examples."
    )


def _examples(x: np.ndarray) -> str:
    if not x.ndim or len(x) < 2:
        return f"shape {x.shape}"
    return f"{len(x)} equal ones, shape {x.shape}"


def _said(x: np.ndarray) -> str:
    if not x.size:
        return f"no entry, shape {x.shape}"
    return "0 everywhere it is finite" if np.isfinite(x).any() else "nowhere finite"


def _floating(x: Any) -> bool:
    return _plain(x) and jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def _plain(x: Any) -> bool:
    """Whether a leaf is of numbers or bools, not of random keys or text."""
    if not (hasattr(x, "dtype") or isinstance(x, bool | int | float | complex)):
        return False
    kind = jnp.result_type(x)
    return jnp.issubdtype(kind, jnp.number) or jnp.issubdtype(kind, jnp.bool_)
