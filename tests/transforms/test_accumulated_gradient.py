"""What ranks by `grad=` inside `optax.MultiSteps`: by which gradient?"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import scores, transforms

PARAMS = {"w": np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)}
BATCHES = [
    {"w": np.array([[9.0, 1.0, 8.0, 0.0]], np.float32)},
    {"w": np.array([[1.0, 1.0, -7.0, 2.0]], np.float32)},
]
MEAN_KEEPS = [[True, False, False, True]]  # |w x mean| = 5, 2, 1.5, 4
LAST_KEEPS = [[False, False, True, True]]  # |w x last| = 1, 2, 21, 8


def hand_on(inner):
    """As docs/chain.md has it."""
    inner = optax.with_extra_args_support(inner)

    def update(updates, state, params=None, **extra):
        return inner.update(updates, state, params, **{**extra, "grad": updates})

    return optax.GradientTransformationExtraArgs(inner.init, update)


def by_score():
    return transforms.prune_gradually(0.5, end=0, score=scores.saliency)


def by_history():
    return transforms.prune_by_weight_history(
        0.5, end=0, every=1, signal="product", gamma=0.0
    )


def kept(tx, **extra):
    params = jax.tree.map(jnp.asarray, PARAMS)
    tx = optax.MultiSteps(tx, 2)
    state, update = tx.init(params), jax.jit(tx.update)
    for grads in BATCHES:
        given = {"grad": grads} if extra.get("given") else {}
        updates, state = update(grads, state, params, **given)
        params = optax.apply_updates(params, updates)
    return (np.asarray(params["w"]) != 0).tolist()


@pytest.mark.parametrize("rank", [by_score, by_history])
def test_the_accumulated_gradient_is_handed_on(rank):
    chain = optax.chain(optax.sgd(1e-3), rank())
    assert kept(hand_on(chain)) == MEAN_KEEPS
    assert kept(hand_on(chain), given=True) == MEAN_KEEPS
    assert kept(chain, given=True) == LAST_KEEPS  # what the warning warns of


def test_check_warns_of_one_batch_in_k():
    chain = optax.chain(optax.sgd(1e-3), by_score())
    for rank in (by_score, by_history):
        with pytest.warns(UserWarning, match="gradient of the last micro-batch"):
            transforms.check(optax.MultiSteps(rank(), 2), PARAMS, steps=4)
    magnitude = transforms.prune_gradually(0.5, end=0, score=lambda p, g: p)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for tx in (
            optax.MultiSteps(hand_on(chain), 2),
            optax.MultiSteps(magnitude, 2),
            optax.chain(optax.MultiSteps(optax.sgd(1e-3), 2), by_score()),
            chain,
        ):
            transforms.check(tx, PARAMS, steps=4)
