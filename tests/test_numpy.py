"""Numbers and parameters that NumPy or JAX holds: integers, float64, known scalars.

Without x64 JAX has no float64: a warning of it is an error here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import at_init, compress, masks, reparam, scores, transforms
from tests.transforms.table import GROUPS, SCALED, TABLE, gradients, tree

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
PARAMS = {"kernel": RNG.normal(size=(8, 12)), "bias": np.ones(12)}
DEVICE = jax.tree.map(jnp.asarray, PARAMS)

FUNCTIONS = {
    "n_of_m": lambda p: masks.n_of_m(p, 2, 4),
    "above": lambda p: masks.above(p, 0.4, stacked={"kernel": 0}, min_keep=9),
    "output": lambda p: masks.unstructured(p, 0.5, ranking="output"),
    "lamp": scores.lamp,
    "initialize": lambda p: at_init.initialize(KEY, p),
    "pack": lambda p: compress.unpack_n_of_m(
        compress.pack_n_of_m(masks.apply(masks.n_of_m(p, 2, 4), p), 2, 4)
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_of_numpy_is_the_float_of_jax(name):
    got, want = FUNCTIONS[name](PARAMS), FUNCTIONS[name](DEVICE)
    jax.tree.map(np.testing.assert_array_equal, got, want)


QUICK = {"keep_masked", "prune_gradually", "drop_and_grow", "add_decorrelation"}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, marks=[pytest.mark.slow] * (c.name not in QUICK), id=c.name)
        for c in TABLE
    ],
)
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


HALF, TENTH, TWO = jnp.float32(0.5), jnp.float32(0.1), jnp.int32(2)


def first_step(make, params=DEVICE):
    """The first updates of a transformation that is made inside of `jit`."""

    @jax.jit
    def run(params):
        tx = make()
        return tx.update(params, tx.init(params), params)[0]

    return run(params)


KNOWN = {
    "n_of_m": lambda: jax.jit(lambda p: masks.n_of_m(p, TWO, 4))(DEVICE),
    "is_n_of_m": lambda: jax.jit(lambda p: masks.is_n_of_m(p, TWO, 4))(DEVICE),
    "k_starts": lambda: jax.jit(
        lambda p: at_init.k_starts(KEY, p, p, HALF, k=2, balance=HALF)
    )(DEVICE),
    "keep_by_scale": lambda: jax.jit(lambda p: masks.keep_by_scale(p, SCALED, HALF))(
        tree("dict")
    ),
    "top_kast": lambda: jax.jit(lambda p: made(reparam.top_kast(HALF, TENTH), p))(
        DEVICE
    ),
    "learned_thresholds": lambda: jax.jit(
        lambda p: made(reparam.learned_thresholds(HALF, weight=HALF, min_size=1), p)
    )(DEVICE),
    "learned_attention": lambda: jax.jit(
        lambda p: made(reparam.learned_attention(gamma=HALF, target=HALF), p)
    )(DEVICE),
    "history": lambda: first_step(
        lambda: transforms.prune_by_weight_history(
            HALF, end=2, every=1, beta=HALF, gamma=HALF
        )
    ),
    "swd": lambda: first_step(
        lambda: transforms.swd(
            TENTH, mu=TENTH, a_min=TENTH, a_max=HALF, total_steps=3, sparsity=HALF
        )
    ),
    "rigl": lambda: first_step(
        lambda: transforms.rigl(
            TENTH, sparsity=HALF, end=4, every=1, drop_fraction=HALF
        )
    ),
    "trp": lambda: first_step(
        lambda: transforms.trp(
            TENTH, energy=HALF, nuclear=TENTH, every=1, weight_decay=TENTH
        )
    ),
    "csgd": lambda: first_step(
        lambda: transforms.csgd(
            TENTH,
            GROUPS,
            {"hidden": [0, 1, 0, 1]},
            strength=TENTH,
            weight_decay=TENTH,
        ),
        tree("dict"),
    ),
}


def made(r, params):
    return r.apply(r.init(params))


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_number_of_jax_inside_of_jit(name):
    """Its range is checked there as elsewhere: it is no traced number."""
    leaves = jax.tree.leaves(KNOWN[name]())
    assert leaves and not any(jnp.isnan(x).any() for x in leaves)


RECIPES = {
    "csgd": lambda decay: transforms.csgd(
        np.float64(0.1),
        GROUPS,
        {"hidden": [0, 1, 0, 1]},
        strength=TENTH,
        weight_decay=decay if not callable(decay) else 0.1,
        momentum=np.float32(0.9),
    ),
    "tpp": lambda decay: transforms.tpp(
        jnp.float32(0.1),
        GROUPS,
        {"hidden": np.array([True, False, True, True])},
        weight_decay=decay,
        total_steps=9,
        end=2,
        every=1,
        interval=1,
    ),
    "network_slimming": lambda decay: transforms.network_slimming(
        0.1, strength=np.float64(0.1), scope=masks.prunable, weight_decay=decay
    ),
    "trp": lambda decay: transforms.trp(0.1, every=1, weight_decay=decay),
    "rigl": lambda decay: transforms.rigl(
        0.1, sparsity=0.5, end=4, every=1, weight_decay=decay
    ),
}


@pytest.mark.parametrize(
    "decay", [np.float32(0.1), TENTH, optax.linear_schedule(0.1, 0.2, 9)]
)
@pytest.mark.parametrize("name", RECIPES)
def test_half_precision_stays_what_it_is(name, decay):
    """The state of the next step is of the same types: `lax.scan` takes it."""
    params, tx = tree("dict", jnp.bfloat16), RECIPES[name](decay)
    state = tx.init(params)
    after = jax.eval_shape(tx.update, params, state, params)[1]
    for x, y in zip(*map(jax.tree.leaves, (state, after)), strict=True):
        assert x.dtype == y.dtype
