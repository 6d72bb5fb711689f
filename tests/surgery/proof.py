"""How a network is proved: compact against the dense model with removed parts zeroed.

One random plan removes about `FRACTION` of every group at once. The dense function on
`plan.zero(variables)` and the compact one on `plan.pack(variables)` run in one jitted
program, forward and gradient; everything the compact model returns must equal what the
dense one returns at the kept places.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import surgery
from jprune._tree import path_keys
from tests.surgery.nets import Case, Net

FRACTION = 0.4

QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
"""Compiler options that take a fifth of the compile time; the values are the same."""


class Errors(NamedTuple):
    """Largest differences relative to the largest reference value.

    Attributes:
      forward: of the output.
      gradient: over the leaves of the gradient, each relative to its own largest entry
        (at least a thousandth of the largest of all).
      state: over the returned collection, 0 where there is none.
    """

    forward: float
    gradient: float
    state: float


def coupled(deps: Any) -> list:
    """The groups that count: produced and read by parameters."""
    return [group for group in deps if group.kind == "coupled"]


def reached(deps: Any, variables: Any) -> int:
    """Number of scalars that lie on a coordinate of some coupled group."""
    leaves = {
        path_keys(path): np.zeros(np.shape(leaf), bool)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    for group in coupled(deps):
        for member in group.members:
            marks = np.moveaxis(leaves[member.path], member.axis, 0)
            marks[member.coordinates(group.size) >= 0] = True
    return sum(int(marks.sum()) for marks in leaves.values())


def random_plan(deps: Any, seed: int = 0) -> Any:
    """Removes about 40 % of each coupled group, at least one, never all."""
    rng = np.random.default_rng(seed)
    keep = {}
    for group in coupled(deps):
        removed = min(max(round(FRACTION * group.size), 1), group.size - 1)
        keep[group.id] = np.ones(group.size, bool)
        keep[group.id][rng.permutation(group.size)[:removed]] = False
    return surgery.plan_from_keep(deps, keep)


def training_plan(net: Net, case: Case) -> Any:
    """The plan of evaluation, which the training step `case` takes as well.

    Haiku's evaluation leaves statistics unread that training updates; there the plan is
    that of the training step.
    """
    other = net.make()
    deps = surgery.groups(other.apply)(other.variables, *other.args)
    if any(group.kind == "unused" for group in deps):
        deps = surgery.groups(case.apply)(case.variables, *case.args)
    return random_plan(deps)


def cast(tree: Any, dtype: Any) -> Any:
    """Floating leaves in `dtype`, the others as they are."""

    def leaf(x):
        if isinstance(x, jax.Array) or not np.issubdtype(x.dtype, np.floating):
            return x
        return np.asarray(x, dtype)

    return jax.tree.map(leaf, tree)


def is_float(leaf: Any) -> bool:
    """Whether a leaf takes part in differentiation."""
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def gradient_of(fn: Any, variables: Any, case: Case) -> tuple:
    """Output, returned state, and the gradient of a fixed random projection."""
    leaves, tree = jax.tree.flatten(variables)
    floats = [leaf for leaf in leaves if is_float(leaf)]

    def loss(floats):
        given = iter(floats)
        merged = [next(given) if is_float(leaf) else leaf for leaf in leaves]
        out = fn(jax.tree.unflatten(tree, merged), *case.args)
        y, new = out if case.state else (out, ())
        direction = np.random.default_rng(5).standard_normal(y.shape)
        return jnp.sum(y * direction.astype(y.dtype)), (y, new)

    gradient, (y, new) = jax.grad(loss, has_aux=True)(floats)
    given = iter(gradient)
    whole = [next(given) if is_float(leaf) else leaf for leaf in leaves]
    return y, new, jax.tree.unflatten(tree, whole)


def errors(case: Case, plan: Any, dtype: Any = np.float64) -> Errors:
    """Runs both models in one jitted program and compares all that they return."""
    case = case._replace(
        variables=cast(case.variables, dtype), args=cast(case.args, dtype)
    )
    small = surgery.shrink(case.apply, plan)
    zeroed, packed = plan.zero(case.variables), plan.pack(case.variables)

    @partial(jax.jit, compiler_options=QUICK)
    def both(zeroed, packed, args):
        given = case._replace(args=args)
        return (
            gradient_of(case.apply, zeroed, given),
            gradient_of(small, packed, given),
        )

    dense, compact = both(zeroed, packed, case.args)
    dense, compact = jax.device_get(dense), jax.device_get(compact)
    state = 0.0
    if case.state:
        state = difference(compact[1], plan.pack(dense[1], at=case.state))
    return Errors(
        difference(compact[0], dense[0]),
        difference(compact[2], plan.pack(dense[2])),
        state,
    )


def other_batch_and_ensemble(net: Net, case: Case, plan: Any) -> float:
    """Worst difference on another batch size, and under `vmap` over two sets."""
    jit = partial(jax.jit, compiler_options=QUICK)
    dense, compact = jit(case.apply), surgery.shrink(case.apply, plan)
    args = net.make(batch=3).args
    zeroed, packed = plan.zero(case.variables), plan.pack(case.variables)
    worst = difference(jit(compact)(packed, *args), dense(zeroed, *args))
    other = jax.tree.map(lambda leaf: 1.125 * leaf, case.variables)
    other = jax.tree.map(lambda a, b: a.astype(b.dtype), other, case.variables)
    variants = [case.variables, other]
    stacked = jax.tree.map(lambda *v: np.stack(v), *map(plan.pack, variants))
    ensemble = jit(jax.vmap(compact, (0,) + (None,) * len(case.args)))
    several = ensemble(stacked, *case.args)
    for index, variables in enumerate(variants):
        one = jax.tree.map(lambda leaf, i=index: leaf[i], several)
        expected = dense(plan.zero(variables), *case.args)
        worst = max(worst, difference(one, expected))
    return worst


def difference(tree: Any, reference: Any) -> float:
    """Largest relative difference over the leaves; shapes and dtypes must agree.

    A leaf of zeros up to rounding is measured by a hundredth of the largest leaf: the
    gradient of an attention's key bias is 0, as the difference of terms that are not.
    """
    pairs = list(zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True))
    for leaf, expected in pairs:
        assert leaf.shape == expected.shape and leaf.dtype == expected.dtype
        assert np.isfinite(np.asarray(expected)).all()
    largest = [np.abs(expected).max(initial=0) for _, expected in pairs]
    floor = max(1e-2 * max(largest, default=0), 1e-30)
    return max(
        float(np.abs(leaf - expected).max(initial=0) / max(top, floor))
        for (leaf, expected), top in zip(pairs, largest, strict=True)
    )
