"""The small training helper: train the first epochs, decide after each.

For loops of your own the same is `transforms.keep_masked` in the chain, a sum of the
gradients, and a call of the pure functions between two epochs.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import masks
from jprune._dtypes import wide
from jprune._errors import value_error
from jprune._typing import Mask, Params, PyTree
from jprune.masks._scope import resolve_scope


class Early(NamedTuple):
    """Training at the end of a window: all that a decision may look at.

    Attributes:
      params: the weights now; what the mask removes is exactly 0.
      opt_state: of the optimizer.
      initial: the weights before the first window.
      grads: the gradient summed over the last window, float32 or wider.
      mask: what is kept so far.
    """

    params: Params
    opt_state: Any
    initial: Params
    grads: PyTree
    mask: Mask


Rule = Callable[[Early], Mask]
"""What a window ends with: from the training so far to what is kept."""


def train_early(
    loss_fn: Callable[[Params, Any], jax.Array],
    tx: optax.GradientTransformation,
    start: Params | Early,
    windows: Sequence[PyTree],
    rules: Sequence[Rule | None],
    *,
    scope: Any = None,
    magnitudes: bool = False,
) -> Early:
    """Trains window by window and decides after each; nothing is rewound.

    What comes back goes on with the mask held: `optax.chain(tx,
    transforms.keep_masked(early.mask))` from `early.params`; or, for further windows,
    as the `start` of another call. Everything is pure and traceable, so a whole early
    phase runs under `jit` or under `vmap` over seeds.

    Within a window gradients of removed weights are zeroed before the optimizer and its
    updates after it, whatever it is. A window is one compiled scan; windows of one
    length compile once.

    Args:
      loss_fn: `loss_fn(params, batch)` -> a scalar.
      tx: the optimizer, the same object at each call. Dissipating gradients want SGD,
        see `dissipating`.
      start: the initial weights, or what an earlier call returned, to go on from there.
      windows: batches of each window, a tree of arrays `[steps, ...]`; usually an epoch
        each. None at all: what comes back is `start`, with nothing removed.
      rules: what each window ends with: any function from `Early` to a mask (its
        `params`, `grads`, `initial` and `mask` are the arguments of `k_starts`),
        `dissipating`, the list that `dissipating_k_starts` makes, or None for no
        decision. Nothing regrows: a rule's mask is intersected with the one before.
      scope: what may be removed; the same as the rules'. Only with initial weights.
      magnitudes: sum the magnitudes of the gradients over a window instead of the
        gradients.

    Returns:
      Training at the end, an `Early`; removed weights are at exactly 0.

    Raises:
      ValueError: as many rules as windows are needed; a `scope` that matches nothing,
        or given with an `Early`; as the rules.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jprune import at_init, masks
      >>> loss = lambda p, x: jnp.sum((x @ p["kernel"] - 1.0) ** 2)
      >>> params = {"kernel": jnp.ones((4, 2))}
      >>> epoch = jax.random.normal(jax.random.key(0), (8, 3, 4))
      >>> key = jax.random.key(1)
      >>> rule = lambda e: at_init.k_starts(key, e.params, e.grads, 0.5, within=e.mask)
      >>> tx = optax.sgd(0.01)
      >>> early = at_init.train_early(loss, tx, params, [epoch], [rule])
      >>> int(masks.count(early.mask))
      4
    """
    if len(windows) != len(rules):
        raise value_error(
            "`rules` must hold one rule for each window, got "
            f"{len(rules)} rules and {len(windows)} windows."
        )
    if not isinstance(start, Early):
        early = _begin(tx, start, scope)
    elif scope is None:
        early = start
    else:
        raise value_error("`scope` is decided at the start: an `Early` has its mask.")
    for batches, rule in zip(windows, rules, strict=True):
        early = _train_window(loss_fn, tx, early, batches, magnitudes=magnitudes)
        if rule is not None:
            mask = masks.intersect(early.mask, rule(early))
            early = early._replace(params=masks.apply(mask, early.params), mask=mask)
    return early


def _begin(tx: optax.GradientTransformation, params: Params, scope: Any) -> Early:
    """The state before the first window: nothing removed."""
    taken = resolve_scope(scope, params)
    mask = jax.tree.map(
        lambda p, t: jnp.ones(jnp.shape(p) if t else (), bool), params, taken
    )
    return Early(params, tx.init(params), params, _none(params), mask)


@partial(jax.jit, static_argnums=(0, 1), static_argnames="magnitudes")
def _train_window(
    loss_fn: Callable[[Params, Any], jax.Array],
    tx: optax.GradientTransformation,
    early: Early,
    batches: PyTree,
    *,
    magnitudes: bool,
) -> Early:
    """Trains over some batches with the mask held, and sums the gradient anew."""
    mask = early.mask

    def step(carry: tuple, batch: Any) -> tuple[tuple, None]:
        params, opt_state, total = carry
        grads = masks.apply(mask, jax.grad(loss_fn)(params, batch))
        updates, opt_state = tx.update(grads, opt_state, params)
        params = masks.apply(mask, optax.apply_updates(params, updates))
        total = jax.tree.map(
            lambda a, g: a + jnp.asarray(jnp.abs(g) if magnitudes else g, a.dtype),
            total,
            grads,
        )
        return (params, opt_state, total), None

    start = (early.params, early.opt_state, _none(early.params))
    (params, opt_state, total), _ = jax.lax.scan(step, start, batches)
    return Early(params, opt_state, early.initial, total, mask)


def _none(params: Params) -> PyTree:
    """The empty sum of gradients."""
    return jax.tree.map(lambda p: wide(jnp.zeros_like(p)), params)
