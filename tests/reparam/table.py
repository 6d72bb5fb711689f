"""Every reparameterization jprune offers, as rows of the contract test.

A new one joins here the day it is born: one `Case`, every test of the contract.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune import masks, reparam
from jprune.reparam import Reparam


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
    """

    name: str
    make: Callable[[], Reparam]
    neutral: Callable[[], Reparam]
    smooth: Callable[[Any], Any]
    dear: bool = False


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


def n_of_m_axis() -> Reparam:
    return reparam.n_of_m(2, 4, axis=0)


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
        lambda: reparam.n_of_m(4, 4, axis=0),
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
