"""Data from which nothing can be learned are refused by what learns from data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import compress, surgery

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 4)).astype("f")
PARAMS = {
    "a": RNG.normal(size=(4, 8)).astype("f"),
    "shift": np.ones(8, "f"),
    "b": RNG.normal(size=(8, 3)).astype("f"),
    "c": RNG.normal(size=(8, 3)).astype("f"),
    "bias": np.zeros(3, "f"),
}


def net(p, x):
    h = jax.nn.relu(x @ p["a"] + p["shift"][None])
    return h @ p["b"] + p["bias"][None]


def two_readers(p, x):
    return net(p, x), jax.nn.relu(x @ p["a"] + p["shift"][None]) @ p["c"]


def reconstruct(batches, fn=net, keep=4):
    deps = surgery.groups(fn)(PARAMS, X)
    return compress.reconstruct(fn, deps, PARAMS, batches, {"a:1": keep})


CALLS = {
    "reconstruct": reconstruct,
    "given": lambda b: reconstruct(b, keep=np.arange(8) < 4),
    "two readers": lambda b: reconstruct(b, two_readers),
    "data_distances": lambda b: compress.data_distances(
        net, surgery.groups(net)(PARAMS, X), PARAMS, b, ["a:1"]
    ),
    "capture": lambda b: compress.capture(net, PARAMS, b, scope="^[ab]$"),
    "wanda": lambda b: compress.wanda(net, PARAMS, b, sparsity=0.5, scope="^[ab]$"),
    "sparse_gpt": lambda b: compress.sparse_gpt(
        net, PARAMS, b, sparsity=0.5, scope="^[ab]$"
    ),
}
BATCHES = {
    "no batch": ([], "`batches` is empty", set()),
    "no example": ([X[:0]], "expected at least one, got none that", set()),
    "one": ([X[:1]], "all 1 rows that .* alike", {"capture", "wanda", "sparse_gpt"}),
    "equal": (
        [np.tile(X[:1], (9, 1))] * 2,
        "all 18 rows that .* alike",
        {"capture", "wanda", "sparse_gpt"},
    ),
    "zeros": ([X * 0], "are alike|reads: it is 0 in every example", {"capture"}),
    "NaN": ([X * jnp.nan], "finite", {"capture"}),
}


@pytest.mark.parametrize("call", CALLS)
def test_batches_that_show_nothing_are_refused(call):
    """Magnitudes of one example are something to rank by; a fit to it is not."""
    for batches, why, enough in BATCHES.values():
        if call in enough:
            CALLS[call](batches)
        else:
            with pytest.raises(ValueError, match=why):
                CALLS[call](batches)
    CALLS[call]([X])


@pytest.mark.parametrize("call", CALLS)
def test_one_array_is_no_list_of_batches(call):
    with pytest.raises(TypeError, match=r"got one array, float32\[32, 4\].*`\[x\]`"):
        CALLS[call](X)
    with pytest.raises(TypeError) as error:
        CALLS[call]([(X, X)])  # labels
    assert "float32[32, 4], float32[32, 4]. A batch is" in "".join(
        error.value.__notes__
    )
