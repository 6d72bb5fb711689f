"""`optax.inject_hyperparams`: what is injected, what is static, and the errors.

That injected numbers change no result is row 7 of the contract test.
"""

import jax
import jax.numpy as jnp
import optax
import pytest

from jprune import transforms

STEPS, SIZE, KEPT = 9, 100, 10


def params():
    return {"w": jax.random.normal(jax.random.key(0), (10, 10))}


STATIC = {
    "swd": ("total_steps", "every", "min_keep"),
    "prune_gradually": ("begin", "end", "every", "min_keep"),
    "rigl": ("end", "every", "begin", "min_keep", "allocation", "key"),
}
GIVEN = {
    "swd": {"learning_rate": 0.05, "mu": 5e-4, "total_steps": STEPS},
    "prune_gradually": {"end": STEPS - 1},
    "rigl": {"learning_rate": 0.05, "end": STEPS, "every": 2},
}


@pytest.mark.parametrize("name", STATIC)
def test_the_count_is_exact_with_the_static_arguments(name):
    make = optax.inject_hyperparams(getattr(transforms, name), STATIC[name])
    tx = make(sparsity=0.9, **GIVEN[name])
    update, at = jax.jit(tx.update), params()
    state = tx.init(at)
    assert "sparsity" in state.hyperparams and "every" not in state.hyperparams
    for _ in range(STEPS):
        updates, state = update(jax.tree.map(jnp.sin, at), state, at)
        at = optax.apply_updates(at, updates)
    assert int(jnp.sum(at["w"] != 0)) == KEPT


def test_an_injected_strength_acts():
    make = optax.inject_hyperparams(transforms.swd, STATIC["swd"])
    tx = make(sparsity=0.9, a_max=1e3, **GIVEN["swd"])
    state = tx.init(params())
    zero = jax.tree.map(jnp.zeros_like, params())
    update = jax.jit(tx.update)
    one, _ = update(zero, state, params())
    state.hyperparams["a_min"] = 2 * state.hyperparams["a_min"]
    two, _ = update(zero, state, params())
    moved = one["w"] != two["w"]
    assert int(jnp.sum(moved)) == SIZE - KEPT


@pytest.mark.parametrize("name", STATIC)
def test_numbers_that_must_be_static_are_named(name):
    allocation = [n for n in STATIC[name] if n == "allocation"]
    make = optax.inject_hyperparams(getattr(transforms, name), allocation)
    steps = [n for n in STATIC[name] if n not in ("allocation", "key")]
    named = ", ".join(f"`{n}`" for n in steps)
    with pytest.raises(ValueError, match=f"{named} must be .*`static_args`"):
        make(sparsity=0.9, **GIVEN[name]).init(params())


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda n: transforms.prune_once(lambda p: p, step=n), "step"),
        (lambda n: transforms.gsm(0.1, weight_decay=0.1, keep=5, total_steps=n), None),
        (lambda n: transforms.sr_ste(0.1, 2, 4, total_steps=n), None),
        (lambda n: transforms.truncate_rank(0.5, every=n), "every"),
        (lambda n: transforms.add_growing_decay(0.1, 0.5, every=n), "every"),
        (lambda n: transforms.issr(0.1, sparsity=0.5, end=n), "end"),
        (lambda n: transforms.growing_strength(n), "grow"),
        (lambda n: transforms.prune_unmoved(0.1, every=n, end=4), "every"),
    ],
)
def test_every_recipe_says_so(make, named):
    with pytest.raises(ValueError, match=f"`{named or 'total_steps'}` must be .*stat"):
        make(jnp.int32(2))
