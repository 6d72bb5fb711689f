"""What every transformation is built with: its type, its guards, small decisions."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from jprune._errors import (
    PREFIX,
    listing,
    no_params,
    require_static,
    short,
    type_error,
    value_error,
)
from jprune._groups import Group, chosen
from jprune._tree import keyed_leaves, keys_text
from jprune._typing import Params, PyTree, Scores
from jprune.masks._count import is_traced
from jprune.masks._scope import resolve_scope
from jprune.selection._count_true import counts_true
from jprune.selection._pack import gathered


def transformation(
    init: Callable[..., Any],
    update: Callable[..., Any],
    name: str | None = None,
    *,
    wrapper: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The pair as a `GradientTransformationExtraArgs`, with what every method needs.

    The first state owns its buffers, so that it may be donated. A tree without leaves,
    as `optax.masked` and `optax.partition` hand over, passes.

    Args:
      init: `params -> state`.
      update: `(updates, state, params) -> (updates, state)`.
      name: of the transformation, if it needs the parameters.
      wrapper: whether `update` also takes extra arguments, and trees without leaves.

    Returns:
      The transformation.
    """

    def begin(params: Params) -> PyTree:
        params = _arrays(params)
        return own_buffers(init(params), params)

    def follow(
        updates: PyTree, state: PyTree, params: Params = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        if name is not None and params is None:
            raise no_params(name)
        if not wrapper:
            if name is not None and not jax.tree.leaves(params):
                return updates, state
            extra = {}
        updates, params = _arrays(updates), _arrays(params)
        try:
            return update(updates, state, params, **extra)
        except Exception as error:
            _require_own(state, params, begin, error)
            raise

    # The type checker cannot see that a state class of ours is a state: this is the one
    # place that says so.
    return optax.GradientTransformationExtraArgs(begin, follow)


def _arrays(tree: PyTree) -> PyTree:
    """The arrays of a tree, as `eqx.filter(tree, eqx.is_array)`, those of NumPy JAX's.

    A function or a text of an Equinox module has neither an update nor a mask. Float64
    of NumPy is float32 here, unless x64 is on.
    """

    def leaf(x: Any) -> Any:
        if isinstance(x, np.ndarray | np.generic):
            return jnp.asarray(x)
        return x if isinstance(x, ArrayLike) or hasattr(x, "dtype") else None

    known = all(isinstance(x, jax.Array) for x in jax.tree.leaves(tree))
    return tree if known else jax.tree.map(leaf, tree)


def _require_own(
    state: PyTree, params: Params, init: Callable[..., Any], cause: Exception
) -> None:
    """Raises if a state of other parameters is why an update failed."""
    if params is None:
        return
    try:
        made = jax.eval_shape(init, params)
    except Exception as error:  # an `init` that reads values says nothing here
        if PREFIX in str(error):  # but ours says what does not fit, such as a mask
            raise error from cause
        return
    given, own = (
        {keys_text(path): np.shape(x) for path, x in keyed_leaves(tree)}
        for tree in (state, made)
    )
    differ = sorted(name for name, _ in given.items() ^ own.items())
    if differ:
        raise value_error(
            "`state` belongs to other parameters than `params`: make it by "
            "`tx.init(params)`, that of a compact model of the dense one's by "
            f"`plan.pack_state`. These differ:{listing(list(dict.fromkeys(differ)))}"
        ) from cause


def own_buffers(state: PyTree, params: Params) -> PyTree:
    """`state` with every array in a buffer of its own.

    Masks and counters are copied: they may be the caller's, or one array in two places.
    A floating array of some size was made by `init`; it is copied if it comes twice, or
    is a parameter (an inner optimizer such as Prodigy keeps where it started).
    """
    seen = {id(x) for x in jax.tree.leaves(params)}

    def own(x: Any) -> Any:
        moment = jnp.issubdtype(jnp.result_type(x), jnp.floating) and jnp.ndim(x)
        fresh = bool(moment) and id(x) not in seen
        seen.add(id(x))
        return x if fresh else jnp.copy(x)

    return jax.tree.map(own, state)


def value_at(given: Any, count: jax.Array) -> Any:
    """A number as it is, a schedule at this step."""
    return given(count) if callable(given) else given


def require_strengths(**given: Any) -> None:
    """A penalty pulls toward zero: its rates are finite and not negative.

    Args:
      **given: the values, by the names of the arguments. Schedules, trees and traced
        values pass: they are not known here.

    Raises:
      TypeError: a text.
      ValueError: a number that is negative, infinite or NaN.
    """
    for name, x in given.items():
        if isinstance(x, str | bytes):
            raise type_error(f"`{name}` must be a number or a schedule, got {x!r}.")
        known = isinstance(x, int | float | np.number | np.ndarray | jax.Array)
        if known and not is_traced(x) and not np.all((0 <= x) & np.isfinite(x)):
            raise value_error(f"`{name}` must be finite and >= 0, got {x}.")


def require_rate(learning_rate: Any, recipe: str, how: str) -> None:
    """A recipe is a whole optimizer; another one does not go where its rate goes.

    Args:
      learning_rate: the recipe's argument.
      recipe: its name.
      how: what to do with another optimizer.

    Raises:
      TypeError: an optimizer, where a number or a schedule is expected.
    """
    if isinstance(learning_rate, optax.GradientTransformation):
        raise type_error(
            "`learning_rate` must be a number or a schedule, got an optimizer. "
            f"`{recipe}` is a whole optimizer; for another one {how}."
        )


def around(inner: Any, name: str = "inner") -> optax.GradientTransformationExtraArgs:
    """The optimizer that a wrapper stands around, taking extra arguments.

    Args:
      inner: the caller's argument; a chain, a recipe or `optax.MultiSteps` as well.
      name: of it.

    Raises:
      TypeError: it has no `init` and `update`.
    """
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        raise type_error(
            f"`{name}` must be an Optax transformation such as `optax.adam(1e-3)`, got "
            f"{short(inner)}."
        )
    if isinstance(inner, optax.MultiSteps):  # takes them, but is no transformation
        update: Any = inner.update
        return optax.GradientTransformationExtraArgs(inner.init, update)
    return optax.with_extra_args_support(inner)


def seeded(key: Any) -> jax.Array:
    """A PRNG key from a seed, a key, or the words of a raw key.

    Raises:
      TypeError: none of these.
    """
    if key is not None and not isinstance(key, str):
        kind = jnp.result_type(key)
        if jnp.issubdtype(kind, jax.dtypes.prng_key):
            return key
        if jnp.issubdtype(kind, jnp.integer):
            one = jnp.ndim(key) == 0
            return jax.random.key(key) if one else jax.random.wrap_key_data(key)
    raise type_error(
        f"`key` must be a seed, an integer, or a key of `jax.random`, got {short(key)}."
    )


def exactly_one(**given: Any) -> None:
    """Raises unless one of these arguments is given."""
    if sum(x is not None for x in given.values()) != 1:
        *names, last = (f"`{name}`" for name in given)
        came = ", ".join(f"{name}={x}" for name, x in given.items())
        which = f"{', '.join(names)} and {last}"
        raise value_error(f"Give exactly one of {which}; got {came}.")


def renewed(due: jax.Array, new: Callable[[Any], Any], old: Any) -> Any:
    """`new(old)` if it is due, else `old` as it is.

    A loop of one round or none. A `lax.cond` would copy `old` at every step, and all
    parameters that it reads where they are donated; what goes through a loop stays
    where it is, if `new` reads it from its argument. Outside `jit` it is known what is
    due, and the loop would be compiled again at every step.
    """
    if not is_traced(due):
        return new(old) if due else old

    def once(carry: Any) -> Any:
        return jnp.array(False), new(carry[1])

    return jax.lax.while_loop(lambda carry: carry[0], once, (due, old))[1]


def added(update: jax.Array, force: jax.Array) -> jax.Array:
    """An update and the force of a penalty, in the dtype of the update."""
    return update + force.astype(update.dtype)


def decay(weight_decay: Any, scope: Any) -> optax.GradientTransformation:
    """Coupled weight decay of the leaves of a scope; None for `masks.prunable`."""
    require_strengths(weight_decay=weight_decay)
    return decayed(weight_decay, lambda params: resolve_scope(scope, params))


def decay_all(weight_decay: Any, scope: Any) -> optax.GradientTransformation:
    """Coupled weight decay of all leaves, or of those of a scope that is given."""
    require_strengths(weight_decay=weight_decay)
    if scope is not None:
        return decay(weight_decay, scope)
    return decayed(weight_decay)


def decayed(weight_decay: Any, mask: Any = None) -> optax.GradientTransformation:
    """`optax.add_decayed_weights`, which keeps the dtype of the updates.

    A schedule of Optax gives float32, and the momentum behind it would change its dtype
    at the first step of bfloat16 parameters.
    """
    inner = optax.add_decayed_weights(weight_decay, mask)

    def update(
        updates: PyTree, state: Any, params: Params = None
    ) -> tuple[PyTree, Any]:
        moved, following = inner.update(updates, state, params)
        cast = jax.tree.map(lambda m, u: m.astype(jnp.result_type(u)), moved, updates)
        return cast, following

    return optax.GradientTransformation(inner.init, update)


def finite(scores: Scores) -> Scores:
    """Scores in which what is not finite counts as 0: it must not rank."""
    return jax.tree.map(lambda s: jnp.where(jnp.isfinite(s), s, 0), scores)


def is_finite(tree: PyTree) -> jax.Array:
    """Whether every number of a tree is finite, 0-d."""
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return jnp.array(True)
    leaves = gathered(leaves)
    sizes = np.array([x.size for x in leaves], np.int32)
    return jnp.all(counts_true([jnp.isfinite(x) for x in leaves]) == sizes)


def total(counts: Sequence[jax.Array] | jax.Array) -> jax.Array:
    """The sum of non-negative int32 counts, 0-d, stopping at the largest int32."""
    if not len(counts):
        return jnp.int32(0)
    # Behind a barrier, or the sums become chains over all counts. By halves of a
    # count, which do not overflow.
    every = jax.lax.optimization_barrier(jnp.stack(counts))
    low = jnp.sum(every & 0xFFFF, dtype=jnp.int32)
    high = jnp.sum(every >> 16, dtype=jnp.int32) + (low >> 16)
    most = jnp.iinfo(jnp.int32).max
    return jnp.where(high > most >> 16, most, high << 16 | (low & 0xFFFF))


def next_step(count: jax.Array) -> jax.Array:
    """`count + 1`, stopping at the largest int32."""
    return jnp.asarray(optax.safe_increment(count))


def end_within(
    total_steps: int | None,
    end: int | None,
    share: Fraction,
    least: int = 1,
    *,
    removes: bool = False,
) -> int:
    """`end`, or the paper's share of `total_steps`.

    Args:
      total_steps: length of the run.
      end: what the user gave.
      share: of the run.
      least: the lowest `end`.
      removes: whether the step `end`, counted from 0, itself removes: it must come
        within the run then.

    Raises:
      ValueError: neither is given, or an `end` outside of the run.
    """
    require_static(total_steps=total_steps, end=end)
    if end is None:
        if total_steps is None:
            raise value_error(
                "Give `total_steps`, the length of the run, or `end`, the step at "
                "which the method stops moving; got neither."
            )
        end = max(round(share * total_steps), least)
    most = end if total_steps is None else total_steps - removes
    if not least <= end <= most:
        bound = " and below" if removes else " and at most"
        within = "" if total_steps is None else f"{bound} `total_steps`, {total_steps}"
        what = ": the step that removes would come after the run" if end > most else ""
        raise value_error(
            f"`end` must be at least {least}{within}, got {end}"
            f"{what if removes else ''}."
        )
    return end


def by_group(
    name: str, given: Mapping[str, Any], groups: Sequence[Group]
) -> dict[str, Any]:
    """A mapping by group id from one by ids or paths.

    A path is that of a leaf that makes the coordinates, such as `params/Conv_0/kernel`.

    Args:
      name: of the argument.
      given: what was given for it.
      groups: the groups.

    Returns:
      The same values by group id.

    Raises:
      ValueError: no mapping, a name that is no group, two for one group, or a path that
        belongs to several groups.
    """
    if not isinstance(given, Mapping):
        raise value_error(
            f"`{name}` must be a mapping from group ids, got {type(given).__name__}: "
            "write `{group.id: value}`."
        )
    ids = {group.id for group in groups}
    makers: dict[str, list[str]] = {}
    for group in groups:
        for ref in group.members if group.kind != "depth" else ():
            if ref.role not in ("in", "stat"):
                makers.setdefault(keys_text(ref.path), []).append(group.id)
    found: dict[str, Any] = {}
    for key, value in given.items():
        at = [key] if key in ids else makers.get(key, [])
        if len(at) != 1:
            why = f"belongs to {at}" if at else "is no group and no leaf that makes one"
            raise value_error(
                f"`{name}` names {key!r}, which {why}. The ids:" + listing(sorted(ids))
            )
        if at[0] in found:
            raise value_error(f"`{name}` names group {at[0]!r} twice.")
        found[at[0]] = value
    return found


def keeps_of(keeps: Mapping[str, Any], groups: Sequence[Group]) -> dict[str, Any]:
    """What stays of each group named, by id.

    Raises:
      ValueError: as `by_group`; an entry that is no bool vector of the group's size.
    """
    named = by_group("keeps", keeps, groups)
    return {group.id: keep for group, keep in chosen(groups, named)}
