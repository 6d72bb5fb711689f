r"""TRP: ranks are truncated while the network trains, so that it learns to live there.

Splitting a trained layer into two thin ones loses accuracy. *Trained rank pruning* puts
the truncation into training. Every m steps each kernel is replaced by its truncated SVD
and the gradient is taken there; the steps between are ordinary, so that no capacity is
lost and the rank is free to change:

$$ t = zm: \quad T = D(W_t), \quad
   W_{t+1} = T - \eta\, \big( \nabla f(T) + \lambda\, U_k V_k^T \big) ; \qquad
   \text{else} \quad W_{t+1} = W_t - \eta\, \nabla f(W_t) . $$

$U_k V_k^T$ is the sub-gradient of the nuclear norm at T. It takes $\eta\lambda$ off
every singular value that is left, and shares the SVD and the rank with D: computed anew
from T it would hold directions of rounding noise, or fewer of those that count.

An Optax update can truncate only *after* a step: here after steps m - 1, 2m - 1, ...,
which is before the gradients of steps m, 2m, ... Step 0 is the caller's: start from
`compress.truncate(params, energy=...)`. At the end `compress.low_rank` splits kernels.

Xu et al., "TRP: Trained Rank Pruning for Efficient Deep Neural Networks", IJCAI 2020
(arXiv 2004.14566, 1812.02402).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune._errors import require_static, value_error
from jprune._finite import require_finite
from jprune._typing import Params, PyTree, Scalar, ScalarOrSchedule
from jprune._unfolding import Unfold, first_values
from jprune.transforms._build import (
    added,
    around,
    decay_all,
    next_step,
    renewed,
    require_rate,
    require_strengths,
    transformation,
    value_at,
)
from jprune.transforms._truncate import Leaves, Rule, cut


class TruncateRankState(NamedTuple):
    """State of `truncate_rank`.

    Attributes:
      count: steps taken, 0-d int32.
      ranks: of the last truncation, see `Truncated.ranks`; 0 before the first.
      directions: $U_k V_k^T$ of the last truncation, see `Truncated.directions`; ()
        without `nuclear`.
      inner: the state of the optimizer inside; () without one.
    """

    count: jax.Array
    ranks: PyTree
    directions: PyTree
    inner: PyTree


def truncate_rank(
    energy: Scalar = 0.98,
    *,
    every: int = 20,
    kind: Unfold = "channel",
    scope: Any = None,
    min_rank: int = 1,
    end: int | None = None,
    nuclear: ScalarOrSchedule | None = None,
    inner: optax.GradientTransformation | None = None,
    by_loop: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Cuts kernels to low rank every few steps (a projection: place it last).

    With `nuclear` it is also a penalty, on the raw gradient of the steps that follow a
    truncation; so it must stand around the optimizer, given as `inner`.

    The SVDs run at those steps only, in a branch of the program. The updates of the
    kernels must be in memory for it, which an ordinary step pays for: up to twice the
    time of SGD on a CPU, which otherwise never writes them. With `by_loop` the
    branch is not there, and the loop does before steps 0, m, 2m, ...::

        cut = compress.truncate(params, energy=0.98)
        params = cut.params
        state = optax.tree.set(state, ranks=cut.ranks, directions=cut.directions)

    An SVD needs the whole of a sharded kernel: it is gathered, and the result is
    sharded as before. Moments of an adaptive optimizer are left as they are, as in the
    authors' code. `check` looks for zeros, and has nothing to say about ranks.

    Args:
      energy: e, the share of the squared singular values to keep, in (0, 1].
      every: m, the steps from one truncation to the next. With few steps at a small
        learning rate the rank ratchets down; see `compress.truncate`.
      kind: how kernels are read as matrices; see `compress.truncate`.
      scope: which leaves; see `masks.unstructured`.
      min_rank: the fewest singular values kept.
      end: when given, every update from this step on ends at the ranks reached by
        then. Without it: `compress.truncate(params, ranks=state.ranks)`.
      nuclear: $\lambda$, a number or a schedule of the step. At step 0 the direction is
        that of the parameters `init` saw, at their numerical rank.
      inner: the optimizer; None if this stands last in a chain.
      by_loop: leave the truncation to the loop, see above; what stays is the nuclear
        norm at its steps.

    Returns:
      A `GradientTransformationExtraArgs`. With `energy` 1 nothing is truncated: with
      `nuclear` what remains is the nuclear norm's sub-gradient at steps 0, m, 2m, ...,
      without it the inner optimizer alone.

    Raises:
      ValueError: numbers out of range, `nuclear` without `inner`, an end before the
        first truncation; from `init`, a leaf without an unfolding; from `update`, no
        `params`.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jprune import transforms
      >>> tx = transforms.truncate_rank(0.75, every=1)
      >>> params = {"kernel": jnp.array([[4.0, 0.0], [3.0, -5.0]])}
      >>> zero = {"kernel": jnp.zeros((2, 2))}
      >>> updates, state = tx.update(zero, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["kernel"].round(4)
      Array([[ 2., -2.],
             [ 4., -4.]], dtype=float32)
      >>> int(state.ranks["kernel"])
      1

    References:
      Xu et al., arXiv 2004.14566; the authors' code counts the period anew in every
      epoch, here it runs on. In float32 the parameters end within a rounding of the
      low-rank kernel: an update is added to them.
    """
    rule = Rule(energy=energy, min_rank=min_rank)
    rule.check()
    _check(every, end, nuclear, inner, by_loop)
    outer = around(optax.identity() if inner is None else inner)

    def init(params: Params) -> TruncateRankState:
        leaves = Leaves(params, scope, kind)
        require_finite(
            "`params`",
            zip(leaves.names(params), leaves.taken(params), strict=True),
            "a kernel with NaN or infinities has no singular values.",
        )
        ranks, directions = _before_any(leaves, params, nuclear is not None)
        return TruncateRankState(jnp.int32(0), ranks, directions, outer.init(params))

    def update(
        updates: PyTree, state: TruncateRankState, params: Params, **extra: Any
    ) -> tuple[PyTree, TruncateRankState]:
        leaves = Leaves(params, scope, kind)
        if nuclear is not None:
            lam = value_at(nuclear, state.count)
            updates = _add_directions(
                updates, state.directions, lam, state.count % every == 0
            )
        updates, following = outer.update(updates, state.inner, params, **extra)
        count = next_step(state.count)
        if by_loop:
            return updates, state._replace(count=count, inner=following)
        due = count % every == 0
        last = jnp.array(False) if end is None else count > end
        moved, ranks, directions = _projected(
            leaves, updates, state, params, rule, due | last, last
        )
        return moved, TruncateRankState(count, ranks, directions, following)

    return transformation(init, update, "truncate_rank", wrapper=True)


def _before_any(
    leaves: Leaves, params: Params, directed: bool
) -> tuple[PyTree, PyTree]:
    """Ranks 0, and the directions of the parameters at their numerical rank."""
    pairs = list(zip(leaves.taken(params), leaves.unfoldings, strict=True))
    ranks = [jnp.zeros([w.shape[a] for a in u.each], jnp.int32) for w, u in pairs]
    directions: PyTree = ()
    if directed:
        cuts = [cut(w, u, partial(_above_noise, like=w)) for w, u in pairs]
        directions = leaves.truncated(params, cuts).directions
    return leaves.filled(params, ranks, jnp.int32(0)), directions


def _above_noise(s: jax.Array, like: jax.Array) -> jax.Array:
    """The singular values that are not rounding noise of the largest."""
    return s > like.size / s.size * jnp.finfo(like.dtype).eps * s[..., :1]


def _add_directions(
    updates: PyTree, directions: PyTree, strength: Any, now: jax.Array
) -> PyTree:
    """`u + strength * direction` at the steps that follow a truncation."""

    def leaf(u: jax.Array, d: jax.Array) -> jax.Array:
        if d.ndim == 0:
            return u
        return jnp.where(now, added(u, jnp.asarray(strength, d.dtype) * d), u)

    return jax.tree.map(leaf, updates, directions)


def _projected(
    leaves: Leaves,
    updates: PyTree,
    state: TruncateRankState,
    params: Params,
    rule: Rule,
    due: jax.Array,
    last: jax.Array,
) -> tuple[PyTree, PyTree, PyTree]:
    """The updates, ranks and directions after this step."""
    if not leaves.unfoldings:
        return updates, state.ranks, state.directions
    ws, ranks = leaves.taken(params), leaves.taken(state.ranks)
    us = [
        jnp.asarray(u, jnp.promote_types(u.dtype, w.dtype))  # see `project`
        for u, w in zip(leaves.taken(updates), ws, strict=True)
    ]
    directed = jax.tree.structure(state.directions) == jax.tree.structure(params)
    known = leaves.taken(state.directions) if directed else []

    def one(u: jax.Array, w: jax.Array, rank: jax.Array, unfolding: Any) -> Any:
        def keep(s: jax.Array) -> jax.Array:
            return jnp.where(last, first_values(s, rank), rule.keep(s))

        found = cut((w + u).astype(w.dtype), unfolding, keep)
        moved = jnp.where(found.lossy, found.kernel.astype(u.dtype) - w, u)
        return moved, found.rank, found.direction

    def truncated(now: tuple[list[jax.Array], ...]) -> tuple[list[jax.Array], ...]:
        us, ranks, _ = now
        each = map(one, us, ws, ranks, leaves.unfoldings)
        moved, reached, directions = map(list, zip(*each, strict=True))
        return moved, reached, directions if known else []

    moved, reached, directions = renewed(due, truncated, (us, ranks, known))
    return (
        leaves.filled(updates, moved),
        leaves.filled(state.ranks, reached),
        leaves.filled(state.directions, directions) if known else state.directions,
    )


def _check(
    every: int, end: int | None, nuclear: Any, inner: Any, by_loop: bool
) -> None:
    if by_loop and (end is not None or nuclear is None):
        raise value_error(
            "With `by_loop` the loop truncates, at the end as well: give no "
            f"`end` (got {end}), and a `nuclear` (got {nuclear}), or "
            "there would be nothing left to do."
        )
    require_static(every=every, end=end)
    if every < 1:
        raise value_error(f"`every` must be at least 1, got {every}.")
    if end is not None and end < every - 1:
        raise value_error(
            f"`end` {end} comes before the first truncation, after "
            f"step {every - 1}: no rank would be known. Lower `every`."
        )
    if nuclear is None:
        return
    if inner is None:
        raise value_error(
            "`nuclear` adds to the raw gradient, which a projection placed last does "
            "not see: give the optimizer as `inner`, got None."
        )
    require_strengths(nuclear=nuclear)


def trp(
    learning_rate: ScalarOrSchedule,
    *,
    energy: Scalar = 0.98,
    every: int = 20,
    nuclear: ScalarOrSchedule | None = 3e-4,
    kind: Unfold = "channel",
    scope: Any = None,
    min_rank: int = 1,
    total_steps: int | None = None,
    by_loop: bool = False,
    weight_decay: ScalarOrSchedule = 1e-4,
    decay_scope: Any = None,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """SGD with trained rank pruning: the paper's recipe.

    Start from parameters that are truncated by the same rule, so that the first
    gradient is taken there as well, and split the kernels at the end::

        start = compress.truncate(params, energy=0.98).params
        tx = transforms.trp(0.1, energy=0.98, total_steps=steps)
        state = tx.init(start)
        ...
        ranks = optax.tree.get(state, "ranks")
        thin = compress.low_rank(apply, params, ranks, x)

    Args:
      learning_rate: a number or a schedule.
      energy: see `truncate_rank`; 0.98 in the paper [recalled], 0.9 in the authors'
        training script.
      every: see `truncate_rank`; 20 in the paper [recalled], 5 in the script.
      nuclear: see `truncate_rank`; None truncates only.
      kind: see `truncate_rank`.
      scope: which kernels. The paper takes convolutions larger than 1 x 1, all but the
        first, and never the classifier.
      min_rank: see `truncate_rank`.
      total_steps: length of the run: its last step ends at the ranks reached by then.
      by_loop: see `truncate_rank`.
      weight_decay: of all leaves, as in the authors' code.
      decay_scope: restricts the decay to a scope.
      momentum: heavy-ball coefficient.
      nesterov: Nesterov's form of momentum.

    Returns:
      An Optax transformation.

    Raises:
      ValueError: as `truncate_rank`.

    References:
      Xu et al., arXiv 2004.14566; settings of the authors' code.
    """
    require_rate(learning_rate, "trp", "chain it and `truncate_rank`")
    require_static(total_steps=total_steps)
    return truncate_rank(
        energy,
        every=every,
        kind=kind,
        scope=scope,
        min_rank=min_rank,
        end=None if total_steps is None else total_steps - 1,
        nuclear=nuclear,
        by_loop=by_loop,
        inner=optax.chain(
            decay_all(weight_decay, decay_scope),
            optax.sgd(learning_rate, momentum, nesterov),
        ),
    )
