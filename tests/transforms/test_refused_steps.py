"""A wrapper that refuses a step hides it from what counts inside.

One gradient in twelve is not finite. Inside `apply_if_finite` a removal at the last
step is then never reached, and `check` says so; in the two other places it is.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import masks, transforms

STEPS, BAD = 12, 4


def drop(params):
    return masks.unstructured(params, 0.5)


REMOVAL = {
    "prune_once": lambda: transforms.prune_once(drop, step=STEPS - 1),
    "prune_gradually": lambda: transforms.prune_gradually(0.5, end=STEPS - 1),
    "prune_to_n_of_m": lambda: transforms.prune_to_n_of_m(
        2, 4, axis=0, begin=0, end=STEPS - 1
    ),
}
RECIPES = {
    "swd": lambda: transforms.swd(
        0.1, mu=1e-3, total_steps=STEPS, sparsity=0.5, a_max=10.0
    ),
    "gsm": lambda: transforms.gsm(
        0.1, sparsity=0.5, weight_decay=0.01, total_steps=STEPS
    ),
    "issr": lambda: transforms.issr(0.1, sparsity=0.5, end=STEPS - 1, every=1),
    "sr_ste": lambda: transforms.sr_ste(0.1, 2, 4, total_steps=STEPS),
}


def guarded(tx, refusals=5):
    return optax.apply_if_finite(tx, refusals)


def start():
    return {"kernel": jax.random.normal(jax.random.key(0), (8, 8))}


def trained(tx, bad):
    params, update = start(), jax.jit(tx.update)
    state = tx.init(params)
    for t in range(STEPS):
        grads = {"kernel": jnp.sin(params["kernel"] + t)}
        if t in bad:
            grads = {"kernel": grads["kernel"].at[0, 3].set(jnp.nan)}
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert np.isfinite(params["kernel"]).all()
    return params


def zeros(params):
    return int((params["kernel"] == 0).sum())


QUICK = {"prune_once", "swd"}


def rows(table):
    return [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK))
        for name in table
    ]


@pytest.mark.parametrize("name", rows(REMOVAL))
def test_a_removal_behind_the_guarded_optimizer_comes_at_its_step(name):
    tx = optax.chain(guarded(optax.adam(0.1)), REMOVAL[name]())
    assert zeros(trained(tx, bad=[BAD, STEPS - 1])) == 32
    transforms.check(tx, start())  # a warning is an error here


@pytest.mark.parametrize("name", rows(RECIPES))
def test_a_recipe_behind_a_guarded_gradient_ends_in_time(name):
    tx = optax.chain(guarded(optax.identity()), RECIPES[name]())
    assert zeros(trained(tx, bad=[BAD])) == 32
    transforms.check(tx, start())


def test_inside_the_guard_the_run_ends_too_early_and_finish_removes():
    """What the warning warns of. The seventh of the steps counts as the sixth."""
    tx = guarded(RECIPES["swd"]())
    assert zeros(trained(tx, bad=[])) == 32
    params = trained(tx, bad=[BAD])
    assert zeros(params) == 0
    done, mask = transforms.finish(params, drop)
    assert zeros(done) == 32 == int(masks.count(mask))


def own_guard(inner):
    """Somebody's: a loss scale and its like hold back what overflowed."""

    def update(updates, state, params=None):
        fits = jnp.isfinite(optax.tree.norm(updates))
        moved, following = inner.update(updates, state, params)
        pick = functools.partial(jnp.where, fits)
        held = jax.tree.map(jnp.zeros_like, moved)
        return jax.tree.map(pick, moved, held), jax.tree.map(pick, following, state)

    return optax.GradientTransformation(inner.init, update)


def skipping(inner):
    large = functools.partial(optax.skip_large_updates, max_squared_norm=1e9)
    return optax.MultiSteps(inner, 2, should_skip_update_fn=large)


def often(inner):
    return optax.conditionally_transform(inner, lambda t: t < 99)


def masked_often(inner):
    return optax.conditionally_mask(inner, lambda t: t % 3 != 1)


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (guarded, "not finite"),
        (own_guard, "not finite"),
        (skipping, "MultiStepsState.* skips batches"),
        (often, "ConditionallyTransformState.* leaves steps out"),
        (masked_often, "ConditionallyMaskState.* leaves steps out"),
        (lambda tx: optax.MultiSteps(guarded(tx), 2), "not finite"),
    ],
)
def test_check_warns_of_a_clock_inside_what_refuses(wrap, said):
    with pytest.warns(UserWarning, match=f"{said}.*the run ends before"):
        transforms.check(wrap(RECIPES["swd"]()), start(), steps=6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*REMOVAL, *RECIPES])
def test_check_knows_every_clock(name):
    with pytest.warns(UserWarning, match="not finite.*the run ends before"):
        transforms.check(guarded((REMOVAL | RECIPES)[name]()), start())


def test_check_is_silent_where_no_removal_can_be_missed():
    held = transforms.keep_masked(drop)
    moving = transforms.rigl(0.1, sparsity=0.5, end=8, every=2)
    once = REMOVAL["prune_once"]()
    for tx in (
        guarded(moving),
        optax.MultiSteps(optax.chain(optax.sgd(0.1), once), 3),
        optax.chain(optax.MultiSteps(optax.sgd(0.1), 3), once),
        optax.chain(often(optax.sgd(0.1)), held),
        guarded(optax.chain(optax.sgd(0.1), once), refusals=0),
    ):
        transforms.check(tx, start(), steps=6)
