"""Every reparameterization jprune offers, as rows of the contract test.

A new one joins here the day it is born: one `Case`, every test of the contract.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune import masks, reparam
from jprune.reparam import Branch, Reparam
from jprune.surgery import AxisRef, Group


class Case(NamedTuple):
    """One reparameterization under the contract.

    Attributes:
      name: the public name; a short suffix tells variants apart.
      make: builds it.
      neutral: builds the setting at which `apply(init(params))` is `params`, bit for
        bit.
      smooth: from theta to a tree of bools like it: the coordinates in which `apply` is
        differentiable and its derivative is not an estimator's. Finite differences are
        taken there.
      dear: takes long to compile: only one tree in the default run.
      proximal: `project` takes a step towards 0 each time instead of leading into a
        set.
      half: takes parameters of half precision.
    """

    name: str
    make: Callable[[], Reparam]
    neutral: Callable[[], Reparam]
    smooth: Callable[[Any], Any]
    dear: bool = False
    proximal: bool = False
    half: bool = True


def everywhere(theta: Any) -> Any:
    return jax.tree.map(lambda x: jnp.ones(jnp.shape(x), bool), theta)


def nowhere(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), bool), tree)


def kept_by(make: Callable[[], Reparam]) -> Callable[[Any], Any]:
    """Straight-through: the derivative is true where the mask keeps."""

    def smooth(theta: Any) -> Any:
        mask = make().export(theta)[1]
        return jax.tree.map(lambda m, x: jnp.broadcast_to(m, x.shape), mask, theta)

    return smooth


def halves(params: Any) -> Any:
    # A plain cut: rankings take seconds to compile and have their own tests.
    return jax.tree.map(
        lambda p: jnp.abs(p) > 0.6 if p.ndim > 1 else jnp.array(True), params
    )


def attention_smooth(theta: Any) -> Any:
    """Kept weights; the attentions scale smoothly while no count changes."""
    mask = attention().export(theta)[1]
    kept = jax.tree.map(lambda m, x: jnp.broadcast_to(m, x.shape), mask, theta.weights)
    return theta._replace(weights=kept, attention=everywhere(theta.attention))


def threshold_smooth(theta: Any) -> Any:
    """Kept weights; what moves the mean and the deviation is not differentiated."""
    mask = thresholds().export(theta)[1]
    kept = jax.tree.map(lambda m, x: jnp.broadcast_to(m, x.shape), mask, theta.weights)
    return theta._replace(weights=kept, thresholds=nowhere(theta.thresholds))


def priority_smooth(theta: Any) -> Any:
    """All weights (a masked one has no effect and no gradient), no priority."""
    return nowhere(theta)._replace(weights=everywhere(theta.weights))


def attention(**changes: Any) -> Reparam:
    return reparam.learned_attention(**{"start": 0.45, **changes})


def thresholds(**changes: Any) -> Reparam:
    given = {"min_size": 1, "center": False, **changes}
    return reparam.learned_thresholds(0.5, **given)


def gated(make: Callable[..., Reparam], deep: bool, role: str = "out") -> Reparam:
    """Gates by the form of the tree: groups are data about one network's parameters."""
    unit = {
        "dict": [(("one", "kernel"), 1, role), (("two", "kernel"), 0, "in")],
        "tuple": [((0,), 1, role), ((1, 0), 0, "in"), ((1, 1), 0, "bias")],
        "array": [((), 1, role)],
    }
    last = {"dict": "two/kernel", "tuple": "1/0"}

    def of(weights: Any) -> Reparam:
        kind = {dict: "dict", tuple: "tuple"}.get(type(weights), "array")
        group = Group("unit", 4, tuple(AxisRef(*ref) for ref in unit[kind]))
        held = deep and kind in last
        return make([group], {"block": Branch((last[kind],), (group,))} if held else {})

    return Reparam(
        init=lambda params: of(params).init(params),
        apply=lambda theta, key=None: of(theta.weights).apply(theta, key),
        penalty=lambda theta: of(theta.weights).penalty(theta),
        project=lambda new, old, step: of(new.weights).project(new, old, step),
        export=lambda theta: of(theta.weights).export(theta),
    )


def gates(deep: bool = True, **changes: Any) -> Reparam:
    """In four steps the block closes, or without one (`deep=False`) all channels but
    one.
    """
    given = {"price": 30.0, "branch_price": 0.1, "start": 0.25, **changes}
    return gated(partial(reparam.learned_gates, **given), deep)


def scales(price: float) -> Reparam:
    """In four steps weak scales close, and the block nearly."""
    make = partial(reparam.shrinking_scales, price=price, learning_rate=0.05)
    return gated(make, True, "scale")


def open_scales(theta: Any) -> Any:
    """A scale at 0 is at the kink."""
    mask = scales(3.0).export(theta)[1]
    kept = jax.tree.map(lambda m, x: jnp.broadcast_to(m, x.shape), mask, theta.weights)
    return theta._replace(weights=kept, branches=everywhere(theta.branches))


def n_of_m_axis() -> Reparam:
    return reparam.straight_through(lambda p: masks.n_of_m(p, 2, 4, 0))


def search(**changes: Any) -> Reparam:
    given = {"target": 0.5, "weight": 0.1, "axis": 0, "steps_per_epoch": 2, **changes}
    return reparam.learned_n_of_m(4, **given)


TABLE = [
    Case(
        "powerpropagation",
        lambda: reparam.powerpropagation(3),
        lambda: reparam.powerpropagation(1),
        everywhere,
    ),
    Case(
        "powerpropagation-fraction",
        lambda: reparam.powerpropagation(1.5),
        lambda: reparam.powerpropagation(1.0, floor=0.1),
        everywhere,
    ),
    Case(
        "straight_through",
        lambda: reparam.straight_through(halves),
        lambda: reparam.straight_through(masks.full),
        kept_by(lambda: reparam.straight_through(halves)),
    ),
    Case(
        "n_of_m",
        n_of_m_axis,
        lambda: reparam.straight_through(lambda p: masks.n_of_m(p, 4, 4, 0)),
        kept_by(n_of_m_axis),
    ),
    Case(
        "top_kast",
        lambda: reparam.top_kast(0.5, 0.25, decay=0.1, min_keep=0),
        lambda: reparam.top_kast(0.0, 0.0),
        kept_by(lambda: reparam.top_kast(0.5, 0.25, min_keep=0)),
        dear=True,
    ),
    Case(
        "learned_attention",
        attention,
        lambda: attention(start=1.0, gamma=0.0, decay=0.0),
        attention_smooth,
        dear=True,
    ),
    Case(
        "learned_thresholds",
        thresholds,
        lambda: thresholds(start=0.0),
        threshold_smooth,
    ),
    Case(
        "learned_thresholds-leaf",
        lambda: thresholds(budget="leaf", one_sided=True, center=True),
        lambda: thresholds(start=0.0, budget="leaf"),
        nowhere,
    ),
    Case("learned_gates", gates, lambda: gates(start=0.95, price=0.0), everywhere),
    Case(
        "learned_gates-budget",
        lambda: gates(False, target=0.1, price=0.0, rate=20.0, start=0.085),
        lambda: gates(False, start=0.95, target=0.5, price=None),
        everywhere,
    ),
    Case(
        "shrinking_scales",
        lambda: scales(3.0),
        lambda: scales(0.0),
        open_scales,
        proximal=True,
        half=False,
    ),
    Case("learned_n_of_m", search, search, priority_smooth),
    Case(
        "compose",
        lambda: reparam.compose(reparam.powerpropagation(2), n_of_m_axis()),
        lambda: reparam.compose(
            reparam.powerpropagation(1), reparam.straight_through(masks.full)
        ),
        kept_by(lambda: reparam.compose(reparam.powerpropagation(2), n_of_m_axis())),
    ),
]


def tree(kind: str, dtype: Any = jnp.float32) -> Any:
    """Parameters of the shapes the contract tries: a dict, a tuple, one array."""
    keys = jax.random.split(jax.random.key(3), 3)
    a, b, c = (
        jax.random.normal(k, s, dtype)
        for k, s in zip(keys, [(8, 4), (4, 12), (4,)], strict=True)
    )
    return {
        "dict": {"one": {"kernel": a, "bias": c}, "two": {"kernel": b}},
        "tuple": (a, (b, c)),
        "array": a,
    }[kind]
