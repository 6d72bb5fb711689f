"""Compressed rows of the transpose: the dense product, on disk and back, the bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

from jprune import compress


def pruned(shape, share):
    rng = np.random.default_rng(0)
    w = rng.standard_normal(shape).astype(np.float32)
    w[rng.random(shape) < share] = 0.0
    return w


@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_the_product_is_the_dense_one(lead):
    w = pruned((32, 24), 0.9)
    x = np.random.default_rng(1).standard_normal((*lead, 32)).astype(np.float32)
    rows = compress.to_bcsr(jnp.asarray(w))
    assert rows.shape == (24, 32) and rows.nse == np.count_nonzero(w)
    got = jax.jit(compress.sparse_dot)(x, rows)
    assert got.shape == (*lead, 24)
    np.testing.assert_allclose(got, x @ w, rtol=1e-5, atol=1e-5)


def test_round_trip_through_a_file(tmp_path):
    w = pruned((64, 48), 0.98)
    rows = compress.to_bcsr(jnp.asarray(w))
    parts = {"data": rows.data, "indices": rows.indices, "indptr": rows.indptr}
    assert sum(x.nbytes for x in parts.values()) == 8 * np.count_nonzero(w) + 4 * 49
    np.savez(tmp_path / "rows.npz", **parts)
    with np.load(tmp_path / "rows.npz") as file:
        arrays = [jnp.asarray(file[name]) for name in ("data", "indices", "indptr")]
    again = sparse.BCSR(tuple(arrays), shape=(48, 64))
    assert np.array_equal(again.todense().T, w)


def test_errors():
    rows = compress.to_bcsr(jnp.eye(4))
    with pytest.raises(ValueError, match=r"`kernel` must be \[in, out\]"):
        compress.to_bcsr(jnp.ones((2, 2, 2)))
    with pytest.raises(TypeError, match="`rows` must be what `to_bcsr` returns"):
        compress.sparse_dot(jnp.ones(4), jnp.eye(4))
    with pytest.raises(ValueError, match="must end in the kernel's 4 inputs"):
        compress.sparse_dot(jnp.ones((2, 3)), rows)
