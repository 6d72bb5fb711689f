"""Wanda and SparseGPT: hand numbers, NumPy oracles, layer by layer on any function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jprune import compress
from jprune.compress._calibrate import mended


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def single(p, x):
    return x @ p["w"]


def test_wanda_by_hand():
    """Norms (3, 4): scores of the first output 3 and 4, of the second 6 and 4."""
    p = {"w": jnp.array([[1.0, 2.0], [-1.0, 1.0]])}
    x = jnp.array([[3.0, 0.0], [0.0, 4.0]])
    found = compress.wanda(single, p, [x], sparsity=0.5)
    assert found.params["w"].tolist() == [[0.0, 2.0], [-1.0, 0.0]]
    assert found.mask["w"].tolist() == [[False, True], [True, False]]
    lost, had = 3.0**2 + 4.0**2, (3.0**2 + 4.0**2) + (6.0**2 + 4.0**2)
    assert found.error["w"] == pytest.approx(lost / had)


def test_sparse_gpt_by_hand():
    """H = [[2, 1], [1, 2]]: w0 = 1 goes, w1 becomes 2 + 1/2 (least squares of w1)."""
    w, keep = mended(
        np.array([[1.0], [2.0]]),
        np.array([[2.0, 1], [1, 2]]),
        0.5,
        None,
        None,
        2,
        1e-12,
    )
    np.testing.assert_allclose(w, [[0.0], [2.5]], rtol=1e-9)
    assert keep.tolist() == [[False], [True]]


def test_sparse_gpt_decides_by_the_loss_of_a_removal():
    """Loss w^2 / [H^-1]: 4 / (2/3) = 6 against 2.25 / (1/2) = 4.5, so w1 goes."""
    w, keep = mended(
        np.array([[2.0], [1.5]]),
        np.array([[2.0, 1], [1, 2]]),
        0.5,
        None,
        None,
        2,
        1e-12,
    )
    assert keep.tolist() == [[True], [False]] and w[0, 0] == 2.0


def oracle(w, gram, sparsity, n, m, block, damping):
    """Column after column, with the inverse of what is left computed anew."""
    w = np.array(w)
    h = gram + damping * np.mean(np.diag(gram)) * np.eye(len(w))
    losses = [np.linalg.inv(h[j:, j:])[0, 0] for j in range(len(w))]
    keep, gone = np.ones(w.shape, bool), 0
    for j in range(len(w)):
        end = min(j - j % block + block, len(w))
        if n is None and j % block == 0:
            many = int(np.floor(sparsity * w[:end].size + 0.5)) - gone
            gone += many
            loss = w[j:end] ** 2 / np.array(losses[j:end])[:, None]
            flat = np.argsort(loss.ravel(), kind="stable")[:many]
            part = np.ones(loss.size, bool)
            part[flat] = False
            keep[j:end] = part.reshape(loss.shape)
        if n is not None and j % m == 0:
            loss = w[j : j + m] ** 2 / np.array(losses[j : j + m])[:, None]
            for out in range(w.shape[1]):
                keep[j + np.argsort(loss[:, out], kind="stable")[: m - n], out] = False
        inverse = np.linalg.inv(h[j:, j:])
        error = (w[j] - np.where(keep[j], w[j], 0)) / inverse[0, 0]
        w[j:] -= inverse[:, :1] * error
        w[j] = np.where(keep[j], w[j], 0)
    return w, keep


@pytest.mark.parametrize(
    ("sparsity", "n", "m", "block"),
    [
        (0.5, None, None, 4),
        (0.3, None, None, 5),
        (0.6, None, None, 99),
        (None, 2, 4, 8),
    ],
)
def test_sparse_gpt_is_the_oracle(sparsity, n, m, block):
    rng = np.random.default_rng(0)
    x, w = (
        rng.normal(size=(40, 12)) @ rng.normal(size=(12, 12)),
        rng.normal(size=(12, 3)),
    )
    ours = mended(w, x.T @ x, sparsity, n, m, block, 0.01)
    theirs = oracle(w, x.T @ x, sparsity, n, m, block, 0.01)
    np.testing.assert_array_equal(ours[1], theirs[1])
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-7, atol=1e-9)
    if sparsity is not None:
        assert (~ours[1]).sum() == np.floor(sparsity * 36 + 0.5)


def test_dead_inputs_lose_their_weights():
    gram = np.diag([1.0, 0.0, 2.0, 1.0])
    w, keep = mended(np.ones((4, 2)), gram, 0.25, None, None, 4, 0.01)
    np.testing.assert_array_equal(w[1], 0)
    assert not keep[1].any() and keep[[0, 2, 3]].all()


# Networks


def network(p, x):
    """A convolution, a loop over two layers, heads, an output from two axes."""
    h = lax.conv_general_dilated(
        x, p["c"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    h = jax.nn.relu(h).reshape(h.shape[0], -1, h.shape[-1])
    step = lambda h, w: (h + jax.nn.relu(h @ w), None)  # noqa: E731
    h = lax.scan(step, h, p["ws"])[0]
    v = jnp.einsum("bsd,dhe->bshe", h, p["v"])
    return jnp.einsum("bshe,hed->bsd", jax.nn.relu(v), p["o"])


def params():
    return {
        "c": 0.3 * normal(1, 3, 3, 4, 8),
        "ws": 0.3 * normal(2, 2, 8, 8),
        "v": 0.3 * normal(3, 8, 2, 4),
        "o": 0.3 * normal(4, 2, 4, 8),
    }


def batches():
    mix = normal(9, 4, 4)
    return [normal(5 + i, 8, 5, 5, 4) @ mix for i in range(2)]


def distance(p, q):
    pairs = [(network(p, x), network(q, x)) for x in batches()]
    gaps = [jnp.linalg.norm(a - b) / jnp.linalg.norm(b) for a, b in pairs]
    return float(sum(gaps))


@pytest.mark.slow
def test_every_layer_of_any_function_loses_its_share():
    p = params()
    found = compress.sparse_gpt(network, p, batches(), sparsity=0.5)
    assert list(found.error) == ["c", "ws[0]", "ws[1]", "v", "o"]
    for name in p:
        gone = np.asarray(found.params[name] == 0).reshape(2 if name == "ws" else 1, -1)
        assert (gone.sum(1) == gone.shape[1] // 2).all()
        np.testing.assert_array_equal(found.params[name] != 0, found.mask[name])
    wanda = compress.wanda(network, p, batches(), sparsity=0.5)
    for out in np.moveaxis(np.asarray(wanda.params["v"]).reshape(8, 8), 1, 0):
        assert (out == 0).sum() == 4
    for out in np.asarray(wanda.params["o"]).reshape(8, 8).T:
        assert (out == 0).sum() == 4
    cut = jax.tree.map(
        lambda w: jnp.where(jnp.abs(w) >= jnp.median(jnp.abs(w)), w, 0), p
    )
    gaps = [distance(q, p) for q in (found.params, wanda.params, cut)]
    assert gaps[0] < gaps[1] < gaps[2]


def test_a_layer_is_pruned_on_the_inputs_it_will_see():
    """The second layer's error is that of a capture behind the first, pruned."""
    p = {"a": normal(0, 6, 8), "b": normal(1, 8, 4)}
    fn = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]  # noqa: E731
    x = normal(2, 50, 6)
    found = compress.wanda(fn, p, [x], sparsity=0.5)
    half = {"a": found.params["a"], "b": p["b"]}
    norms = np.sqrt((np.asarray(jax.nn.relu(x @ half["a"])) ** 2).sum(0))
    score = np.abs(np.asarray(p["b"])) * norms[:, None]
    np.testing.assert_array_equal(found.mask["b"], score >= np.sort(score, 0)[4])
    seen = compress.capture(fn, half, [x], keep="moments")["b"].norms
    np.testing.assert_allclose(seen[:, 0], norms, rtol=1e-5)


@pytest.mark.parametrize("prune", [compress.wanda, compress.sparse_gpt])
def test_two_of_four_inputs_stay(prune):
    p = params()
    found = prune(network, p, batches(), n=2, m=4)
    for name, axis in (("c", 2), ("ws", 1), ("v", 0), ("o", 1)):
        kept = np.moveaxis(np.asarray(found.mask[name]), axis, -1)
        assert (kept.reshape(-1, 4).sum(1) == 2).all()


def test_what_cannot_be_asked_is_an_error():
    p, x = {"w": normal(0, 6, 2)}, normal(1, 5, 6)
    with pytest.raises(ValueError, match="Give `sparsity`, or `n` and `m`"):
        compress.wanda(single, p, [x])
    with pytest.raises(ValueError, match="does not divide the 6 inputs of w"):
        compress.wanda(single, p, [x], n=2, m=4)
    with pytest.raises(ValueError, match="multiple of `m`"):
        compress.sparse_gpt(single, p, [x], n=2, m=4, block=6)
    with pytest.raises(ValueError, match="must be in"):
        compress.sparse_gpt(single, p, [x], sparsity=1.0)
