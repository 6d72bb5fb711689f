"""Parameters that NumPy holds, in float64 as NumPy makes them; integers of NumPy.

Without x64 JAX has no float64: a warning of it is an error here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import at_init, compress, masks, scores
from tests.transforms.table import TABLE, gradients, tree

RNG = np.random.default_rng(0)
PARAMS = {"kernel": RNG.normal(size=(8, 12)), "bias": np.ones(12)}
DEVICE = jax.tree.map(jnp.asarray, PARAMS)

FUNCTIONS = {
    "n_of_m": lambda p: masks.n_of_m(p, 2, 4),
    "above": lambda p: masks.above(p, 0.4, stacked={"kernel": 0}, min_keep=9),
    "output": lambda p: masks.unstructured(p, 0.5, ranking="output"),
    "lamp": scores.lamp,
    "initialize": lambda p: at_init.initialize(jax.random.key(0), p),
    "pack": lambda p: compress.unpack_n_of_m(
        compress.pack_n_of_m(masks.apply(masks.n_of_m(p, 2, 4), p), 2, 4)
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_of_numpy_is_the_float_of_jax(name):
    got, want = FUNCTIONS[name](PARAMS), FUNCTIONS[name](DEVICE)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("case", TABLE, ids=lambda c: c.name)
def test_a_step_outside_of_jit(case):
    """The first step; the state and the updates are those of the arrays of JAX."""
    device = tree("dict")
    host = jax.tree.map(lambda x: np.asarray(x, np.float64), device)
    tx = case.make()
    want = tx.update(gradients(device), tx.init(device), device)
    got = tx.update(
        jax.tree.map(lambda x: np.asarray(x, np.float64), gradients(device)),
        tx.init(host),
        host,
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)
    optax.apply_updates(host, got[0])


def test_integers_of_numpy_are_integers():
    two, four = np.int64(2), np.int64(4)
    sparse = masks.apply(masks.n_of_m(DEVICE, two, four), DEVICE)
    packed = compress.pack_n_of_m(sparse, two, four)
    np.testing.assert_array_equal(
        compress.unpack_n_of_m(packed)["kernel"], sparse["kernel"]
    )
    np.testing.assert_array_equal(
        masks.blocks(DEVICE, (two, four), 0.5)["kernel"],
        masks.blocks(DEVICE, (2, 4), 0.5)["kernel"],
    )
    with pytest.raises(ValueError, match="`block` must be positive integers"):
        masks.blocks(DEVICE, (True, 4), 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: masks.above(DEVICE, np.ones(2)), r"`threshold` must be one number, g"),
        (lambda: masks.above(DEVICE, {"a": 1.0}), r"`threshold` must be .*got dict"),
        (lambda: masks.unstructured(DEVICE, keep={"a": 4}), "`keep` must be one integ"),
    ],
)
def test_more_than_one_number(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
