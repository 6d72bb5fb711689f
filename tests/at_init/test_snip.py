"""SNIP by hand and against a NumPy network with its derivatives written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import at_init, masks

W = jnp.array([[1.0, -2.0], [0.5, 0.0]])
BATCH = (jnp.array([1.0, 2.0]), jnp.array([0.0, 1.0]))


def half_square(w, batch):
    x, target = batch
    return 0.5 * jnp.sum((x @ w - target) ** 2)


def test_robust_init_g1():
    """Scores [[2,6],[2,0]]: (0,1) is kept first, then (0,0) by position."""
    got = jax.jit(lambda w: at_init.snip(half_square, w, BATCH))(W)
    np.testing.assert_array_equal(got, [[2, 6], [2, 0]])
    np.testing.assert_allclose(got / got.sum(), [[0.2, 0.6], [0.2, 0.0]])
    mask = masks.unstructured(got, keep=2)
    assert mask.tolist() == [[True, True], [False, False]]


def test_chunks_add_signed_gradients():
    """Two examples whose gradients cancel in one weight: its score is 0."""
    x = jnp.array([[1.0, 2.0], [1.0, -2.0]])
    loss = lambda w, batch: jnp.mean(batch @ w)  # noqa: E731
    w = jnp.array([[3.0], [5.0]])
    whole = at_init.snip(loss, w, x)
    parts = at_init.snip(loss, w, x, chunks=2)
    np.testing.assert_array_equal(whole, [[3], [0]])
    np.testing.assert_array_equal(parts, whole)


def test_chunks_must_divide_the_batch():
    for bad in (0, 1.5, "two"):
        with pytest.raises(ValueError, match="`chunks` must be a positive integer"):
            at_init.snip(half_square, W, BATCH, chunks=bad)
    x = jnp.ones((4, 2))
    with pytest.raises(ValueError, match="`chunks` must divide the 4 examples, got 3"):
        at_init.snip(half_square, W, (x, x), chunks=3)
    with pytest.raises(ValueError, match=r"(?s)with one n; got:.*0: \(4, 2\).*1: \(\)"):
        at_init.snip(half_square, W, (x, jnp.ones(())), chunks=2)


@pytest.mark.parametrize("score", [at_init.snip, at_init.grasp])
def test_scores_of_a_loss_that_uses_other_parameters_are_refused(score):
    """Closed over, they give a gradient of 0: any mask would be arbitrary."""
    params = {"kernel": jnp.ones((3, 2))}
    with pytest.raises(ValueError, match="Every score is 0.* closes over"):
        score(lambda p, x: jnp.sum((x @ params["kernel"]) ** 2), params, jnp.ones(3))
