"""Under `nnx.Optimizer` a method does what it does to the state it was made for.

Its `init` is given the variables of the model, its `update` their bare arrays: paths
lose the `value` at their end, trees one level.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jprune import analysis, masks, scores, surgery, transforms

STEPS = 4
X = jax.random.normal(jax.random.key(5), (16, 8))


class Net(nnx.Module):
    """Two layers and a norm between them that has a scale."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.one = nnx.Linear(8, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.two = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.two(jnp.tanh(self.norm(self.one(x))))


MODEL, START = nnx.split(Net())


def apply(state, x):
    return nnx.merge(MODEL, state)(x)


DEPS = surgery.groups(apply)(START, X)
ID = next(g.id for g in DEPS if g.kind == "coupled")
AXES = surgery.contraction_axes(DEPS)
KEEPS = {ID: jnp.arange(8) % 2 == 0}
SCOPE = masks.prunable(START)
SHARES = masks.erk(START, 0.5)
TEXT = "one/kernel$"


def last(projection):
    return optax.chain(optax.sgd(0.1), projection)


METHODS = {
    "csgd": lambda: transforms.csgd(
        0.1, DEPS, {ID: [0, 1, 2, 3] * 2}, strength=0.5, weight_decay=1e-4
    ),
    "tpp": lambda: transforms.tpp(
        0.01, DEPS, KEEPS, weight_decay=1e-4, total_steps=4, end=2, every=1, interval=1
    ),
    "masksparsity": lambda: transforms.masksparsity(
        0.1, DEPS, KEEPS, total_steps=4, threshold=None
    ),
    "rescale_filters": lambda: last(
        transforms.rescale_filters(
            analysis.scale_invariance(apply, START, X).groups, every=1
        )
    ),
    "text": lambda: last(transforms.prune_gradually(0.5, end=2, scope=TEXT)),
    "stack": lambda: last(
        transforms.prune_gradually(0.5, end=2, ranking="leaf", stacked=TEXT)
    ),
    "parts": lambda: transforms.gap(
        0.1, 0.5, partitions=[TEXT, "two"], period=2, steps=1
    ),
    "scope": lambda: last(transforms.prune_gradually(0.5, end=2, scope=SCOPE)),
    "shares": lambda: last(transforms.prune_gradually(SHARES, end=2)),
    "axes": lambda: last(transforms.prune_to_n_of_m(2, 4, axis=AXES, end=2)),
    "part numbers": lambda: transforms.gap(
        0.1, 0.5, partitions=jax.tree.map(lambda _: 0, START), period=2, steps=1
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_an_optimizer_of_nnx_takes_the_same_steps(name):
    tx = METHODS[name]()
    params, state = START, tx.init(START)
    model = Net()
    optimizer = nnx.Optimizer(model, METHODS[name](), wrt=nnx.Param)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: jnp.mean(apply(p, X) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    @nnx.jit
    def train(model, optimizer):
        optimizer.update(model, nnx.grad(lambda m: jnp.mean(m(X) ** 2))(model))

    for _ in range(STEPS):
        params, state = step(params, state)
        train(model, optimizer)
    got, want = (jax.tree.leaves(x) for x in (nnx.state(model), params))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_groups_of_a_state_are_those_of_its_arrays():
    """And the other way round."""
    variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    arrays = jax.tree.map(lambda x: x[...], START, is_leaf=variable)
    assert jax.tree.structure(arrays) != jax.tree.structure(START)
    want = scores.over_groups(START, DEPS)[ID]
    np.testing.assert_array_equal(scores.over_groups(arrays, DEPS)[ID], want)

    def call(arrays, x):
        model = Net()
        nnx.update(model, arrays)
        return model(x)

    found = scores.over_groups(START, surgery.groups(call)(arrays, X))
    np.testing.assert_array_equal(found["one/kernel:1"], want)


def test_groups_of_another_network_merge_nothing_and_say_so():
    tx = transforms.merge_clusters(
        DEPS, {ID: [0, 1, 2, 3] * 2}, strength=0.1, weight_decay=0.0
    )
    other = {"three": {"kernel": jnp.ones((8, 8))}}
    with pytest.raises(ValueError, match="No clustered group produces any leaf"):
        tx.update(other, tx.init(START), other)
