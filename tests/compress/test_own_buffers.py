"""What is handed out shares no buffer with what was given: either may be donated."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import analysis, compress, masks, surgery, transforms
from jprune.compress._merge import snap
from jprune.compress._similar import Similar

X = np.random.default_rng(1).normal(size=(6, 4)).astype("f")


def net(p, x):
    h = jax.nn.relu(x @ p["a"] + p["shift"][None]) * p["scale"][None]
    return h @ p["b"] + p["bias"][None]


def params():
    """Two units are equal and two are constant."""
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 8), "shift": (8,), "scale": (8,), "b": (8, 3), "bias": (3,)}
    p = {k: rng.normal(size=s).astype("f") for k, s in shapes.items()}
    p["a"][:, 6:] = 0.0
    for name in ("a", "shift", "scale"):
        p[name][..., 1] = p[name][..., 0]
    return {k: jnp.asarray(v) for k, v in p.items()}


def pointers(tree):
    arrays = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    return {x.unsafe_buffer_pointer() for x in arrays}


def folded(p, deps):
    plan = surgery.plan_from_keep(deps, {"a:1": np.arange(8) < 6})
    return compress.fold_constants(net, plan, p, X)


def similar(p, deps):
    clusters = {"a:1": np.array([0, 0, 1, 2, 3, 4, 5, 6])}
    found = Similar(clusters, {"a:1": np.arange(8) != 1}, {}, None)
    return compress.remove_similar(net, deps, p, found, X)[1]


def packed(p, deps):
    z = masks.apply(masks.n_of_m(p, 2, 4, scope="^b$", axis=0), p) | {"a": p["a"]}
    return compress.pack_n_of_m(z, 2, 4, axis=0, scope="^b$")


ALIKE = {"a:1": [0, 0, 1, 2, 3, 4, 5, 6]}
GIVEN = {
    "fold_constants": folded,
    "merge": lambda p, deps: compress.merge(net, deps, p, ALIKE, X).variables,
    "snap": lambda p, deps: snap(deps, p, ALIKE),
    "low_rank": lambda p, deps: compress.low_rank(net, p, {"a": 1}, X).params,
    "truncate": lambda p, deps: compress.truncate(p, rate=0.5, scope="^a$").params,
    "reconstruct": lambda p, deps: (
        compress.reconstruct(net, deps, p, [X], {"a:1": np.arange(8) < 4}).variables
    ),
    "wanda": lambda p, deps: compress.wanda(net, p, [X], sparsity=0.5).params,
    "sample_inputs": lambda p, deps: (
        compress.sample_inputs(net, p, {"b": [0, 2]}, X).params
    ),
    "remove_similar": similar,
    "pack_n_of_m": packed,
}


@pytest.mark.parametrize("name", GIVEN)
def test_untouched_leaves_are_copies(name):
    p = params()
    deps = surgery.groups(net)(p, X)
    new = GIVEN[name](p, deps)
    assert not pointers(new) & pointers(p)


def test_unpacked_leaves_are_copies():
    p = params()
    given = packed(p, None)
    assert not pointers(compress.unpack_n_of_m(given)) & pointers(given)


def test_canonical_leaves_are_copies():
    def normed(p, x):
        h = x @ p["a"]
        return (h - h.mean(0)[None]) / h.std(0)[None] * p["scale"][None] @ p["b"]

    p = {k: v for k, v in params().items() if k in ("a", "scale", "b")}
    p["a"] = p["a"] + 1.0
    found = analysis.scale_invariance(normed, p, X, check=False)
    assert not pointers(compress.canonicalize(p, found.groups)) & pointers(p)


def test_a_step_on_the_compact_side_leaves_the_dense_state():
    """Counters, masks and moments where nothing is cut."""
    p = params()
    deps = surgery.groups(net)(p, X)
    plan = surgery.plan_from_keep(deps, {"a:1": np.arange(8) < 4})
    tx = optax.chain(optax.adam(0.1), transforms.keep_masked(plan.masks(p)))
    state = tx.init(p)
    small = plan.pack_state(state, p)
    assert not pointers(small) & pointers(state)
    before = jax.tree.map(np.array, state)

    def step(p, s):
        grads = jax.grad(lambda p: jnp.sum(surgery.shrink(net, plan)(p, X)))(p)
        updates, s = tx.update(grads, s, p)
        return optax.apply_updates(p, updates), s

    jax.jit(step, donate_argnums=(0, 1))(plan.pack(p), small)
    jax.tree.map(np.testing.assert_array_equal, state, before)
