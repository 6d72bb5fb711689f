"""The step every projection takes: kept updates pass, removed weights land on zero.

A projection stands last in the chain, after the learning rate. Where a weight is
removed it answers with `-p`, so that plain `optax.apply_updates` gives `p + (-p)`,
exactly 0 in every dtype.

What is added to an infinity or a NaN is never 0: such a weight, once removed, is NaN
until `masks.apply(mask, params)` or `finish` sets it to zero.
"""

import jax
import jax.numpy as jnp

from jprune._typing import Mask, Params, PyTree


def project(updates: PyTree, params: Params, mask: Mask) -> PyTree:
    """`where(keep, u, -p)`, bit for bit `u` where kept.

    The result has the wider dtype of update and parameter: neither a kept update is
    rounded nor does `-p`, so a low-precision update leaves no residue.
    """

    def leaf(u: jax.Array, p: jax.Array, keep: jax.Array) -> jax.Array:
        return jnp.where(keep, *landing(u, p))

    return jax.tree.map(leaf, updates, params, mask)


def landing(u: jax.Array, p: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An update and `-p`, the one that removes, both in the wider dtype of the two."""
    dtype = jnp.promote_types(jnp.result_type(u), jnp.result_type(p))
    return jnp.asarray(u, dtype), -jnp.asarray(p, dtype)


def checkerboard(mask: Mask) -> Mask:
    """`mask` with every second scalar dropped as well: what a dry run enforces."""

    def leaf(m: jax.Array) -> jax.Array:
        if m.ndim == 0:
            return m
        index = sum(
            jax.lax.broadcasted_iota(jnp.int32, m.shape, i) for i in range(m.ndim)
        )
        return m & (index % 2 == 0)

    return jax.tree.map(leaf, mask)
