"""Every transformation jprune offers, as rows of the contract test.

A new transformation joins here the day it is born: one `Case`, eleven tests.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import masks, transforms
from jprune._scale_groups import Scaled, ScaleGroup
from jprune.surgery import AxisRef, Group
from jprune.transforms._partitions import split_evenly

Tx = optax.GradientTransformation


class Case(NamedTuple):
    """One transformation under the contract.

    Attributes:
      name: the public name; a short suffix tells variants apart.
      make: builds it; keyword arguments override the hyper-parameters in `inject`.
      neutral: builds the setting that must be the identity; None if there is none.
      inject: hyper-parameters `optax.inject_hyperparams` may take, with values.
      needs_params: whether `update` without `params` must raise.
      atol: of row 11; an SVD's rounding is relative to the largest value of the leaf.
      slow: a recipe around a case that runs by default, and as long to compile.
    """

    name: str
    make: Callable[..., Tx]
    neutral: Callable[[], Tx] | None
    inject: dict[str, float]
    needs_params: bool = True
    atol: float = 1e-7
    slow: bool = False


def half(params: Any) -> Any:
    """The mask of the larger half of every tree the contract uses."""
    return masks.unstructured(params, 0.5)


def weights(params: Any) -> Any:
    """A mask that keeps everything, at full size."""
    return masks.full(params)


def two_of_four(params: Any) -> Any:
    """A 2:4 mask of every tree the contract uses."""
    return masks.n_of_m(params, 2, 4, axis=0)


GROUPS = [
    Group(
        "hidden",
        4,
        (
            AxisRef(("one", "kernel"), 1, "out"),
            AxisRef(("one", "bias"), 0, "bias"),
            AxisRef(("two", "kernel"), 0, "in"),
            AxisRef((0,), 1, "out"),
            AxisRef((1, 1), 0, "bias"),
            AxisRef((1, 0), 0, "in"),
            AxisRef((), 1, "out"),
        ),
    )
]
"""The four units that each tree of `tree` has, wherever it keeps them."""

SCALED = [
    Group(
        "scaled",
        4,
        (
            AxisRef(("one", "kernel"), 1, "scale"),
            AxisRef((0,), 1, "scale"),
            AxisRef((), 1, "scale"),
        ),
    )
]
"""The same units as if their kernel were a norm's scale."""


FILTERS = [
    ScaleGroup(Scaled(path, 1, 1.0), (Scaled(("one", "bias"), 0, 1.0),))
    for path in (("one", "kernel"), (0,), ())
]
"""The same units as filters whose scale a norm hides."""


def two_parts(params: Any) -> Any:
    """Two parts, or one where there is only one leaf to prune."""
    parts = min(2, sum(jax.tree.leaves(masks.prunable(params))))
    return split_evenly(params, parts)


TABLE = [
    Case(
        "keep_masked",
        lambda: transforms.keep_masked(half),
        lambda: transforms.keep_masked(weights),
        {},
    ),
    Case(
        "mask_updates",
        lambda: transforms.mask_updates(half),
        lambda: transforms.mask_updates(weights),
        {},
        needs_params=False,
    ),
    Case(
        "prune_gradually",
        lambda sparsity=0.5: transforms.prune_gradually(sparsity, end=3, every=2),
        lambda: transforms.prune_gradually(0.0, end=3),
        {"sparsity": 0.5},
    ),
    Case(
        "prune_gradually-leaf",
        lambda sparsity=0.5: transforms.prune_gradually(
            sparsity, end=3, ranking="leaf"
        ),
        lambda: transforms.prune_gradually(0.0, end=3, ranking="leaf"),
        {"sparsity": 0.5},
    ),
    Case(
        "prune_by_weight_history",
        lambda sparsity=0.5, beta=0.9, gamma=1.0: transforms.prune_by_weight_history(
            sparsity, end=3, every=2, beta=beta, gamma=gamma
        ),
        lambda: transforms.prune_by_weight_history(0.0, end=3, every=1),
        {"sparsity": 0.5, "beta": 0.9, "gamma": 1.0},
    ),
    Case(
        "prune_once",
        lambda: transforms.prune_once(half, step=1),
        lambda: transforms.prune_once(weights, step=1),
        {},
    ),
    Case(
        "prune_unmoved",
        lambda fraction=1.0: transforms.prune_unmoved(fraction, every=1, end=3),
        lambda: transforms.prune_unmoved(0.1, every=9, end=9),
        {"fraction": 1.0},
    ),
    Case(
        "add_selective_decay",
        lambda mu=0.01, strength=10.0, sparsity=0.5: transforms.add_selective_decay(
            mu, strength, sparsity=sparsity
        ),
        lambda: transforms.add_selective_decay(0.01, 10.0, sparsity=0.0),
        {"mu": 0.01, "strength": 10.0, "sparsity": 0.5},
    ),
    Case(
        "add_selective_decay-every",
        lambda mu=0.01, strength=10.0, sparsity=0.5: transforms.add_selective_decay(
            mu, strength, sparsity=sparsity, every=2
        ),
        lambda: transforms.add_selective_decay(0.01, 0.0, sparsity=0.5, every=2),
        {"mu": 0.01, "strength": 10.0, "sparsity": 0.5},
    ),
    Case(
        "mask_by_saliency",
        lambda sparsity=0.5: transforms.mask_by_saliency(sparsity=sparsity),
        lambda: transforms.mask_by_saliency(sparsity=0.0),
        {"sparsity": 0.5},
    ),
    Case(
        "swd",
        lambda learning_rate=0.1: transforms.swd(
            learning_rate, mu=0.01, a_max=10.0, total_steps=3, sparsity=0.5
        ),
        None,
        {"learning_rate": 0.1},
    ),
    Case(
        "gsm",
        lambda learning_rate=0.1, weight_decay=0.01: transforms.gsm(
            learning_rate,
            weight_decay=weight_decay,
            momentum=0.9,
            sparsity=0.5,
            total_steps=3,
        ),
        None,
        {"learning_rate": 0.1, "weight_decay": 0.01},
    ),
    Case(
        "merge_clusters",
        lambda strength=0.1, weight_decay=0.01: transforms.merge_clusters(
            GROUPS,
            {"hidden": [0, 1, 0, 1]},
            strength=strength,
            weight_decay=weight_decay,
        ),
        lambda: transforms.merge_clusters(
            GROUPS, {"hidden": [0, 1, 2, 3]}, strength=0.1, weight_decay=0.0
        ),
        {"strength": 0.1, "weight_decay": 0.01},
    ),
    Case(
        "csgd",
        lambda learning_rate=0.1, strength=0.1, weight_decay=0.01: transforms.csgd(
            learning_rate,
            GROUPS,
            {"hidden": [0, 1, 0, 1]},
            strength=strength,
            weight_decay=weight_decay,
        ),
        None,
        {"learning_rate": 0.1, "strength": 0.1, "weight_decay": 0.01},
    ),
    Case(
        "add_masked_l1",
        lambda strength=0.1: transforms.add_masked_l1(strength, half),
        lambda: transforms.add_masked_l1(0.0, half),
        {"strength": 0.1},
    ),
    Case(
        "add_masked_l1-smooth",
        lambda strength=0.1: transforms.add_masked_l1(
            strength, half, kind="smooth_l1", learning_rate=1.0
        ),
        lambda: transforms.add_masked_l1(0.1, weights, kind="l2"),
        {"strength": 0.1},
    ),
    Case(
        "network_slimming",
        lambda learning_rate=0.1, strength=0.1: transforms.network_slimming(
            learning_rate, strength=strength, scope=masks.prunable
        ),
        None,
        {"learning_rate": 0.1, "strength": 0.1},
    ),
    Case(
        "masksparsity",
        lambda learning_rate=0.1, strength=0.1: transforms.masksparsity(
            learning_rate,
            SCALED,
            {"scaled": jnp.array([True, False, True, False])},
            strength=strength,
            total_steps=3,
            threshold=None,
        ),
        None,
        {"learning_rate": 0.1, "strength": 0.1},
    ),
    Case(
        "add_decorrelation",
        lambda strength=0.1: transforms.add_decorrelation(
            GROUPS, {"hidden": jnp.array([True, False, True, True])}, strength, gram=0.1
        ),
        lambda: transforms.add_decorrelation(
            GROUPS, {"hidden": jnp.ones(4, bool)}, 0.1
        ),
        {"strength": 0.1},
    ),
    Case(
        "prune_in_turn",
        lambda: transforms.prune_in_turn(
            GROUPS, {"hidden": jnp.array([True, False, True, True])}, begin=0, every=1
        ),
        lambda: transforms.prune_in_turn(
            GROUPS, {"hidden": jnp.ones(4, bool)}, begin=0, every=1
        ),
        {},
    ),
    Case(
        "tpp",
        lambda learning_rate=0.1, weight_decay=0.01: transforms.tpp(
            learning_rate,
            GROUPS,
            {"hidden": jnp.array([True, False, True, True])},
            total_steps=4,
            end=2,
            every=1,
            interval=1,
            gram=0.1,
            weight_decay=weight_decay,
        ),
        None,
        {"learning_rate": 0.1, "weight_decay": 0.01},
    ),
    Case(
        "truncate_rank",
        lambda energy=0.8: transforms.truncate_rank(energy, every=2),
        lambda: transforms.truncate_rank(1.0, every=1),
        {"energy": 0.8},
        atol=1e-5,
    ),
    Case(
        "truncate_rank-nuclear",
        lambda energy=0.8, nuclear=0.1: transforms.truncate_rank(
            energy,
            every=2,
            nuclear=nuclear,
            inner=optax.scale(1.0),
        ),
        lambda: transforms.truncate_rank(
            1.0, every=1, nuclear=0.0, inner=optax.identity()
        ),
        {"energy": 0.8, "nuclear": 0.1},
        atol=1e-5,
    ),
    Case(
        "trp",
        lambda learning_rate=0.1, nuclear=0.1, weight_decay=0.01: transforms.trp(
            learning_rate,
            energy=0.8,
            every=2,
            nuclear=nuclear,
            weight_decay=weight_decay,
            total_steps=3,
        ),
        None,
        {"learning_rate": 0.1, "nuclear": 0.1, "weight_decay": 0.01},
        atol=1e-5,
    ),
    Case(
        "shrink_softly",
        lambda sparsity=0.5, factor=0.9: transforms.shrink_softly(
            sparsity, end=3, factor=factor
        ),
        lambda: transforms.shrink_softly(0.0, end=2),
        {"sparsity": 0.5, "factor": 0.9},
    ),
    Case(
        "issp",
        lambda learning_rate=0.1, factor=0.9: transforms.issp(
            learning_rate, factor=factor, select=two_of_four, end=3
        ),
        None,
        {"learning_rate": 0.1, "factor": 0.9},
    ),
    Case(
        "add_growing_decay",
        lambda increment=0.1, sparsity=0.5, limit=0.15: transforms.add_growing_decay(
            increment, sparsity, every=2, limit=limit
        ),
        lambda: transforms.add_growing_decay(0.0, 0.5, every=1),
        {"increment": 0.1, "sparsity": 0.5, "limit": 0.15},
    ),
    Case(
        "issr",
        lambda learning_rate=0.1, increment=0.1: transforms.issr(
            learning_rate, sparsity=0.5, increment=increment, every=1, limit=0.15, end=4
        ),
        None,
        {"learning_rate": 0.1, "increment": 0.1},
    ),
    Case(
        "add_pruned_decay",
        lambda strength=0.1: transforms.add_pruned_decay(strength, 2, 4, axis=0),
        lambda: transforms.add_pruned_decay(0.0, 2, 4, axis=0),
        {"strength": 0.1},
    ),
    Case(
        "prune_to_n_of_m",
        lambda: transforms.prune_to_n_of_m(1, 4, axis=0, begin=0, end=3),
        lambda: transforms.prune_to_n_of_m(4, 4, axis=0, end=1),
        {},
    ),
    Case(
        "sr_ste",
        lambda learning_rate=0.1, strength=0.1: transforms.sr_ste(
            learning_rate, 2, 4, axis=0, strength=strength, total_steps=3
        ),
        None,
        {"learning_rate": 0.1, "strength": 0.1},
    ),
    Case(
        "rescale_filters",
        lambda radius=1.0: transforms.rescale_filters(FILTERS, radius=radius, every=2),
        lambda: transforms.rescale_filters(FILTERS, every=9),
        {"radius": 1.0},
    ),
    Case(
        "log_filters",
        lambda: transforms.log_filters(FILTERS),
        lambda: transforms.log_filters(FILTERS),
        {},
    ),
    Case(
        "drop_and_grow",
        lambda drop_fraction=0.5: transforms.drop_and_grow(
            optax.adam(0.1), 0.5, drop_fraction=drop_fraction, every=2
        ),
        lambda: transforms.drop_and_grow(optax.identity(), 0.0, drop_fraction=0.0),
        {"drop_fraction": 0.5},
    ),
    Case(
        "drop_and_grow-random",
        lambda drop_fraction=0.5: transforms.drop_and_grow(
            optax.sgd(0.1, 0.9),
            mask=half,
            drop_fraction=drop_fraction,
            grow="random",
            also_step=True,
            every=1,
        ),
        lambda: transforms.drop_and_grow(
            optax.identity(), mask=weights, grow="random", also_step=True, every=1
        ),
        {"drop_fraction": 0.5},
    ),
    Case(
        "rigl",
        lambda learning_rate=0.1, weight_decay=0.01: transforms.rigl(
            learning_rate, sparsity=0.5, end=4, every=2, weight_decay=weight_decay
        ),
        None,
        {"learning_rate": 0.1, "weight_decay": 0.01},
        slow=True,
    ),
    Case(
        "sparse_evolutionary",
        lambda learning_rate=0.1: transforms.sparse_evolutionary(
            learning_rate, sparsity=0.5, every=2
        ),
        None,
        {"learning_rate": 0.1},
        slow=True,
    ),
    Case(
        "static_sparse",
        lambda learning_rate=0.1: transforms.static_sparse(learning_rate, sparsity=0.5),
        None,
        {"learning_rate": 0.1},
    ),
    Case(
        "grow_and_prune",
        lambda sparsity=0.5, rate=0.5: transforms.grow_and_prune(
            optax.adam(0.1),
            sparsity,
            partitions=two_parts,
            period=2,
            steps=2,
            rate=rate,
        ),
        lambda: transforms.grow_and_prune(
            optax.identity(), 0.0, partitions=two_parts, period=9, steps=2
        ),
        {"sparsity": 0.5, "rate": 0.5},
    ),
    Case(
        "gap",
        lambda learning_rate=0.1, weight_decay=0.01: transforms.gap(
            learning_rate,
            0.5,
            partitions=two_parts,
            period=2,
            steps=1,
            weight_decay=weight_decay,
        ),
        None,
        {"learning_rate": 0.1, "weight_decay": 0.01},
        slow=True,
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


def gradients(params: Any, step: int = 0) -> Any:
    """Deterministic pseudo-random gradients."""
    leaves, treedef = jax.tree.flatten(params)
    key = jax.random.fold_in(jax.random.key(11), step)
    return jax.tree.unflatten(
        treedef,
        [
            jax.random.normal(jax.random.fold_in(key, i), p.shape, p.dtype)
            for i, p in enumerate(leaves)
        ],
    )
