r"""K-starts: of k random masks, train on with the one that fits best.

After an epoch or two of ordinary dense training, with A the magnitude of the gradient
summed over it and $\lambda$ the `balance`, a mask M has the fitness

$$ F(M) = \lambda \frac{\sum M |w|}{\sum |w|}
        + (1 - \lambda) \frac{\sum M A}{\sum A} $$

and the fittest is kept. Weights keep their trained values: nothing is rewound.

**It approaches random pruning as layers grow.** For a random mask that keeps a fraction
d of N weights, $\sum M a$ has mean $d \sum a$ and variance
$d (1-d) \frac{N}{N-1} \sum (a - \bar a)^2$; the best of k lies about $\sqrt{2 \ln k}$
standard deviations above the mean, a relative gain of
$\sqrt{2 \ln k\, (1-d) / (d N)}$ times the coefficient of variation of a. That is 1.7 %
for N = 1e5, d = 0.1, k = 16 and 0.75, and 66 % for N = 64: `share="channel"` lets every
output channel choose for itself.

Haroon, "What to Prune and What Not to Prune at Initialization", arXiv 2209.02201. Only
the abstract could be read: it names k random p-sparse matrices and fitness by the
magnitude of weights, of accumulated gradients, or both. The formulas, k, the exact
counts and who chooses are `[inferred]`.
"""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import masks
from jprune._errors import is_integer, require_static, short, value_error
from jprune._finite import require_finite
from jprune._stacks import Axes, layer_axes, stacked_axes
from jprune._tree import require_same_structure
from jprune._typing import Mask, Params, Scalar, Scope
from jprune.at_init._fitness import fitness, require_balance
from jprune.at_init._random_mask import ELEMENT, Pattern, layer_counts, random_mask
from jprune.masks._fit import require_fit
from jprune.masks._scope import in_scope, resolve_scope, scoped_names

Share = Literal["leaf", "network", "channel"]


def k_starts(
    key: jax.Array,
    params: Params,
    grads: Params | None,
    sparsity: Any,
    *,
    k: int | jax.Array = 16,
    balance: Scalar = 0.5,
    share: Share = "leaf",
    pattern: Pattern = ELEMENT,
    within: Mask | None = None,
    scope: Any = None,
    at_once: int | None = None,
    stacked: Any = None,
) -> Mask:
    r"""The fittest of k random masks, as one `vmap` over the candidates.

    Args:
      key: a PRNG key, which the candidates are drawn from.
      params: the weights at the end of the scoring window.
      grads: the gradient summed over it: `grads` of what `train_early` returns. May
        be None where `balance` is 1.
      sparsity: fraction of zeros in each leaf, or a tree of fractions. Every leaf,
        layer of a stack, or channel that chooses for itself, keeps at least one weight.
      k: how many candidates, or a vector of the numbers of those to choose from.
      balance: $\lambda$: 1 rates a mask by the magnitudes that it keeps, 0 by the
        gradients.
      share: who chooses: "leaf", and each layer of a stack; "network" (one number for
        all leaves); or "channel": each slice along the last axis, with the same count
        in each, and of a stack that of each layer.
      pattern: what is removed together: `masks.channels`, or `masks.blocks` with its
        block given; single weights by default, and where channels choose.
      within: a mask; candidates are drawn, and rated, inside it.
      scope: see `masks.unstructured`.
      at_once: candidates rated together. Each holds its random numbers and its mask
        while it is rated; None rates all k in one `vmap`, 1 one after the other.
      stacked: see `masks.unstructured`; it goes to `pattern` too, where it is given.

    Returns:
      The mask of the fittest; of equally fit ones the first.

    Raises:
      ValueError: `k` or `at_once` below 1, `balance` outside [0, 1], another `share`,
        trees of another structure; as the pattern.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jprune import at_init
      >>> key, w = jax.random.key(0), jnp.arange(8.0).reshape(2, 4)
      >>> mask = at_init.k_starts(key, w, None, 0.75, k=200, balance=1.0)
      >>> jnp.where(mask, w, 0)
      Array([[0., 0., 0., 0.],
             [0., 0., 6., 7.]], dtype=float32)

    References:
      Haroon, arXiv 2209.02201, abstract; the formulas are `[inferred]`.
    """
    require_balance(balance, grads)
    scope = resolve_scope(scope, params)
    if within is not None:
        require_fit(within, params, "within")
    for name, tree in (("params", params), ("grads", grads)):
        if tree is not None:
            require_same_structure(name, tree, params)
            named = zip(scoped_names(tree, scope), in_scope(tree, scope), strict=True)
            require_finite(f"`{name}`", named, "no mask is fitter than NaN.")
    contest = _Contest(
        key, sparsity, pattern, within, scope, balance, share, at_once, stacked
    )
    starts = _starts(k)
    if share == "channel":
        return contest.each_channel(params, grads, starts)
    if not jax.tree.leaves(params):
        return params
    rated, starts = contest.rate(params, grads, starts)
    best = jnp.argmax(rated, axis=0)[None]
    return contest.candidate(params, jnp.take_along_axis(starts, best, axis=0)[0])


class _Contest(NamedTuple):
    """Everything that defines the candidates and their rating."""

    key: jax.Array
    sparsity: Any
    pattern: Pattern
    within: Mask | None
    scope: Scope
    balance: Any = 0.5
    share: Share = "leaf"
    at_once: int | None = None
    stacked: Any = None

    def candidate(self, params: Params, start: jax.Array) -> Mask:
        """The mask of one number for all layers, 0-d, or one for each. [layers]"""
        how = {"pattern": self.pattern, "within": self.within, "scope": self.scope}
        how["stacked"] = self.stacked
        return random_mask(self.key, params, self.sparsity, start=start, **how)

    def rate(
        self, params: Params, grads: Params | None, starts: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The fitness of candidates and their numbers, both [k] or [k, layers]."""
        if self.share not in ("leaf", "network"):
            raise value_error(
                "`share` must be 'leaf', 'network' or, in `k_starts`, 'channel'; got "
                f"{self.share!r}."
            )
        if self.at_once is not None and self.at_once < 1:
            raise value_error(f"`at_once` must be at least 1, got {self.at_once}.")
        if grads is not None:
            require_same_structure("grads", grads, params)
        if self.within is not None:  # what is gone counts for nobody
            params = masks.apply(self.within, params)
            grads = None if grads is None else masks.apply(self.within, grads)
        if self.share == "leaf" and starts.ndim == 1:
            layers = sum(layer_counts(params, self.scope, self.stacked))
            starts = jnp.broadcast_to(starts[:, None], (len(starts), layers))
        share = "network" if self.share == "network" else "leaf"

        def one(start: jax.Array) -> jax.Array:
            how = {"scope": self.scope, "stacked": self.stacked}
            how |= {"balance": self.balance, "share": share}
            return fitness(self.candidate(params, start), params, grads, **how)

        if self.at_once is None:
            return jax.vmap(one)(starts), starts
        return jax.lax.map(one, starts, batch_size=self.at_once), starts

    def each_channel(
        self, params: Params, grads: Params | None, starts: jax.Array
    ) -> Mask:
        """Every slice along the last axis of a leaf holds a contest of its own."""
        if self.pattern is not ELEMENT:
            raise value_error("`share='channel'` removes single weights: no `pattern`.")
        grads = params if grads is None else grads  # of no weight: `balance` is 1
        within = masks.full(params) if self.within is None else self.within
        shares = jax.tree.broadcast(self.sparsity, params)
        trees = (params, grads, within, shares, self.scope)
        stacks = stacked_axes(params, self.stacked)
        columns = zip(*map(jax.tree.leaves, trees), stacks, strict=True)

        def one(share: Any, key: jax.Array, w: Any, g: Any, m: Any) -> jax.Array:
            alone = self._replace(
                key=key, sparsity=share, within=m, scope=True, share="leaf", stacked={}
            )
            rated, numbers = alone.rate(w, g, starts)
            return alone.candidate(w, numbers[jnp.argmax(rated), 0])

        chosen = []
        for i, (w, g, m, share, taken, axes) in enumerate(columns):
            if not taken:
                chosen.append(jnp.array(True))
                continue
            apart, back = _apart(w.ndim, axes)
            own = jax.random.fold_in(self.key, i)
            slices = [apart(x) for x in (w, g, jnp.broadcast_to(m, w.shape))]
            keys = jax.random.split(own, len(slices[0]))
            kept = jax.vmap(partial(one, share))(keys, *slices)
            chosen.append(back(kept, w.shape))
        return jax.tree.unflatten(jax.tree.structure(params), chosen)


def _apart(rank: int, stack: Axes) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A leaf cut into the channels of each of its layers, and put together again."""
    *rest, last = layer_axes(rank, stack)
    order = (*stack, last, *rest)

    def cut(x: jax.Array) -> jax.Array:
        moved = jnp.transpose(x, order)
        return moved.reshape(-1, *moved.shape[len(stack) + 1 :])

    def back(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        whole = x.reshape([shape[i] for i in order])
        return jnp.transpose(whole, tuple(np.argsort(order).tolist()))

    return cut, back


def _starts(k: int | jax.Array) -> jax.Array:
    if jnp.ndim(k):
        if jnp.ndim(k) > 1 or not jnp.issubdtype(jnp.result_type(k), jnp.integer):
            raise value_error(
                "`k` must be a number of candidates, or a vector of their numbers; got "
                f"{short(k)}."
            )
        return jnp.asarray(k)
    require_static(k=operator.index(k) if is_integer(k) else k)
    if k < 1:
        raise value_error(f"`k` must be at least 1, got {k}.")
    return jnp.arange(k)
