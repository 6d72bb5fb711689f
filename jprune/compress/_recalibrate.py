"""Batch statistics measured again after the weights have changed.

Batch norm in eval mode divides by statistics that were averaged while the *old* weights
ran. After pruning, merging or any other change of values they are stale, and much of
the accuracy that seems lost is lost to them alone. Measuring them again takes a few
forward passes in train mode, no gradient and no labels.

The layers keep an exponential average `s <- m s + (1 - m) b` of the batch values `b`.
Started from zero, one pass gives `(1 - m) b`, so with `m` known every batch value is
recovered and the plain mean over the batches is taken, with no trace of the old
statistics: this is what the average tends to when training goes on with the weights
held still.

References:
  Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization,
  UAI 2018, section 3.2 (statistics recomputed for averaged weights).
"""

import importlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._dtypes import owned
from jprune._errors import listing, noting, short, type_error, value_error
from jprune._tree import (
    KeyTuple,
    keyed_leaves,
    named_leaves,
    require_same_structure,
)
from jprune._typing import PyTree
from jprune.masks._count import is_traced
from jprune.surgery._callable import model_kind, require_list


def recalibrate(
    update: Any,
    stats: Any,
    batches: Iterable[Any] | None = None,
    *,
    momentum: float | None = None,
    **kwargs: Any,
) -> Any:
    """Statistics of the batches, in place of stale ones.

    Args:
      update: `update(stats, batch)` runs the model in train mode on a batch and returns
        the updated statistics. In Flax Linen, with `params` and `model` at hand:
        `lambda s, x: model.apply({"params": params, "batch_stats": s}, x, train=True,
        mutable=["batch_stats"])[1]["batch_stats"]`. It is jitted here. Or a model
        object, dense or compact, which is called in training mode: see the examples.
      stats: the present statistics. Their values matter only without `momentum`;
        integer leaves (counters) are always kept. With a model object, what holds
        them: the variables (Linen), `(params, state)` (Haiku), the state (Equinox); no
        such argument where the model does (NNX, Keras).
      batches: the data, all batches of one shape if it is to compile once. With a
        model object a batch is the input of a call, or a tuple of its arguments, the
        state of Equinox aside; labels do not belong to it.
      momentum: the `m` of every running average in the model, in [0, 1). The result is
        then the exact mean over the batches, of debiased averages (Haiku's, with their
        counters) as well. None: `update` is applied once per batch,
        starting from `stats`, whatever the layers do with it; of the old values a share
        `m ** number of batches` stays. Of a model object of NNX, Equinox or Keras it is
        read from the norm layers; with the others it must be given.
      **kwargs: with a model object, keyword arguments of its call: `train=True`,
        `rngs=`, for Haiku `rng=`.

    Returns:
      The new statistics, with the structure, shapes and dtypes of `stats`. With a model
      object what holds them: of Linen, Haiku and Equinox as `stats` was given, of NNX
      and Keras the model, changed in place.

    Raises:
      TypeError: no batches, one array in place of a list of them, or keyword arguments
        of a call without a model object.
      ValueError: if `batches` is empty, `momentum` is out of range, not known or not
        that of the layers, a statistic is no such average (a maximum, a variance about
        the running mean), did not move (no training mode) or is not finite, or `update`
        returns another structure.

    Examples:
      >>> m = 0.9
      >>> update = lambda s, batch: {"mean": m * s["mean"] + (1 - m) * batch.mean()}
      >>> old = {"mean": jnp.float32(7.0)}
      >>> new = recalibrate(update, old, [jnp.ones(4), 3 * jnp.ones(4)], momentum=m)
      >>> round(float(new["mean"]), 5)
      2.0

      Model objects::

        recalibrate(small, batches)  # NNX, Keras: in place
        state = recalibrate(small, state, batches)  # Equinox
        packed = recalibrate(small, packed, batches, momentum=0.99, train=True)  # Linen
        params, state = recalibrate(
            small, (params, state), batches, momentum=0.9, is_training=True
        )  # Haiku
    """
    put: Callable[[Any], Any] = _same
    data: Any = batches
    if (name := model_kind(update)) is not None:
        held, data = (None, stats) if batches is None else (stats, batches)
        update, stats, put, momentum = _of_model(name, update, held, momentum, kwargs)
    elif batches is None or kwargs:
        raise type_error(
            "`recalibrate` takes `update`, `stats` and `batches`; keyword arguments of "
            f"a call go with a model object, got {sorted(kwargs)}."
        )
    if momentum is not None and not 0 <= momentum < 1:
        raise value_error(f"`momentum` must be in [0, 1) or None, got {momentum}.")
    require_list(data)
    if any(map(is_traced, jax.tree.leaves(stats))):
        raise type_error(
            "`recalibrate` runs outside of `jit`, got traced `stats`: it checks on the "
            "host what the averages are, and compiles its own step. Call it as it is."
        )
    step = jax.jit(update)
    if name is None:
        step = _noted(step)
    if momentum is None:
        return put(owned(_finite(_run(step, stats, data), stats)))
    blank = jax.tree.map(lambda s: jnp.zeros_like(s) if _floating(s) else s, stats)
    start = jax.tree.map(lambda s: jnp.zeros_like(s) if _counts(s) else s, blank)
    counted = any(map(_counts, jax.tree.leaves(stats)))
    ahead = jax.tree.map(lambda s: s + 1 if _counts(s) else s, blank)
    total, count, first = jax.tree.map(jnp.zeros_like, blank), 0, None
    for batch in data:
        found = _checked(step(start, batch), stats)
        if first is None:
            later = _checked(step(ahead, batch), stats) if counted else found
            first = _Averages.seen(found, later, momentum, counted)
            _require_change(step, start, found, batch)
            for old in (stats, _probe(stats, found, momentum)):
                first.require(step(old, batch), old, found)
        total = jax.tree.map(_added, total, found)
        count += 1
    _require_batches(count)
    assert first is not None
    return put(owned(_finite(first.means(total, stats, count), stats)))


def _finite(new: PyTree, old: PyTree) -> PyTree:
    """The new statistics; raises where a batch has made one NaN or infinite."""
    pairs = zip(named_leaves(new), jax.tree.leaves(old), strict=True)
    bad = [
        path
        for (path, x), s in pairs
        if _floating(x) and np.any(np.isnan(x) | (np.isinf(x) & np.isfinite(s)))
    ]
    if bad:
        raise value_error(
            "`batches` must give finite statistics, got NaN or infinities. Look for "
            f"them in the data and in the weights before:{listing(bad)}"
        )
    return new


def _same(x: Any) -> Any:
    return x


_HELD_BY = {
    "linen": "variables",
    "haiku": "(params, state)",
    "equinox": "state",
    "nnx": None,
    "keras": None,
}
"""What holds the statistics of a model, as its argument; None: the model does."""


def _of_model(
    name: str, model: Any, held: Any, momentum: float | None, kwargs: dict[str, Any]
) -> tuple[Any, Any, Any, float | None]:
    """A model object as `(update, stats, put, momentum)`; see `Recalibration`."""
    where = _HELD_BY[name]
    if (held is None) != (where is None):
        given = "" if where is None else f"{where}, "
        raise type_error(
            f"with the model object {type(model).__name__} write "
            f"`recalibrate(model, {given}batches)`."
            + (f" Without `{where}` it has no statistics to measure." * bool(where))
        )
    file: Any = importlib.import_module(f"jprune.frameworks.{name}")
    args = () if where is None else (held,)
    update, stats, put, momenta = file.recalibration(model, *args, **kwargs)
    known = {m for m in momenta if m == m}
    if len(known) > 1 or (momentum is not None and known - {momentum}):
        raise value_error(
            f"the norm layers have `momentum` {sorted(known)}, and one number must be "
            f"right for all; got {momentum}. Set it in the layers, or pass a function "
            "`update(stats, batch)` of your own without `momentum`."
        )
    if momentum is None:
        if known != set(momenta) or not known:
            raise value_error(
                "give `momentum=`, that of the norm layers (0.99 by default in Flax "
                "and Keras): it cannot be read from the model."
            )
        (momentum,) = known
    return update, stats, put, momentum


def _require_change(step: Callable, start: Any, found: Any, batch: Any) -> None:
    """Raises if a call leaves every statistic as it is, whatever it is."""
    values = [x for x in jax.tree.leaves(found) if _floating(x)]
    if not values or any(np.any(np.asarray(x)) for x in values):
        return
    ones = jax.tree.map(lambda x: jnp.ones_like(x) if _floating(x) else x, start)
    after = jax.tree.leaves(step(ones, batch))
    if all(np.all(np.asarray(x) == 1) for x in after if _floating(x)):
        raise value_error(
            "no statistic moved: the call is not in training mode. Pass what your "
            "model takes for it: `train=True`, `is_training=True`."
        )


def _probe(stats: PyTree, fresh: PyTree, momentum: float) -> PyTree:
    """Old statistics unlike any average, so that a maximum or minimum shows."""
    return jax.tree.map(
        lambda s, b: 2 * b / (1 - momentum) + 1 if _floating(s) else s, stats, fresh
    )


def _added(a: jax.Array, b: jax.Array) -> jax.Array:
    return a + b if _floating(a) else a


def _counts(leaf: Any) -> bool:
    """Whether a leaf is a counter of a debiased average: a signed whole number."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.signedinteger)


class _Averages(NamedTuple):
    """What kind of average each leaf is, seen on the first batch.

    A plain average started from 0 is (1 - m) b after one batch, whatever its counter
    says. A debiased one, a plain one over 1 - m^count, is b when the counter is 1.

    Attributes:
      momentum: m.
      plain: of each debiased leaf the plain one that it divides, by number of leaf.
      shares: of both, 1 - m^count at the present counter.
    """

    momentum: float
    plain: dict[int, int]
    shares: dict[int, float]

    @classmethod
    def seen(cls, fresh: PyTree, later: PyTree, m: float, counted: bool) -> "_Averages":
        """From one batch with counters at 0, and with counters one ahead."""
        paths = [path for path, _ in keyed_leaves(fresh)]
        a, b = ([np.asarray(x) for x in jax.tree.leaves(t)] for t in (fresh, later))
        floats = [i for i, x in enumerate(a) if _floating(x)]
        moved = [i for i in floats if counted and not _close(a[i], b[i])]
        plain: dict[int, int] = {}
        shares: dict[int, float] = {}
        for i in moved:
            near = [
                j
                for j in floats
                if j not in moved
                and a[j].shape == a[i].shape
                and _close(a[j] / (1 - m), a[i])
            ]
            if not near:
                raise value_error(
                    "`stats` has a leaf that depends on a counter and is no average "
                    "divided by 1 - momentum^count, as Haiku's are: its exact mean is "
                    "not known. Check `momentum`, or leave it out."
                )
            j = max(near, key=lambda j: _shared(paths[i], paths[j]))
            plain[i], shares[i] = j, _share(a[i], b[i], m)
            shares[j] = shares[i]
        return cls(m, plain, shares)

    def require(self, after: PyTree, stats: PyTree, fresh: PyTree) -> None:
        """Raises unless old statistics enter as momentum s and in no other way."""
        m, wrong = self.momentum, []
        x, s, b = (
            [np.asarray(leaf, np.float64) if _floating(leaf) else None for leaf in tree]
            for tree in map(jax.tree.leaves, (after, stats, fresh))
        )
        for i, ((path, leaf), at) in enumerate(
            zip(named_leaves(stats), x, strict=True)
        ):
            old, new = s[i], b[i]
            if at is None or old is None or new is None or not np.isfinite(old).all():
                continue
            if i in self.plain:  # its old value is not read
                m_old, part = 0.0, x[self.plain[i]]
                assert part is not None
                new = part / (1 - m * (1 - self.shares[i]))
            else:
                m_old = m
            size = np.max(np.abs(new) + (1 - m) * np.abs(old), initial=0.0)
            noise = np.max(np.abs(at) + np.abs(old) + np.abs(new), initial=0.0)
            slack = (
                0.01 * size + 8 * float(jnp.finfo(jnp.result_type(leaf)).eps) * noise
            )
            if np.any(np.abs(at - m_old * old - new) > slack):
                wrong.append(path)
        if wrong:
            raise value_error(
                f"one batch does not change these statistics s to {m} s + (1 - {m}) b: "
                "`momentum` is not that of the layers, they are no averages (maxima, a "
                "variance about the running mean), or divide by running values in "
                'training (Equinox\'s `mode="ema"`: pass the model object).'
                f"{listing(wrong)}"
            )

    def means(self, total: PyTree, stats: PyTree, count: int) -> PyTree:
        """The statistics, from the sums over the batches."""
        sums, tree = jax.tree.flatten(total)
        found = []
        for i, (x, old) in enumerate(zip(sums, jax.tree.leaves(stats), strict=True)):
            if not _floating(old):
                found.append(old)
                continue
            mean = x / count
            if i not in self.plain:
                mean = mean / (1 - self.momentum) * self.shares.get(i, 1.0)
            found.append(mean.astype(x.dtype))
        return jax.tree.unflatten(tree, found)


def _shared(one: KeyTuple, other: KeyTuple) -> int:
    """How many keys two paths begin with together."""
    same = [a == b for a, b in zip(one, other, strict=False)]
    return same.index(False) if False in same else len(same)


def _share(fresh: np.ndarray, later: np.ndarray, m: float) -> float:
    """1 - m^count: later / fresh is (1 - m) / (1 - m^(count + 2))."""
    ratios = later[fresh != 0] / fresh[fresh != 0]
    if not ratios.size or not m:
        return 1.0
    power = (1 - (1 - m) / float(np.median(ratios))) / m**2
    return 1 - min(max(power, 0.0), 1.0)


def _close(a: Any, b: Any) -> bool:
    return bool(np.allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-7))


def _noted(step: Callable) -> Callable:
    """The step, whose errors say which batch it was called on."""

    def call(stats: PyTree, batch: Any) -> Any:
        with noting(lambda: f"the call was on the batch {_shown(batch)}."):
            return step(stats, batch)

    return call


def _shown(batch: Any) -> str:
    tuples = isinstance(batch, tuple)
    return f"({', '.join(map(short, batch))})" if tuples else short(batch)


def _run(step: Callable, stats: PyTree, batches: Iterable[Any]) -> PyTree:
    count = 0
    for batch in batches:
        stats = _checked(step(stats, batch), stats)
        count += 1
    _require_batches(count)
    return stats


def _floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _checked(new: PyTree, stats: PyTree) -> PyTree:
    require_same_structure(
        "update(stats, batch)",
        new,
        stats,
        "`stats` (give back the new statistics only)",
    )
    return new


def _require_batches(count: int) -> None:
    if count == 0:
        raise value_error("`batches` is empty: there is nothing to measure.")
