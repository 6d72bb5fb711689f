"""The fitness of a mask: the share it keeps of weights and accumulated gradients."""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jprune._dtypes import wide
from jprune._errors import value_error
from jprune._stacks import Axes, layer_axes, stacked_axes
from jprune._tree import require_same_structure
from jprune._typing import Mask, Params, Scope
from jprune.masks._count import is_traced
from jprune.masks._scope import in_scope, in_scope_list, resolve_scope


def fitness(
    mask: Mask,
    params: Params,
    grads: Params | None,
    *,
    balance: Any = 0.5,
    share: Literal["leaf", "network"] = "leaf",
    scope: Any = None,
    stacked: Any = None,
) -> jax.Array:
    r"""How much of the weights and of the accumulated gradient a mask keeps.

    Args:
      mask: a mask.
      params: weights w at the end of the scoring window.
      grads: the gradient summed over it (or the sum of its magnitudes), same structure;
        may be None where `balance` is 1.
      balance: $\lambda$ in [0, 1]: 1 for the magnitude of weights alone, 0 for that of
        gradients alone; may be traced.
      share: "leaf" rates each leaf by itself, and each layer of a stack; "network" all
        together: the sums of all leaves, divided once.
      scope: see `masks.unstructured`.
      stacked: see `masks.unstructured`.

    Returns:
      Numbers in [0, 1], `[layers in scope]`, or 0-d for the network. A sum that is 0 (a
      leaf without gradient) contributes 0.

    Raises:
      ValueError: `balance` outside [0, 1], another `share`, trees of another structure.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune.at_init._fitness import fitness
      >>> w, a = jnp.array([[1.0, -2, 3, -4]]), jnp.array([[4.0, 0, 0, -4]])
      >>> mask = jnp.array([[True, False, False, True]])
      >>> fitness(mask, w, a)
      Array([0.75], dtype=float32)
    """
    require_balance(balance, grads)
    scope = resolve_scope(scope, params)
    stacks = in_scope_list(stacked_axes(params, stacked), scope)
    rate = partial(_kept_share, mask, share=share, scope=scope, stacks=stacks)
    by_size = balance * rate(params)
    if grads is None:
        return by_size
    require_same_structure("grads", grads, params)
    return by_size + (1 - balance) * rate(grads)


def _kept_share(
    mask: Mask, tree: Params, share: str, scope: Scope, stacks: list[Axes]
) -> jax.Array:
    """The share of the magnitudes of a tree that a mask keeps. [layers] or 0-d"""
    if share not in ("leaf", "network"):
        raise value_error(f"`share` must be 'leaf' or 'network', got {share!r}.")
    sizes = [jnp.abs(wide(x)) for x in in_scope(tree, scope)]
    inside = [
        jnp.where(m, a, 0) for m, a in zip(in_scope(mask, scope), sizes, strict=True)
    ]
    kept, whole = (_sums(leaves, stacks) for leaves in (inside, sizes))
    if share == "network":
        kept, whole = jnp.sum(kept), jnp.sum(whole)
    return jnp.where(whole > 0, kept / jnp.where(whole > 0, whole, 1), 0)


def _sums(leaves: list[jax.Array], stacks: list[Axes]) -> jax.Array:
    """The sum of each layer. [layers]"""
    each = [
        jnp.ravel(jnp.sum(x, axis=layer_axes(x.ndim, axes)))
        for x, axes in zip(leaves, stacks, strict=True)
    ]
    return jnp.concatenate(each)


def require_balance(balance: Any, grads: Params | None) -> None:
    """Raises unless balance and gradient go together."""
    traced = is_traced(balance)
    if not traced and not 0 <= balance <= 1:
        raise value_error(
            f"`balance` must be in [0, 1] (1: magnitude alone), got {balance}."
        )
    if grads is None and (traced or balance < 1):
        raise value_error(
            "`grads` must be the accumulated gradient unless `balance` is 1 (fitness "
            "by magnitude alone), got None."
        )
