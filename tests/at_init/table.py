"""Every criterion of `at_init` that is used before training, as rows of its contract.

A new one joins here the day it is born: one `Case`, every test of the contract.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune import at_init
from jprune.at_init._iterate import iterate

SPARSITY = 0.5


class Case(NamedTuple):
    """One criterion under the contract.

    Attributes:
      name: the public name.
      run: `(loss_fn, params, batch, key, scope)` -> scores, a mask, or (params, mask).
        What needs no data makes its network of the loss.
      kind: "scores", "signed" (scores), "mask" or "pruned" (parameters and mask).
      data: whether it looks at the batch, and so can use a key.
    """

    name: str
    run: Callable[..., Any]
    kind: str
    data: bool = True


def network(params: Any, x: Any) -> jax.Array:
    """Of magnitudes it is positive, and every leaf is a layer of a chain. [1]"""
    for leaf in jax.tree.leaves(params):
        x = x * jnp.mean(jnp.abs(leaf))
    return x


def synflow(loss_fn: Any, params: Any, batch: Any, key: Any, scope: Any) -> Any:
    del loss_fn, batch, key
    return at_init.synflow(network, params, jnp.ones(1), scope=scope)


def synflow_mask(loss_fn: Any, params: Any, batch: Any, key: Any, scope: Any) -> Any:
    del loss_fn, batch, key
    return at_init.synflow_mask(
        network, params, jnp.ones(1), SPARSITY, rounds=3, scope=scope
    )


def iterated(loss_fn: Any, params: Any, batch: Any, key: Any, scope: Any) -> Any:
    score = partial(at_init.snip, loss_fn, batch=batch, key=key, scope=scope)
    return iterate(score, params, SPARSITY, rounds=3, scope=scope)


def sbp(loss_fn: Any, params: Any, batch: Any, key: Any, scope: Any) -> Any:
    return at_init.sbp(loss_fn, params, batch, SPARSITY, key, fan_in=4, scope=scope)


def snip(loss_fn: Any, params: Any, batch: Any, key: Any, scope: Any) -> Any:
    return at_init.snip(loss_fn, params, batch, key, chunks=2, scope=scope)


def grasp(loss_fn: Any, params: Any, batch: Any, key: Any, scope: Any) -> Any:
    return at_init.grasp(loss_fn, params, batch, key, chunks=2, scope=scope)


TABLE = [
    Case("snip", snip, "scores"),
    Case("grasp", grasp, "signed"),
    Case("synflow", synflow, "scores", data=False),
    Case("synflow_mask", synflow_mask, "mask", data=False),
    Case("iterate", iterated, "mask"),
    Case("sbp", sbp, "pruned"),
]


def loss(params: Any, batch: jax.Array, key: Any = None) -> jax.Array:
    """A smooth loss that couples all leaves; with a key it is noisy."""
    noise = 0.0 if key is None else jax.random.normal(key, ())
    total = jnp.zeros(len(batch))
    for i, leaf in enumerate(jax.tree.leaves(params)):
        at = jnp.arange(leaf.size, dtype=jnp.float32).reshape(leaf.shape)
        angles = jnp.multiply.outer(batch + noise, jnp.cos(at + i)) + leaf[None]
        total += jnp.mean(jnp.tanh(angles), axis=tuple(range(1, leaf.ndim + 1)))
    return jnp.mean(total**2)


BATCH = jnp.linspace(-1, 1, 4)
