"""A target that no network could meet is refused when a method is made, not at `init`.

Whoever writes a method that takes a target must give it a row here.
"""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import at_init, reparam, transforms

SGD = optax.sgd(0.1)
MADE = {
    "add_growing_decay": lambda **k: transforms.add_growing_decay(0.1, **k),
    "add_selective_decay": lambda **k: transforms.add_selective_decay(0.1, 1.0, **k),
    "dissipating": lambda **k: at_init.dissipating(**k),
    "drop_and_grow": lambda **k: transforms.drop_and_grow(SGD, **k),
    "gap": lambda **k: transforms.gap(0.1, partitions=2, steps=1, period=2, **k),
    "grow_and_prune": lambda **k: transforms.grow_and_prune(
        SGD, partitions=2, steps=1, period=2, **k
    ),
    "gsm": lambda **k: transforms.gsm(0.1, weight_decay=0.1, **k),
    "issp": lambda **k: transforms.issp(0.1, total_steps=9, **k),
    "issr": lambda **k: transforms.issr(0.1, total_steps=9, **k),
    "mask_by_saliency": lambda **k: transforms.mask_by_saliency(**k),
    "prune_by_weight_history": lambda **k: transforms.prune_by_weight_history(
        end=9, **k
    ),
    "prune_gradually": lambda **k: transforms.prune_gradually(end=9, **k),
    "rigl": lambda **k: transforms.rigl(0.1, total_steps=9, **k),
    "shrink_softly": lambda **k: transforms.shrink_softly(end=9, **k),
    "sparse_evolutionary": lambda **k: transforms.sparse_evolutionary(
        0.1, every=2, **k
    ),
    "static_sparse": lambda **k: transforms.static_sparse(0.1, **k),
    "swd": lambda **k: transforms.swd(0.1, mu=0.1, total_steps=9, a_max=1.0, **k),
    "top_kast": lambda **k: reparam.top_kast(backward_sparsity=0.0, **k),
    "dissipating_k_starts": lambda **k: at_init.dissipating_k_starts(
        jax.random.key(0), **k
    ),
}
ONE_NUMBER = {"top_kast", "dissipating_k_starts"}
"""They take no tree."""
ON_PARAMS = {
    "grow_in_parallel",
    "k_starts",
    "keep_large_filters",
    "prune_iteratively",
    "sbp",
    "synflow_mask",
}
"""Functions that are given the parameters: they raise when they are called anyway."""
OPTIONS = {
    name: set(inspect.signature(getattr(package, name)).parameters)
    for package in (at_init, transforms, reparam)
    for name in dir(package)
    if not name.startswith("_") and inspect.isroutine(getattr(package, name))
}


def rows(option: str) -> list[str]:
    return [name for name in MADE if option in OPTIONS[name]]


@pytest.mark.parametrize("option", ["sparsity", "keep"])
def test_every_method_with_a_target_has_a_row(option):
    takes = {name for name, options in OPTIONS.items() if option in options}
    assert takes - ON_PARAMS <= set(MADE)


@pytest.mark.parametrize("sparsity", [90, 1.0, -0.1, np.float32(1.5), jnp.array(2.0)])
@pytest.mark.parametrize("name", rows("sparsity"))
def test_a_sparsity_out_of_range(name, sparsity):
    says = re.escape(f"in [0, 1): the fraction of zeros, got {sparsity}. (0.9")
    with pytest.raises(ValueError, match=says):
        MADE[name](sparsity=sparsity)


@pytest.mark.parametrize("name", rows("sparsity"))
def test_a_sparsity_that_is_a_text(name):
    with pytest.raises(TypeError, match="`sparsity` must be a number, got '90%'"):
        MADE[name](sparsity="90%")


@pytest.mark.parametrize("name", sorted(set(rows("sparsity")) - ONE_NUMBER))
def test_a_tree_of_sparsities_names_the_leaf(name):
    with pytest.raises(ValueError, match=r"cannot be met at:\n  a/w: 90 \(must be one"):
        MADE[name](sparsity={"a": {"w": 90}, "b": 0.5})


@pytest.mark.parametrize("name", rows("keep"))
def test_a_count_out_of_range(name):
    with pytest.raises(ValueError, match="`keep` must be at least 0, got -1"):
        MADE[name](keep=-1)
    with pytest.raises(TypeError, match="`keep` must be one integer, got 0.1"):
        MADE[name](keep=0.1)


def test_the_count_at_the_end_of_gsm():
    with pytest.raises(ValueError, match="`keep` must be at least 0, got -1"):
        MADE["gsm"](keep=5, final_keep=-1)


@pytest.mark.parametrize("name", sorted(set(rows("min_keep")) - ONE_NUMBER))
def test_a_negative_floor(name):
    with pytest.raises(ValueError, match="`min_keep` must be an integer >= 0, got -1"):
        MADE[name](sparsity=0.5, min_keep=-1)


@pytest.mark.parametrize("name", sorted(set(rows("ranking")) - ONE_NUMBER))
def test_an_unknown_ranking(name):
    with pytest.raises(ValueError, match="`ranking` must be 'global', 'leaf' or"):
        MADE[name](sparsity=0.5, ranking="layer")


@pytest.mark.parametrize("name", ["prune_gradually", "prune_by_weight_history"])
def test_a_schedule_that_ends_out_of_range(name):
    percent = optax.linear_schedule(0, 90, 9)
    with pytest.raises(ValueError, match=r"in \[0, 1\): the fraction of zeros, got 90"):
        MADE[name](sparsity=percent)


def test_a_bad_last_round_is_refused_before_the_first_is_trained():
    def train(params, mask):
        raise AssertionError("a run was spent")

    with pytest.raises(ValueError, match=r"must be in \[0, 1\).*got 90"):
        transforms.prune_iteratively(train, {"w": jnp.ones((2, 2))}, [0.5, 90])


@pytest.mark.parametrize("name", sorted(set(rows("sparsity")) - ONE_NUMBER))
def test_what_is_traced_is_not_judged(name):
    jax.eval_shape(lambda s: MADE[name](sparsity=s) and s, jnp.float32(0.5))
