"""Scores of groups: what one channel, head or unit is worth over all its parameters."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jprune._dtypes import in_host_memory
from jprune._errors import value_error
from jprune._groups import (
    AxisRef,
    Group,
    Role,
    member_leaves,
    no_member,
    require_whole,
)
from jprune._stacks import stacked_axes
from jprune._typing import PyTree

Reduce = Literal["product", "sum", "mean", "max"]


def over_groups(
    tree: PyTree,
    groups: Sequence[Group],
    *,
    norm: Literal["l1", "l2"] = "l2",
    reduce: Reduce | None = None,
    roles: Sequence[Role] | None = None,
    raw: bool = False,
    signed: bool = False,
    at: Any = None,
    stacked: Any = None,
) -> dict[str, Any]:
    r"""One vector of scores for each group, by its id.

    With $e_{m,c} = \sum_{x \in m_c} |x|^p$, the entries of member m at coordinate c,

    $$ s_c = \Big( \sum_{m \in out} e_{m,c} \cdot
       \operatorname{mean}_{m \in scale} \frac{e_{m,c}}{\bar e_m} \cdot
       \operatorname{mean}_{m \in in} \frac{e_{m,c}}{\bar e_m} \Big)^{1/p} , $$

    what a coordinate passes on ("product"): it is written, scaled and read, and what
    any of these stops is not missed. A factor without members, or that is 0 for all
    coordinates, is left out. The other reductions take all members alike,
    $s_c = (\operatorname{reduce}_m e_{m,c})^{1/p}$.

    Groups differ in how many and how large members they have, so each vector is then
    divided by its mean: the scores of all groups can be ranked together. Norm and
    reduction were chosen by measurement (`docs/first_call.md`).

    With `raw=True` and the norm "l2" the sum of all scores is a group lasso, a penalty
    for the loss; its gradient at a coordinate of zeros is 0.

    Only trained weights count: members with the role "stat" (running statistics) and
    leaves that are not floating point (counters, keys) are passed over.

    Args:
      tree: the parameters, or anything of their shapes: gradients times weights, a
        Fisher estimate; or a sub-tree of the variables the groups were found on.
      groups: what `surgery.groups(fn)(params, x)` returns, or a list of some of
        its groups.
      norm: p = 1 or 2.
      reduce: "product" (above), or over all members "sum", "mean" or "max", as suits
        what adds up: saliencies. None: the product, but the sum if `raw` or `signed`.
      roles: count only members in these roles, e.g. `("scale",)` for norm scales or
        `("out",)` for the producing kernels; None for all but "stat".
      raw: True leaves out the division by the mean.
      signed: add scores up with their signs (movement, GraSP); `norm` "l1" only. Rank
        the vectors with `masks.unstructured(vectors, ..., signed=True)`.
      at: where `tree` lies inside the variables ("params"); None finds it.
      stacked: which leaves are stacks of layers, see `masks.unstructured`; each layer
        of one is a member of its own.

    Returns:
      `{group.id: [group.size]}` in float32 or wider, on the device where the leaves
      lie (NumPy arrays for leaves in the host's memory). A group with no member of
      the given roles in the tree is left out.

    Raises:
      ValueError: no group has a member of the given roles in the tree, or one has only
        some of them there; `signed` with another `norm`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import scores, surgery
      >>> fn = lambda p, x: x @ p["a"] @ p["b"]
      >>> params = {"a": jnp.array([[3.0, 0.0]]), "b": jnp.array([[4.0], [1.0]])}
      >>> deps = surgery.groups(fn)(params, jnp.ones((1, 1)))
      >>> found = scores.over_groups(params, deps, raw=True)
      >>> {name: vector.tolist() for name, vector in found.items()}
      {'a:1': [5.0, 1.0]}
    """
    if reduce is None:
        reduce = "sum" if raw or signed else "product"
    if reduce not in ("sum", "mean", "max", "product") or norm not in ("l1", "l2"):
        raise value_error(
            "`reduce` must be sum, mean, max or product and `norm` l1 or l2; got "
            f"{reduce!r}, {norm!r}."
        )
    if signed and norm != "l1":
        raise value_error(f'Signed scores need `norm="l1"`, got {norm!r}.')
    if signed and reduce == "product":
        raise value_error('Signed scores add up: give reduce="sum", no product.')
    there = member_leaves(tree, groups, at)
    require_whole(there, roles)
    found = [
        (group, [m for m in members if _counts(m[0], m[2], roles)])
        for group, members in there
    ]
    stacks = stacked_axes(tree, stacked)
    layers = {
        i: tuple(s for s in stacks[i] if s != ref.axis)
        for _, members in found
        for ref, i, _ in members
    }
    sums = _axis_sums([m for _, ms in found for m in ms], layers, norm, signed)
    vectors = {}
    for group, members in found:
        rows: list[tuple[Role, Any]] = [
            (ref.role, ref.collect(layer, group.size))
            for ref, i, _ in members
            for layer in sums[i, ref.axis]
        ]
        if rows:
            total = _passed(rows) if reduce == "product" else _reduced(rows, reduce)
            total = _root(total) if norm == "l2" else total
            vectors[group.id] = total if raw else _relative(total)
    if groups and not vectors:
        raise no_member(groups, roles)
    return vectors


def _counts(ref: AxisRef, leaf: Any, roles: Sequence[Role] | None) -> bool:
    """Whether a member is a trained weight, of the wanted roles."""
    wanted = ref.role != "stat" if roles is None else ref.role in roles
    return wanted and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _reduced(rows: Sequence[tuple[str, Any]], reduce: str) -> Any:
    """The members of a group as one vector."""
    vectors = [row for _, row in rows]
    xp = np if all(isinstance(row, np.ndarray) for row in vectors) else jnp
    return getattr(xp, reduce)(xp.stack(vectors), axis=0)


def _passed(rows: Sequence[tuple[str, Any]]) -> Any:
    """What is written, times what scales it and what reads it, over their means."""
    wrote = [(role, row) for role, row in rows if role in ("out", "table")]
    total = _reduced(wrote, "sum") if wrote else None
    for factor in ("scale", "in"):
        some = [(role, _relative(row)) for role, row in rows if role == factor]
        if some:
            mean = _reduced(some, "mean")
            xp: Any = np if isinstance(mean, np.ndarray) else jnp
            mean = xp.where((mean > 0).any(), mean, xp.ones_like(mean))
            total = mean if total is None else total * mean
    return _reduced(rows, "sum") if total is None else total


def _root(vector: Any) -> Any:
    """The square root, with derivative 0 at 0."""
    xp = np if isinstance(vector, np.ndarray) else jnp
    some = vector != 0  # NaN stays
    safe = xp.where(some, vector, xp.ones_like(vector))
    return xp.where(some, xp.sqrt(safe), xp.zeros_like(vector))


def _relative(vector: Any) -> Any:
    """A vector over the mean of its magnitudes; zeros stay."""
    xp = np if isinstance(vector, np.ndarray) else jnp
    mean = xp.mean(xp.abs(vector))
    return vector / xp.where(mean > 0, mean, xp.ones_like(mean))


def _axis_sums(
    members: Sequence[tuple[AxisRef, int, Any]],
    layers: Mapping[int, tuple[int, ...]],
    norm: str,
    signed: bool,
) -> dict[tuple[int, int], list[Any]]:
    """Sums of |x|^p over all axes but one, by leaf and axis; each leaf is read once.

    A leaf that is a stack has one vector for each of its layers.
    """
    leaves = {i: leaf for _, i, leaf in members}
    axes: dict[int, dict[int, AxisRef]] = {}
    for ref, i, _ in members:
        axes.setdefault(i, {})[ref.axis] = ref
    sums = {}
    for i, refs in axes.items():
        xp: Any = np if in_host_memory(leaves[i]) else jnp
        x = xp.asarray(leaves[i])
        x = x.astype(_sum_dtype(x), copy=False)
        terms = x if signed else xp.abs(x) if norm == "l1" else xp.square(x)
        for axis, ref in refs.items():
            others = tuple(a for a in ref.others(x.ndim) if a not in layers[i])
            rest = xp.sum(terms, axis=others)  # layers, and this axis among them
            place = axis - sum(a < axis for a in others)
            rows = xp.moveaxis(rest, place, -1).reshape(-1, x.shape[axis])
            sums[i, axis] = list(rows)
    return sums


def _sum_dtype(x: Any) -> Any:
    """float32, or a wider dtype of the leaf's own."""
    wide = jnp.issubdtype(x.dtype, jnp.inexact) and jnp.finfo(x.dtype).bits >= 32
    return x.dtype if wide else np.dtype("float32")
