"""Does every projection of a chain have the last word? Two dry steps tell.

A projection answers `-p` where a weight is removed. Anything that changes updates after
it (a learning rate, momentum, an averaging wrapper) makes the weight miss zero. `check`
puts every projection of the chain into a state in which it removes something, applies
random gradients, and looks.

The state of a projection has a method `probe() -> (state, mask)`: a state whose next
updates remove, and the mask they enforce. It is None where only the projection knows
it; then the state counts what it `removed`.

Where a penalty or a gradient map stands is not looked at: before or after the learning
rate, it moves weights, and no dry step knows which way its author meant. Which way the
gradient goes it does: a recipe behind an optimizer turns its sign twice and climbs.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune._errors import listing, short, type_error, value_error, warn
from jprune._tree import keyed_leaves, keys_text, named_leaves, require_tree
from jprune._typing import Params, PyTree
from jprune.transforms._build import around
from jprune.transforms._drop_and_grow import DropAndGrowState
from jprune.transforms._growing_decay import IssrState
from jprune.transforms._keep_masked import KeepMaskedState
from jprune.transforms._prune_gradually import PruneGraduallyState
from jprune.transforms._weight_history import PruneByWeightHistoryState

_MEAN_OF = 16
"""The most gradients whose mean is taken for a gradient that was handed on."""

_LONGEST = 256
"""Dry steps after which a chain that moves no weight is given up."""


def check(tx: optax.GradientTransformation, params: Params, *, steps: int = 2) -> None:
    """Raises unless weights that the chain's projections remove end at exactly 0.

    Every projection of the chain is made to remove, `steps` updates with random
    gradients are applied to a copy, and the removed weights are looked at. While no
    weight has moved (`optax.MultiSteps` holds updates back) it goes on, up to 256.

    How long the run will be is not known here: a schedule whose `end` lies behind the
    last step passes, and the run then stops at a lower sparsity. Look at
    `analysis.report(params)` after it, or use a recipe, which takes `total_steps`.

    Args:
      tx: the whole chain, as it will be used.
      params: the parameters.
      steps: dry steps to take; more than two where a wrapper holds the updates of some
        weights back for longer.

    Raises:
      TypeError: `tx` is no transformation, or `params` holds what none trains.
      ValueError: a removed weight is not 0, with the leaf's path and the usual cause;
        the chain has no projection, so that nothing in it ends at zero; or no update
        has come through.

    Warns:
      UserWarning: the updates follow the gradient instead of going against it; or what
        removes at a step of its own stands inside a wrapper that may refuse steps, such
        as `optax.apply_if_finite`, and does not count those; or something inside
        `optax.MultiSteps` ranks by `grad=`, which is there that of one micro-batch.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jprune import transforms
      >>> tx = optax.chain(optax.sgd(0.1), transforms.prune_gradually(0.5, end=9))
      >>> transforms.check(tx, {"w": jnp.ones((4, 4))})
    """
    update = _stepper(around(tx, "tx"))
    _require_trained(params)
    state, enforced = _probed(tx.init(params))
    if not enforced:
        raise value_error(
            "`check` found no projection in the chain: nothing in it sets a weight to "
            "zero. Add `keep_masked`, `prune_gradually` or `prune_once` last, or call "
            "`finish` after training."
        )

    _require_a_weight(enforced)

    # From a random point: a weight that is 0 already shows nothing.
    key = jax.random.key(0)
    start = now = optax.apply_updates(params, _noise(key, params))
    moved = climbs = False
    asked: set[int] = set()
    refusing = _refusing(state)
    for t in range(max(steps, _LONGEST)):
        if t >= steps and moved:
            break
        grads = _noise(jax.random.fold_in(key, t), _fast(now))
        climbs = climbs or (not moved and _climbs(update, state, now, grads))
        updates, following = update(grads, state, now, grads)
        refusing = refusing or _refused(update, state, following, now, asked)
        state = following
        moved = moved or any(bool(jnp.any(u != 0)) for u in jax.tree.leaves(updates))
        now = optax.apply_updates(now, updates)
    if not moved:
        raise value_error(
            f"`check` saw no update in {max(steps, _LONGEST)} dry steps: if a wrapper "
            "such as `optax.MultiSteps` holds them back for longer, pass more `steps`."
        )

    stored = [mask for mask in enforced if mask is not None]
    now, start = _slow(now), _slow(start)
    wrong = _missed(stored, now)
    if None in enforced:
        wrong += _missing(_removed(state), start, now, stored)
    if wrong:
        raise value_error(
            "Removed weights do not end at exactly 0. A projection must come last in "
            "the chain, after the learning rate and any momentum, and not inside a "
            "wrapper that averages or rescales updates. (Where a wrapper holds updates "
            f"back pass more `steps`, now {steps}.){listing(wrong)}"
        )
    if climbs:
        warn(_UPHILL)
    if refusing:
        warn(_REFUSING.format(refusing))
    if _reads_one_batch(update, state, params):
        warn(_ONE_BATCH)


def _require_trained(params: Params) -> None:
    """Raises for what no optimizer trains: a model whole, with its functions and keys.

    Raises:
      TypeError: naming the first such leaf, and what to give.
    """
    require_tree("params", params)
    for path, leaf in named_leaves(params):
        if not jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.number):
            raise type_error(
                f"`params` must be the arrays that `tx` trains, got {short(leaf)} at "
                f"{path}. Of a model give those: `nnx.state(model, nnx.Param)`, "
                "`eqx.filter(model, eqx.is_inexact_array)`."
            )


def _fast(params: Params) -> Params:
    """The parameters that a gradient is taken at."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def _slow(params: Params) -> Params:
    """The parameters that are used in the end."""
    return params.slow if isinstance(params, optax.LookaheadParams) else params


def _stepper(tx: optax.GradientTransformationExtraArgs) -> Callable[..., Any]:
    """`tx.update`, jitted, which is handed the gradient too if it takes one."""
    takes = inspect.signature(tx.update).parameters.values()
    extra = any(p.name == "grad" or p.kind is p.VAR_KEYWORD for p in takes)

    def update(updates: PyTree, state: PyTree, params: Params, grad: PyTree) -> Any:
        return tx.update(updates, state, params, **({"grad": grad} if extra else {}))

    return jax.jit(update)


def _require_a_weight(enforced: list[PyTree | None]) -> None:
    """Raises if no projection has a weight to remove: nothing would be shown."""
    masks = [mask for mask in enforced if mask is not None]
    if len(masks) < len(enforced):
        return
    if all(bool(jnp.all(m)) for m in jax.tree.leaves(masks)):
        raise value_error(
            "`check` found no weight that a projection of the chain could remove: "
            "`optax.masked` or the projection's `scope` leaves all out, its mask keeps "
            "whole leaves (0-d), or each leaf has one weight. Nothing would be shown."
        )


_UPHILL = (
    "[jprune] the updates of this chain follow the gradient: the loss will climb. A "
    "recipe such as `swd` is a whole optimizer and stands in place of `optax.adam`, "
    "not behind it; behind `scale_by_adam` and its like goes `scale_by_learning_rate`."
)


_NOT_FINITE = "a wrapper here refuses a step whose gradient is not finite"

_REFUSING = (
    "[jprune] {}. What removes inside it does not count such a step: after one of them "
    "the run ends before the last removal. Let the wrapper hold the optimizer alone, "
    "the removal behind it: `optax.chain(optax.apply_if_finite(optimizer, 5), "
    "removal)`. In front of a recipe a guard of the gradient does it: `optax.chain("
    "optax.apply_if_finite(optax.identity(), 5), recipe)`. Or call `finish` after the "
    "run."
)


def _refusing(state: PyTree) -> str:
    """What a wrapper that may leave steps out does, if it holds a clock; or ""."""

    def known(x: Any) -> bool:
        skips = jax.tree.leaves(getattr(x, "skip_state", ()))
        return isinstance(x, tuple(_CONDITIONS)) or bool(skips)

    for x in jax.tree.leaves(state, is_leaf=known):
        if known(x) and _clocks(x):
            does = _CONDITIONS.get(type(x), "skips batches")
            return f"a wrapper here ({type(x).__name__}) {does}"
    return ""


_CONDITIONS: dict[type, str] = {
    optax.ConditionallyTransformState: "leaves steps out",
    optax.ConditionallyMaskState: "leaves steps out",
}


def _refused(
    update: Callable[..., Any],
    state: PyTree,
    following: PyTree,
    params: Params,
    asked: set[int],
) -> str:
    """The same of a wrapper that looks at the gradient: whether NaN stops a clock.

    Each clock is asked once, at the first step that moves it; `asked` grows.
    """
    ticked = _ticked(state, following) - asked
    asked |= ticked
    if not ticked:
        return ""
    grads = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), _fast(params))
    with jax.debug_nans(False):
        refused = update(grads, state, params, grads)[1]
    return _NOT_FINITE if ticked - _ticked(state, refused) else ""


_ONE_BATCH = (
    "[jprune] something inside `optax.MultiSteps` ranks by `grad=`. `MultiSteps` hands "
    "that on as it came, the gradient of the last micro-batch, not the mean that the "
    "step is made of. Hand the inner `updates` on as `grad=`: docs/chain.md, Gradient "
    "accumulation, has the five lines."
)


def _reads_one_batch(update: Callable[..., Any], state: PyTree, params: Params) -> bool:
    """Whether what ranks by `grad=` has it through `MultiSteps`."""

    def accumulates(x: Any) -> bool:
        return isinstance(x, optax.MultiStepsState)

    def ranks(x: Any) -> bool:
        return isinstance(x, PruneGraduallyState | PruneByWeightHistoryState)

    inside = [x for x in jax.tree.leaves(state, is_leaf=accumulates) if accumulates(x)]
    if not any(map(ranks, jax.tree.leaves(inside, is_leaf=ranks))):
        return False
    zero = jax.tree.map(jnp.zeros_like, _fast(params))
    # Unjitted: the call of a jitted function takes also what it does not use.
    step = jax.make_jaxpr(lambda g: update.__wrapped__(zero, state, params, g))(zero)
    used = {id(x) for equation in step.jaxpr.eqns for x in equation.invars}
    return any(id(x) in used for x in step.jaxpr.invars)


def _clocks(state: PyTree) -> list[int]:
    """The step counts of all that removes at a step of its own.

    What holds a mask at every step, `keep_masked` and `drop_and_grow`, has none.
    """
    found = []
    for x in jax.tree.leaves(state, is_leaf=_is_projection):
        if _is_projection(x) and not isinstance(x, KeepMaskedState | DropAndGrowState):
            holder = x.penalty if isinstance(x, IssrState) else x
            found.append(getattr(holder, "count", None))
    return [int(clock) for clock in found if clock is not None]


def _ticked(before: PyTree, after: PyTree) -> set[int]:
    """Which clocks a step has moved."""
    pairs = zip(_clocks(before), _clocks(after), strict=True)
    return {i for i, (a, b) in enumerate(pairs) if a != b}


def _climbs(
    update: Callable[..., Any], state: PyTree, params: Params, grads: PyTree
) -> bool:
    """Whether turning the gradient round moves some leaf's update against it.

    What does not depend on the gradient's sign (decay, removal) cancels. A projection
    alone hands the gradient on as it is and has no direction.
    """
    turned = jax.tree.map(jnp.negative, grads)
    there = update(grads, state, params, grads)[0]
    back = update(turned, state, params, turned)[0]
    both = jax.tree.map(lambda a, b: (a - b) / 2, there, back)
    pairs = zip(jax.tree.leaves(_fast(both)), jax.tree.leaves(grads), strict=True)
    return any(_uphill(np.asarray(d, float), np.asarray(g, float)) for d, g in pairs)


def _uphill(moved: np.ndarray, grad: np.ndarray) -> bool:
    """Whether a leaf follows its gradient, but is not it, or its mean over k steps."""
    if (moved * grad).sum() <= 0:
        return False
    shares = moved[moved != 0] / grad[moved != 0]
    k = np.round(1 / shares.mean())
    return not (1 <= k <= _MEAN_OF and np.allclose(shares * k, 1, rtol=0.05))


def _is_projection(x: Any) -> bool:
    return hasattr(x, "probe")


def _probed(state: PyTree) -> tuple[PyTree, list[PyTree | None]]:
    enforced: list[PyTree | None] = []

    def one(x: Any) -> Any:
        if not _is_projection(x):
            return x
        probe, mask = x.probe()
        enforced.append(mask)
        return probe

    return jax.tree.map(one, state, is_leaf=_is_projection), enforced


def _noise(key: jax.Array, params: Params) -> PyTree:
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, max(len(leaves), 1))
    drawn = [
        jax.random.normal(k, jnp.shape(p), jnp.result_type(p))
        if jnp.issubdtype(jnp.result_type(p), jnp.inexact)
        else jnp.zeros_like(p)
        for k, p in zip(keys, leaves, strict=False)
    ]
    return jax.tree.unflatten(treedef, drawn)


def _missed(enforced: list[PyTree], params: Params) -> list[str]:
    """One line for each leaf with a removed weight that is not zero."""
    lines = []
    leaves = dict(keyed_leaves(params))
    for mask in enforced:
        for path, keep in keyed_leaves(mask):
            left = np.asarray(jnp.where(keep, 0, leaves[path]))
            if np.any(left != 0):
                name = keys_text(path)
                example = left[left != 0].flat[0]
                count = np.count_nonzero(left)
                lines.append(f"{name}: {count} not zero, e.g. {example:.3g}")
    return lines


def _removed(state: PyTree) -> int:
    """The most that one projection without a stored mask says it removed."""
    states = jax.tree.leaves(state, is_leaf=_is_projection)
    return max((int(x.removed) for x in states if hasattr(x, "removed")), default=0)


def _missing(
    removed: int, start: Params, now: Params, masks: list[PyTree]
) -> list[str]:
    """A line where there are fewer new zeros than a projection says it made.

    At least one of them must be a weight that every stored mask keeps: what the others
    remove shows nothing about a projection that stores none.
    """
    before = dict(keyed_leaves(start))
    stored = [dict(keyed_leaves(mask)) for mask in masks]
    zeros = unexplained = 0
    for path, p in keyed_leaves(now):
        new = (before[path] != 0) & (p == 0)
        zeros += int(jnp.sum(new))
        for mask in stored:
            new &= mask.get(path, True)
        unexplained += int(jnp.sum(new))
    if unexplained and zeros >= removed:
        return []
    return [
        f"`prune_once` or its like removed {removed} weights: {zeros} became 0, "
        f"{unexplained} of them kept by every stored mask"
    ]
