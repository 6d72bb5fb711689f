"""The small training helper: train the first epochs, decide after each.

For loops of your own the same is `transforms.accumulate_gradient` and `keep_masked` in
the chain, and a call of the pure functions between two epochs.
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


def begin_early(
    tx: optax.GradientTransformation, params: Params, *, scope: Any = None
) -> Early:
    """The state before the first window: nothing removed.

    Args:
      tx: the optimizer.
      params: the initial weights.
      scope: what may be removed; see `masks.unstructured`.

    Returns:
      An `Early`.

    Raises:
      ValueError: a scope that matches nothing.
    """
    taken = resolve_scope(scope, params)
    mask = jax.tree.map(
        lambda p, t: jnp.ones(jnp.shape(p) if t else (), bool), params, taken
    )
    return Early(params, tx.init(params), params, _none(params), mask)


@partial(jax.jit, static_argnums=(0, 1), static_argnames="magnitudes")
def train_window(
    loss_fn: Callable[[Params, Any], jax.Array],
    tx: optax.GradientTransformation,
    early: Early,
    batches: PyTree,
    *,
    magnitudes: bool = False,
) -> Early:
    """Trains over some batches with the mask held, and sums the gradient anew.

    Gradients of removed weights are zeroed before the optimizer and its updates after
    it, whatever it is. One compiled scan; compiled once for windows of one length.

    Args:
      loss_fn: `loss_fn(params, batch)` -> a scalar.
      tx: the optimizer, the same object at each call.
      early: where training stands.
      batches: a tree of arrays `[steps, ...]`; one batch is one slice of each.
      magnitudes: sum the magnitudes of the gradients instead of the gradients.

    Returns:
      Training at the end of the window.
    """
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


def train_early(
    loss_fn: Callable[[Params, Any], jax.Array],
    tx: optax.GradientTransformation,
    params: Params,
    windows: Sequence[PyTree],
    rules: Sequence[Rule],
    *,
    scope: Any = None,
    magnitudes: bool = False,
) -> Early:
    """Trains window by window and decides after each; nothing is rewound.

    What comes back goes on with the mask held: `optax.chain(tx,
    transforms.keep_masked(early.mask))` from `early.params`. Everything is pure and
    traceable, so a whole early phase runs under `jit` or under `vmap` over seeds.

    Args:
      loss_fn: `loss_fn(params, batch)` -> a scalar.
      tx: the optimizer. Dissipating gradients want SGD, see `dissipating`.
      params: the initial weights.
      windows: batches of each window, `[steps, ...]`; usually an epoch each.
      rules: what each window ends with: `fittest`, `dissipating`, `dissipating_to`, the
        list that `dissipating_k_starts` makes, or any function from `Early` to a mask.
        Nothing regrows: a rule's mask is intersected with the one before.
      scope: what may be removed; the same as the rules'.
      magnitudes: see `train_window`.

    Returns:
      Training at the end, removed weights at exactly 0.

    Raises:
      ValueError: as many rules as windows are needed; as the rules.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jprune import at_init, masks
      >>> loss = lambda p, x: jnp.sum((x @ p["kernel"] - 1.0) ** 2)
      >>> params = {"kernel": jnp.ones((4, 2))}
      >>> epoch = jax.random.normal(jax.random.key(0), (8, 3, 4))
      >>> rule = at_init.fittest(jax.random.key(1), 0.5)
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
    early = begin_early(tx, params, scope=scope)
    for batches, rule in zip(windows, rules, strict=True):
        early = train_window(loss_fn, tx, early, batches, magnitudes=magnitudes)
        mask = masks.intersect(early.mask, rule(early))
        early = early._replace(params=masks.apply(mask, early.params), mask=mask)
    return early


def _none(params: Params) -> PyTree:
    """The empty sum of gradients."""
    return jax.tree.map(lambda p: wide(jnp.zeros_like(p)), params)
