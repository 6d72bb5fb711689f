r"""Robust pruning at initialization: stay on the edge of chaos after pruning too.

Pruning takes variance out of each layer, so a network initialized on the edge of chaos
is no longer there. The rescaling trick multiplies what survives in layer l by one
number,

$$ v_l = \text{fan-in}_l \cdot \text{mean}\big((W_l \odot d_l)^2\big), \qquad
   \rho_l = \sqrt{\sigma_w^2 / v_l}, \qquad W_l \leftarrow \rho_l\, W_l \odot d_l, $$

the mean over all entries, so that fan-in times the second moment is $\sigma_w^2$ again.
(The paper writes $\rho = E[\text{fan-in}\, W^2 d]^{-1/2}$ `[recalled]`: the same with a
target of 1 in its normalization.) Once, after the final mask, and never with the dense
moment. Where a norm follows, the forward pass does not change, only the effective
learning rate.

A residual network stays trainable when pruned, but its gradients grow with depth; the
stable one multiplies each branch by $1/\sqrt L$, L the number of its blocks, before it
adds the shortcut (down-sampling blocks too). The second moment then grows by
$(1 + \sigma_w^2/(2L))^L < e^{\sigma_w^2/2}$ in all instead of
$(1 + \sigma_w^2/2)^L$. When blocks are removed later, keep the factor.

Hayou, Ton, Doucet and Teh, "Robust Pruning at Initialization", ICLR 2021 (arXiv
2002.08797). The body could not be read; the definitions above are `[recalled]`, the
factor of the stable network is that of several public implementations.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jprune import masks
from jprune._dtypes import wide
from jprune._stacks import layer_axes, stacked_axes
from jprune._tree import require_same_structure
from jprune._typing import Mask, Params, PyTree, Scope
from jprune.at_init._fan_in import fan_ins
from jprune.at_init._gradients import LossFn
from jprune.at_init._snip import snip
from jprune.masks._scope import in_scope, in_scope_list, resolve_scope


def sbp(
    loss_fn: LossFn,
    params: Params,
    batch: PyTree,
    sparsity: Any = None,
    key: jax.Array | None = None,
    *,
    keep: Any = None,
    sigma_w2: float = 2.0,
    chunks: int = 1,
    fan_in: int | PyTree | None = None,
    scope: Any = None,
    min_keep: int = 1,
    stacked: Any = None,
) -> tuple[Params, Mask]:
    r"""Sensitivity-based pruning with the rescaling trick: SNIP's mask, then $\rho_l$.

    The parameters should be on the edge of chaos: He's initialization for ReLU, else
    `initialize` at `edge_of_chaos(...)`. Train on with
    `transforms.keep_masked(mask)`.

    Args:
      loss_fn: as for `snip`.
      params: the parameters, as initialized.
      batch: as for `snip`.
      sparsity: see `masks.unstructured`; one ranking over all leaves.
      key: as for `snip`.
      keep: see `masks.unstructured`.
      sigma_w2: as for `rescale`.
      chunks: as for `snip`.
      fan_in: as for `rescale`.
      scope: the leaves pruned, and rescaled.
      min_keep: the fewest weights any leaf keeps; 0 lets a layer be emptied.
      stacked: see `masks.unstructured`.

    Returns:
      The rescaled parameters with exact zeros, and the mask.

    Raises:
      ValueError: as `snip`, `masks.unstructured` and `rescale`.

    References:
      Hayou et al., arXiv 2002.08797 (SBP).
    """
    scores = snip(loss_fn, params, batch, key, chunks=chunks, scope=scope)
    taken = resolve_scope(scope, params)
    mask = masks.unstructured(
        scores, sparsity, keep=keep, scope=taken, min_keep=min_keep, stacked=stacked
    )
    return rescale(params, mask, sigma_w2, fan_in=fan_in, stacked=stacked), mask


def rescale(
    params: Params,
    mask: Mask,
    sigma_w2: float | PyTree = 2.0,
    *,
    fan_in: int | PyTree | None = None,
    scope: Any = None,
    stacked: Any = None,
) -> Params:
    r"""Applies a mask and multiplies each layer's survivors by its $\rho_l$.

    Args:
      params: the parameters, as initialized.
      mask: the final mask.
      sigma_w2: the target $\sigma_w^2$, 2 for ReLU: a number, or a tree with one for
        each leaf.
      fan_in: a number, a tree of numbers, or None for all axes but the last of leaves
        named `kernel` or `w` of rank 2 or 4.
      scope: the leaves rescaled: None for all the mask covers, else as for
        `masks.unstructured`. Leave out what a norm follows.
      stacked: see `masks.unstructured`; each layer of a stack has a factor of its own.

    Returns:
      Parameters with exact zeros. A second call changes nothing, up to rounding.

    Raises:
      ValueError: no default fan-in for a leaf; `params` and `mask` that do not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import at_init
      >>> w = jnp.array([[1.0, -2.0], [0.5, 0.1], [-1.0, 0.3], [2.0, -0.4]])
      >>> at_init.rescale(w, jnp.abs(w) >= 0.5, fan_in=4)[0].round(4)
      Array([ 0.6247, -1.2494], dtype=float32)

    References:
      Hayou et al., arXiv 2002.08797 (the rescaling trick).
    """
    kept = masks.apply(mask, params)
    taken = _taken(mask, params, scope)
    how = {"fan_in": fan_in, "scope": scope, "stacked": stacked}
    factors = rescaling(params, mask, sigma_w2, **how)
    return jax.tree.map(
        lambda p, f, on: (wide(p) * f).astype(p.dtype) if on else p,
        kept,
        factors,
        taken,
    )


def rescaling(
    params: Params,
    mask: Mask,
    sigma_w2: float | PyTree = 2.0,
    *,
    fan_in: int | PyTree | None = None,
    scope: Any = None,
    stacked: Any = None,
) -> PyTree:
    r"""The factors $\rho_l$ alone, to keep them in the forward pass instead.

    There, `jax.tree.map(jnp.multiply, factors, params)` inside the loss multiplies the
    gradients by $\rho_l$ too, which `rescale` does not.

    Args:
      params: the parameters, as initialized.
      mask: the final mask.
      sigma_w2: as for `rescale`.
      fan_in: as for `rescale`.
      scope: as for `rescale`.
      stacked: as for `rescale`.

    Returns:
      A tree like `params` of 0-d factors, float32 or wider; 1 for leaves out of scope
      and for emptied ones. Of a stack of layers one factor for each, with axes of
      length 1 beside it.

    Raises:
      ValueError: as `rescale`.
    """
    kept = masks.apply(mask, params)
    taken = _taken(mask, params, scope)
    targets = iter(_targets(sigma_w2, params, taken))
    fans = iter(fan_ins(fan_in, params, taken, stacked))
    stacks = iter(in_scope_list(stacked_axes(params, stacked), taken))

    def factor(w: Any, on: bool) -> jax.Array:
        if not on:
            return jnp.ones((), jnp.float32)
        stack = next(stacks)
        layer = layer_axes(w.ndim, stack)
        v = next(fans) * jnp.mean(wide(w) ** 2, layer, keepdims=bool(stack))
        rho = jnp.sqrt(next(targets) / jnp.where(v > 0, v, 1))
        return jnp.where(v > 0, rho, jnp.ones_like(rho))

    return jax.tree.map(factor, kept, taken)


def _taken(mask: Mask, params: Params, scope: Any) -> Scope:
    if scope is not None:
        return resolve_scope(scope, params)
    return jax.tree.map(lambda m: jnp.ndim(m) > 0, mask)


def _targets(sigma_w2: Any, params: Params, taken: Scope) -> list[Any]:
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(sigma_w2)):
        return [sigma_w2] * len(in_scope(params, taken))
    require_same_structure("sigma_w2", sigma_w2, params)
    return in_scope(sigma_w2, taken)
