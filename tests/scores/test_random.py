"""Random scores: the numbers of JAX's own generator, whatever the shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import scores
from jprune.scores._random import WIDTH, uniform


def expected(key, place, shape):
    own = jax.random.fold_in(key, place)
    return jax.random.uniform(own, (int(np.prod(shape)),)).reshape(shape)


@pytest.mark.parametrize("shapes", [[(3, 2), (), (0,), (5,)], [(70, 61), (4_096,)]])
def test_numbers_are_those_of_jax(shapes):
    key = jax.random.key(7)
    params = [jnp.zeros(s) for s in shapes]
    drawn = scores.random(key, params)
    for i, (x, shape) in enumerate(zip(drawn, shapes, strict=True)):
        np.testing.assert_array_equal(x, expected(key, i, shape))


def test_a_leaf_draws_the_same_beside_other_leaves():
    key = jax.random.key(1)
    alone = scores.random(key, [jnp.zeros((50, 90))])[0]
    beside = scores.random(key, [jnp.zeros((50, 90)), jnp.zeros((9_000,))])[0]
    np.testing.assert_array_equal(alone, beside)


def test_one_generator_for_all_shapes():
    """What takes long to compile is there once: its rotations do not grow in number."""

    def shifts(sizes):
        tree = [jax.ShapeDtypeStruct((n,), jnp.float32) for n in sizes]
        text = jax.jit(scores.random).lower(jax.random.key(0), tree).as_text()
        return text.count("shift_left")

    assert shifts([5_000]) == shifts([5_000, 6_000, 7_000, 8_000]) > 0


def test_two_numbers_from_each_hash():
    """Number i is word i % 2 of what folding i // 2 gives, whatever is drawn beside."""
    key, size = jax.random.key(3), 2 * WIDTH + 1
    long, short = uniform(key, (4, 6), (size, 5), 2)
    np.testing.assert_array_equal(short, uniform(key, (6,), (5,), 2)[0])
    for place, drawn in ((4, long), (6, short)):
        own = jax.random.fold_in(key, place)
        for i in (0, 1, 4, len(drawn) - 2, len(drawn) - 1):
            word = jax.random.key_data(jax.random.fold_in(own, i // 2))[i % 2]
            assert drawn[i] == np.float32(int(word) >> 9) * 2.0**-23
    assert abs(np.corrcoef(long[:-1:2], long[1::2])[0, 1]) < 0.05


def test_batched_keys():
    tree = [jnp.zeros((3, 2)), jnp.zeros((7,))]
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(lambda key: scores.random(key, tree))(keys)
    for i in range(3):
        one = scores.random(keys[i], tree)
        jax.tree.map(
            lambda x, y, i=i: np.testing.assert_array_equal(x[i], y), together, one
        )


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_of_other_generators(impl):
    """An rbg key holds one half twice: what is folded into it cancels."""
    tree = [jnp.zeros((70, 61)), jnp.zeros((70, 61))]
    found = [scores.random(jax.random.key(s, impl=impl), tree) for s in (0, 1)]
    drawn = np.stack([np.ravel(x) for pair in found for x in pair])
    assert abs(drawn.mean() - 0.5) < 0.02 and abs(drawn.std() - 12**-0.5) < 0.02
    assert len(np.unique(drawn)) > 0.99 * drawn.size
