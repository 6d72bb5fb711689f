r"""A cold start from a sample.

The k-th largest of a sample of $s$ of the $n$ entries has rank $p s$ with $p = k / n$,
give or take $2.5 \sqrt{s p (1 - p)}$. The two sample values there bracket the threshold
in all likelihood; if they do not, more sweeps are needed and the result is the same.

The stride is odd, so that it does not lock onto a channel. Taking every j-th entry of a
sharded leaf would gather it, and below about a million entries a few more sweeps are
cheaper than a sort; in both cases there is no sample.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jprune.selection._leaves import Table
from jprune.selection._pack import unsharded

SAMPLE = 65_536
LEAST_SIZE = 2**20


def worth_sampling(table: Table) -> bool:
    """Whether the tree is large and, as far as tracing can know, not sharded."""
    return sum(table.sizes) >= LEAST_SIZE and unsharded(table)


def sampled_guess(table: Table, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Guess and spread for the k-th largest image, from at most `SAMPLE` entries."""
    sizes = [size for size in table.sizes if size]
    stride = 2 * (sum(sizes) // (2 * SAMPLE)) + 1
    while sum(-(-size // stride) for size in sizes) > SAMPLE:
        stride += 2
    parts = []
    for leaf in table.leaves:
        if leaf.size == 0:
            continue
        parts.append(table.image.of(*(_every(x, stride) for x in leaf.swept)))
    ordered = lax.sort(jnp.concatenate(parts))
    s = ordered.shape[0]
    p = k.astype(jnp.float32) / sum(sizes)
    middle = s * (1 - p)
    error = 2.5 * jnp.sqrt(s * p * jnp.maximum(1 - p, 0)) + 1
    ends = jnp.stack([middle - error, middle + error])
    low, high = ordered[jnp.clip(ends, 0, s - 1).astype(jnp.int32)]
    # Halves first: the difference of two signed images may not fit. `low` may also be
    # the image of an excluded entry.
    low = jnp.maximum(low, table.image.lowest)
    half = high // 2 - low // 2
    return low + half, jnp.maximum(half, 1)


def _every(x: jax.Array | None, stride: int) -> Any:
    """Every `stride`-th entry; a mask of the whole leaf (None or 0-d) as it is."""
    if x is None or x.ndim == 0:
        return x
    flat = x.reshape(-1)
    return lax.slice(flat, (0,), flat.shape, (stride,))
