r"""Dynamic sparse training: the sparsity stands still, its positions move.

A network is sparse from the first step to the last. Every so often, in each layer of n
weights, the $k = f_t n$ smallest are dropped and k others grow at zero:

$$ A = \mathrm{top}_{n-k}\, |w| \text{ within } m, \qquad
   B = \mathrm{top}_{k}\, s \text{ outside } A, \qquad m \leftarrow A \cup B. $$

*RigL* grows where the gradient of the dense parameters is largest,
$s = |\partial L/\partial w|$: a removed weight is exactly 0 and its gradient is there
for the asking. *SET* grows at random. With $f = 0$ the first mask, drawn at random, is
held: *static sparse* training, the baseline of both.

`drop_and_grow` is a wrapper around a whole optimizer. The optimizer inside sees the
gradient of the sparse network alone; the wrapper sees the dense one. A weight that was
dropped and grown again at once has never left and keeps its value and its moments.

Top-KAST, the third of the family, keeps weights that its forward pass does not use, so
that parameters and network differ: it is a reparameterization, `reparam.top_kast`.

Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020 (arXiv
1911.11134); Mocanu et al., "Scalable Training of Artificial Neural Networks with
Adaptive Sparse Connectivity inspired by Network Science", Nature Communications 2018
(arXiv 1707.04780).
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import masks, scores
from jprune._axes import placed_as
from jprune._errors import require_functions, require_static, value_error
from jprune._stacks import stacked_axes
from jprune._typing import Mask, Params, PyTree, ScalarOrSchedule, Scope
from jprune.masks._count import is_traced
from jprune.masks._scope import in_scope, in_scope_list, resolve_scope
from jprune.masks._target import require_target
from jprune.scores._random import uniform
from jprune.selection._count_true import counts_true
from jprune.selection._leaves import own
from jprune.selection._pack import laid_flat
from jprune.transforms._build import (
    around,
    exactly_one,
    is_finite,
    next_step,
    renewed,
    seeded,
    transformation,
    value_at,
)
from jprune.transforms._exchange import Marks, exchanged
from jprune.transforms._inner_state import renew
from jprune.transforms._keep_masked import keep_masked
from jprune.transforms._projection import checkerboard, landing

Grow = Literal["gradient", "random"]
Allocation = Callable[..., PyTree]
_Select = Callable[..., jax.Array]


class DropAndGrowState(NamedTuple):
    """State of `drop_and_grow`.

    Attributes:
      count: steps taken, 0-d int32.
      mask: what is kept now; a 0-d True for leaves out of scope.
      grown: what of it came when the mask last moved.
      kept: how many weights each leaf in scope keeps, [leaves] int32; no move changes
        it, and to count anew would take a third of one.
      key: the data of the PRNG key, uint32; step t folds t into it.
      passes: passes over the weights the last mask took (read-only, for logs).
      inner: state of the optimizer inside.
    """

    count: jax.Array
    mask: Mask
    grown: Mask
    kept: jax.Array
    key: jax.Array
    passes: jax.Array
    inner: PyTree

    def repacked(self) -> "DropAndGrowState":
        """After `Plan.pack_state`: counts of the compact mask."""
        return self._replace(kept=_counts(self.mask))

    def probe(self) -> tuple["DropAndGrowState", Mask]:
        """A state that holds half of what is kept; see `check`."""
        mask = checkerboard(self.mask)
        # Far before the first update of the mask, so that none is due.
        return self._replace(count=jnp.full_like(self.count, -(2**30)), mask=mask), mask


def drop_and_grow(
    inner: optax.GradientTransformation,
    sparsity: Any = None,
    *,
    mask: Mask | Callable[[Params], Mask] | None = None,
    allocation: Allocation | None = None,
    drop_fraction: ScalarOrSchedule = 0.3,
    grow: Grow = "gradient",
    also_step: bool = False,
    every: int = 100,
    begin: int = 1,
    end: int | None = None,
    scope: Any = None,
    min_keep: int = 1,
    stacked: Any = None,
    key: jax.Array | int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Trains a sparse network whose mask moves (a wrapper around an optimizer).

    At the steps $t$ from `begin` to before `end` that `every` divides, each leaf of n
    kept weights drops the $\lfloor f_t n + 1/2 \rfloor$ smallest and grows as many
    elsewhere. Grown weights start at zero with the moments that `inner.init` gives;
    dropped ones land on exactly zero. The counts never change.

    Read the mask from `state.mask`: after `init` the parameters are still dense, and
    right after a move the grown weights are 0, so that `analysis.report(params)` reads
    too sparse a network and `masks.from_zeros` would drop them.

    The first step makes the weights sparse, with the gradient of the dense network it
    was given. For a sparse first gradient, make the mask first: `masks.apply` it to the
    parameters and pass `mask=masks.from_zeros`. With a gradient that is not finite no
    mask moves; whether the step is taken is for `inner` to say
    (`optax.apply_if_finite`).

    Args:
      inner: the optimizer, learning rate included. It is shown the kept weights and
        their gradient, zeros elsewhere. What rescales updates must stand in it, not
        behind the wrapper: a removed weight would miss zero (`check` tells).
      sparsity: of the first mask, drawn at random: a number, of the whole scope; or a
        tree with a number for each leaf, or a function of the parameters to one.
      mask: the first mask instead, or a function of the parameters called by `init`. A
        leaf whose mask is 0-d stays dense.
      allocation: how a number is spread over the leaves: `masks.erk` (None),
        `masks.uniform`, `masks.erdos_renyi`, or any function of parameters, sparsity
        and scope to the sparsity of each leaf. It runs on the host; where `stacked` is
        given it is given that too.
      drop_fraction: f, the share of the kept weights that moves; a number, or a
        schedule of the step such as `optax.cosine_decay_schedule(0.3, end)`. The number
        0 holds the first mask.
      grow: where: by the largest "gradient", or at "random".
      also_step: False: the mask moves in place of a step (RigL): no weight follows its
        gradient, though the moments take it in. True: it moves after one (SET).
      every: steps between two moves.
      begin: no mask moves before; 1 leaves out step 0.
      end: no mask moves from this step on; None for never.
      scope: with `sparsity`, which leaves are sparse; see `masks.unstructured`.
      min_keep: with `sparsity`, the fewest weights any leaf keeps.
      stacked: which leaves are stacks of layers: each layer drops and grows as a leaf
        of its own. See `masks.unstructured`.
      key: a PRNG key or a seed, for the first mask and for growing at random. Resuming
        needs none: it is in the state.

    Returns:
      A `GradientTransformationExtraArgs`. With sparsity 0 and no drop it is `inner`.

    Raises:
      ValueError: both or neither of `sparsity` and `mask`, a `drop_fraction` outside
        [0, 1], a target out of range, steps out of order, an unknown `grow`; from
        `init`, a target that cannot be met or a mask that masks no leaf; from `update`,
        no `params`.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jprune import masks, transforms
      >>> params = {"w": jnp.array([[0.5, -0.1, 0.0, 0.0]])}
      >>> tx = transforms.drop_and_grow(
      ...     optax.sgd(0.1), mask=masks.from_zeros, drop_fraction=0.5, begin=0
      ... )
      >>> grads = {"w": jnp.array([[0.1, 0.2, 0.3, 0.9]])}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["w"]  # -0.1 goes, no step is taken
      Array([[0.5, 0. , 0. , 0. ]], dtype=float32)
      >>> state.mask["w"]
      Array([[ True, False, False,  True]], dtype=bool)

    References:
      Evci et al., arXiv 1911.11134, algorithm 1. Their code truncates $f_t n$, breaks
      ties of the weights by noise and moves the mask at step 0 too (`begin=0`); here
      the count follows jprune's rule, ties go by position, and $f_t n$ is a product in
      float32, which may differ by one where it lies next to a half. In their code the
      moments of the weights that stay do not see the gradient of a move; for that make
      `inner` an `optax.conditionally_mask(optimizer, lambda t: t % every != 0)`.
    """
    require_static(every=every, begin=begin, end=end, min_keep=min_keep)
    _require(sparsity, mask, drop_fraction, grow, every, begin, end)
    require_target(sparsity, min_keep=min_keep, takes_function=True)
    inner = around(inner)
    require_functions(allocation=allocation)
    first = _First(sparsity, allocation or masks.erk, mask, scope, min_keep, stacked)
    moves = _Moves(drop_fraction, every, begin, end, grow, stacked)

    def init(params: Params) -> DropAndGrowState:
        data = _data(key)
        kept, zero = first.mask(params, data), jnp.int32(0)
        none, counts = _begun(kept)
        return DropAndGrowState(
            zero, kept, none, counts, data, zero, inner.init(params)
        )

    def update(
        updates: PyTree, state: DropAndGrowState, params: Params, **extra: Any
    ) -> tuple[PyTree, DropAndGrowState]:
        step = functools.partial(_step, inner, updates, state, params, extra)
        following, now = state, None
        select, marks = _kept, (state.mask,)
        if moves.ever() and jax.tree.leaves(params):
            take = functools.partial(step, _kept) if also_step else None
            moved, following = _moved(params, updates, moves, state, take)
            now = jax.tree.map(functools.partial(own, moved), params)
            select, marks = _survives, (following.mask, following.grown, now)
        final, after = step(select, *marks)
        if now is not None and not also_step:
            final = jax.tree.map(lambda u, moved: jnp.where(moved, 0, u), final, now)
        final = jax.tree.map(
            lambda u, p, *m: select(*landing(u, p), *m), final, params, *marks
        )
        return final, following._replace(count=next_step(state.count), inner=after)

    return transformation(init, update, "drop_and_grow", wrapper=True)


def _step(
    inner: optax.GradientTransformationExtraArgs,
    updates: PyTree,
    state: DropAndGrowState,
    params: Params,
    extra: dict[str, Any],
    select: _Select,
    *marks: Mask,
) -> tuple[PyTree, PyTree]:
    """A step of the optimizer on the network that `select` leaves by the marks."""
    grads, weights = (
        jax.tree.map(lambda x, *m: select(x, 0, *m), tree, *marks)
        for tree in (updates, params)
    )
    began = renew(inner, state.inner, weights, select, *marks)
    return inner.update(grads, began, weights, **extra)


class _Moves(NamedTuple):
    """When, where and how much the mask moves, as given."""

    fraction: Any
    every: int
    begin: int
    end: int | None
    grow: Grow
    stacked: Any

    def ever(self) -> bool:
        unknown = callable(self.fraction) or is_traced(self.fraction)
        return bool(unknown or self.fraction != 0)

    def due(self, t: jax.Array) -> jax.Array:
        before_end = True if self.end is None else t < self.end
        return (t >= self.begin) & (t % self.every == 0) & before_end


def _kept(x: Any, y: Any, mask: jax.Array) -> jax.Array:
    """`x` where a weight is kept, else `y`; a 0-d mask keeps all."""
    if not mask.ndim:
        return x
    return jnp.where(mask, x, jnp.asarray(y, jnp.result_type(x)))


def _survives(
    x: Any, y: Any, kept: jax.Array, grown: jax.Array, moved: jax.Array
) -> jax.Array:
    """`_kept`, except for weights that grew in this step."""
    if not kept.ndim:  # Out of scope: never gone, never new.
        return x
    # Nested, so that no mask is made of the two: it would be written to memory.
    y = jnp.asarray(y, jnp.result_type(x))
    return jnp.where(kept, jnp.where(grown, jnp.where(moved, y, x), x), y)


class _First(NamedTuple):
    """The mask before the first step, as given."""

    sparsity: Any
    allocation: Any
    given: Any
    scope: Any
    min_keep: int
    stacked: Any

    def _spread(self, params: Params) -> PyTree:
        """The sparsity of each leaf, from one number."""
        how = {} if self.stacked is None else {"stacked": self.stacked}
        return self.allocation(params, self.sparsity, self.scope, **how)

    def mask(self, params: Params, key: jax.Array) -> Mask:
        if not jax.tree.leaves(params):
            return params
        if self.given is not None:
            state: Any = keep_masked(self.given).init(params)
            return _require_masked(state.mask)
        target = self.sparsity
        if callable(target):
            target = target(params)
        elif jax.tree_util.all_leaves([target]):
            target = self._spread(params)
        return masks.unstructured(
            scores.random(_wrapped(key), params),
            target,
            ranking="leaf",
            scope=resolve_scope(self.scope, params),
            min_keep=self.min_keep,
            stacked=self.stacked,
        )


def _moved(
    params: Params,
    updates: PyTree,
    moves: _Moves,
    state: DropAndGrowState,
    step: Callable[[Mask], tuple[PyTree, PyTree]] | None,
) -> tuple[jax.Array, DropAndGrowState]:
    """Whether the mask moves in this step, and the state with the mask after it.

    With `step` the mask moves by the weights that this step of the optimizer leaves.
    """
    # Lists of the leaves in scope: no other goes through a loop.
    scope = jax.tree.map(lambda m: m.ndim > 0, state.mask)
    axes = in_scope_list(stacked_axes(params, moves.stacked), scope)
    # Flat before the loops, so that in them leaves of one length are one to XLA.
    flat = jnp.asarray if any(axes) else laid_flat

    def read(tree: PyTree) -> list[jax.Array]:
        return [flat(x) for x in in_scope(tree, scope)]

    def shaped(marks: list[jax.Array], old: Mask) -> Mask:
        rest = iter(marks)
        reshaped = lambda m: next(rest).reshape(m.shape) if m.ndim else m  # noqa: E731
        return jax.tree.map(reshaped, old)

    every, grads, weights = jax.tree.map(flat, updates), read(updates), read(params)

    def move(stays: Marks) -> Marks:
        mask, _, _ = stays
        now, lots = weights, grads
        if step is not None:
            final, _ = step(shaped(mask, state.mask))
            now = read(optax.apply_updates(params, final))
        if moves.grow == "random":
            lots = _drawn(state, weights, scope)
        fraction = value_at(moves.fraction, state.count)
        return exchanged(now, lots, mask, state.kept, fraction, axes)

    moved = renewed(
        moves.due(state.count), lambda _: is_finite(every), jnp.array(False)
    )
    marks = read(state.mask), read(state.grown), state.passes
    mask, grown, passes = renewed(moved, move, marks)
    mask, grown = shaped(mask, state.mask), shaped(grown, state.grown)
    return moved, state._replace(mask=mask, grown=grown, passes=passes)


def _drawn(
    state: DropAndGrowState, weights: list[jax.Array], scope: Scope
) -> list[jax.Array]:
    """A number in [0, 1) for every weight in scope."""
    places = tuple(i for i, on in enumerate(jax.tree.leaves(scope)) if on)
    key = jax.random.fold_in(_wrapped(state.key), state.count)
    drawn = uniform(key, places, tuple(x.size for x in weights), 2)
    rows = zip(drawn, weights, strict=True)
    return [placed_as(x.reshape(w.shape), w) for x, w in rows]


@jax.jit  # outside `jit` each operation would be compiled for each shape
def _begun(mask: Mask) -> tuple[Mask, jax.Array]:
    """What has grown before the first move, nothing, and the counts."""
    return jax.tree.map(jnp.zeros_like, mask), _counts(mask)


def _counts(mask: Mask) -> jax.Array:
    """How many weights each leaf in scope keeps. [leaves] int32"""
    held = [m for m in jax.tree.leaves(mask) if m.ndim]
    return counts_true(held) if held else jnp.zeros(0, jnp.int32)


def _data(key: Any) -> jax.Array:
    """Two words from a seed, or from a key of any kind."""
    return jax.random.bits(seeded(key), (2,), jnp.uint32)


def _wrapped(data: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(data, impl="threefry2x32")


def _require(
    sparsity: Any,
    mask: Any,
    fraction: Any,
    grow: Any,
    every: int,
    begin: int,
    end: int | None,
) -> None:
    exactly_one(sparsity=sparsity, mask=mask)
    if grow not in ("gradient", "random"):
        raise value_error(f"`grow` must be 'gradient' or 'random', got {grow!r}.")
    require_fraction(fraction)
    if every < 1 or begin < 0 or (end is not None and end < begin):
        raise value_error(
            "`begin`, `end`, `every` need 0 <= begin <= end and every >= 1; got "
            f"{begin}, {end}, {every}."
        )
    holds = is_traced(fraction) or (not callable(fraction) and fraction == 0)
    if end is not None and not holds and -(-begin // every) * every >= end:
        raise value_error(
            f"No mask would move: from step `begin`={begin} to before `end`={end} no "
            f"step is a multiple of `every`={every}. Lower `every`, lengthen the run, "
            "or hold the mask (`static_sparse`, `drop_fraction=0`)."
        )


def require_fraction(fraction: Any) -> None:
    """The share of the kept weights that moves, if it is a number, is one."""
    known = not (callable(fraction) or is_traced(fraction))
    if known and not 0 <= np.asarray(fraction) <= 1:
        raise value_error(
            f"`drop_fraction` must be in [0, 1], the share of the kept weights that "
            f"moves, got {fraction}."
        )


def _require_masked(mask: Mask) -> Mask:
    if not any(m.ndim for m in jax.tree.leaves(mask)):
        raise value_error(
            "`mask` holds a 0-d True for every leaf: nothing would be sparse."
        )
    return mask
