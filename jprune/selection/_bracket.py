r"""The bracket search: where a non-increasing count of integers falls to `k`.

Let $C(t) = \#\{i : b_i \ge t\}$ for integers $b_i$. The search keeps a bracket

$$ C(lo) \ge k > C(hi), \qquad lo < hi, $$

and each pass counts at a few pivots strictly inside it at once. It ends when $C(lo) =
k$ (then $\{b \ge lo\}$ is exactly the top-k set) or when $hi = lo + 1$ (then $lo$ is
the k-th largest integer, with ties). Counts are integers and pivots only decide *where*
to look, so the result is exact whatever the guesses and however the pivots are rounded.
Pivots are,

1. on the first pass, the guess and points around it;
2. while one end has not moved, steps from the other end that grow by 8;
3. else around the linear interpolation of the counts, at a distance of 1.5 standard
   deviations of a binomial count, or, in a wide bracket, of the error that the
   curvature of a smooth distribution makes (it is proportional to the width in
   octaves);
4. equally spaced after an interpolation that did not pay, in a bracket of few integers,
   and always from pass 12 on. Hence at most 12 + log(width) / log(pivots + 1) passes.

With `snap` a pass also finds the smallest integer that is at least lo and the largest
below hi, and the ends move there. One integer left in the bracket, however often it
occurs, then ends the search.

Among pivots that count exactly k the one nearest the guess is taken, so a threshold
that lies in an empty gap stays where it is from one step to the next.

Everything is element-wise over a batch of independent searches (one for each leaf, or a
single 0-d one); a finished search waits, unchanged, for the others.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

GUARD = 12
"""The pass from which every pass only bisects."""

_OVERSHOOTS = 8
_GROWTH = 8.0
_DEVIATIONS = 1.5
_CURVATURE = 0.2


Pivots = list[jax.Array]
"""Ascending integers, each with the shape of the batch."""


class Counts(NamedTuple):
    """What one sweep over the data returns for ascending pivots.

    Attributes:
      at: how many integers are at least each pivot; one int32 array [*batch] a pivot.
      least: with `snap`, the smallest integer that is at least `lo`. [*batch]
      greatest: with `snap`, the largest integer below `hi`. [*batch]
    """

    at: list[jax.Array]
    least: jax.Array | None = None
    greatest: jax.Array | None = None


class Bracket(NamedTuple):
    """The state of a search; every field has the batch's shape.

    Attributes:
      lo: lower end, inclusive. int32 or int64
      hi: upper end, exclusive. int32 or int64
      at_lo: how many integers are at least `lo`. int32
      at_hi: how many integers are at least `hi`; a lower bound until `hi` moves. int32
      step: length of the next overshooting step; 0 never overshoots. float
      lo_moved: whether `lo` is a pivot.
      hi_moved: whether `hi` is a pivot.
      bisect: whether the next pass must split evenly.
      passes: sweeps made. int32
    """

    lo: jax.Array
    hi: jax.Array
    at_lo: jax.Array
    at_hi: jax.Array
    step: jax.Array
    lo_moved: jax.Array
    hi_moved: jax.Array
    bisect: jax.Array
    passes: jax.Array


def start(lo: jax.Array, hi: jax.Array, at_lo: jax.Array, step: jax.Array) -> Bracket:
    """A bracket before its first pass: `at_lo = C(lo)`, and nothing known at `hi`."""
    no = jnp.zeros(lo.shape, bool)
    zero = jnp.zeros(lo.shape, jnp.int32)
    real = jnp.float64 if lo.dtype == jnp.int64 else jnp.float32
    return Bracket(lo, hi, at_lo, zero, step.astype(real), no, no, no, zero)


def search(
    count: Callable[..., Counts],
    k: jax.Array,
    bracket: Bracket,
    first: Pivots,
    guess: jax.Array,
    octave: float,
    snap: bool = False,
) -> Bracket:
    """Narrows a bracket until it decides the k largest integers.

    Args:
      count: one sweep over the data at ascending pivots; with `snap` it is also given
        the bracket.
      k: wanted count, with C(lo) >= k > C(hi) unless C(lo) = k already. [*batch] int32
      bracket: from `start`.
      first: pivots of the first pass, ascending.
      guess: the integer to stay near when several pivots decide. [*batch]
      octave: the width over which the density of the integers may change by a factor of
        about two; infinity where they are evenly spread.
      snap: move the ends onto the integers nearest inside the bracket at each pass.

    Returns:
      The final bracket: `lo` is the answer, `at_lo` its count.
    """

    def body(b: Bracket) -> Bracket:
        pivots = ask(b, k, first, octave)
        seen = count(pivots, b) if snap else count(pivots)
        return learn(b, k, pivots, seen, guess)

    return lax.while_loop(lambda b: jnp.any(undecided(b, k)), body, bracket)


def undecided(b: Bracket, k: jax.Array) -> jax.Array:
    """Whether a search must go on. [*batch] bool"""
    return (_width(b) > 1) & (b.at_lo != k)


def ask(b: Bracket, k: jax.Array, first: Pivots, octave: float) -> Pivots:
    """The pivots of the next pass, strictly inside the bracket."""
    later = _pivots(b, k, len(first), octave)
    return [
        _inside(b, jnp.where(b.passes == 0, p, q))
        for p, q in zip(first, later, strict=True)
    ]


def learn(
    b: Bracket, k: jax.Array, pivots: Pivots, seen: Counts, guess: jax.Array
) -> Bracket:
    """The bracket after a pass; a search that is decided stays as it was."""
    new = _narrow(b, k, pivots, seen, guess)
    if not k.ndim:
        return new
    live = undecided(b, k)
    return jax.tree.map(lambda x, y: jnp.where(live, x, y), new, b)


def around(guess: jax.Array, spread: jax.Array, b: Bracket, pivots: int) -> Pivots:
    """`pivots` integers evenly over guess -+ spread, cut to the bracket."""
    guess = _inside(b, guess)
    # The distance to an end may exceed the signed range; as unsigned it never does.
    below, above = _unsigned(guess - b.lo), _unsigned(b.hi - guess)
    rows = []
    for t in np.linspace(-1.0, 1.0, pivots):
        move = _whole(spread.astype(b.step.dtype) * abs(t), above if t > 0 else below)
        move = move.astype(guess.dtype)
        rows.append(guess + move if t > 0 else guess - move)
    return rows


def _pivots(b: Bracket, k: jax.Array, pivots: int, octave: float) -> Pivots:
    """Pivots of a pass after the first."""
    width = _width(b)
    w = width.astype(b.step.dtype)
    c = jnp.maximum(b.at_lo - b.at_hi, 1).astype(w.dtype)
    f = ((b.at_lo - k).astype(w.dtype) + 0.5) / c
    chance = jnp.maximum(_DEVIATIONS * jnp.sqrt(c * f * jnp.maximum(1 - f, 0)), 0.5) / c
    curved = jnp.minimum(_CURVATURE / octave * w, 0.25)
    margin = jnp.maximum(chance, curved)

    leap = (b.step > 0) & (b.passes < _OVERSHOOTS)
    up, down = leap & ~b.hi_moved, leap & ~b.lo_moved
    even = b.bisect | (width <= pivots + 1) | (b.passes >= GUARD)
    rows = []
    for j, side in enumerate(np.linspace(-1.0, 1.0, pivots), start=1):
        offset = w * (f + side * margin)
        offset = jnp.where(down, w - b.step * _GROWTH ** (pivots + 1 - j), offset)
        offset = jnp.where(up, b.step * _GROWTH**j, offset)
        offset = jnp.where(even, w * (j / (pivots + 1)), offset)
        rows.append(b.lo + _whole(offset, width).astype(b.lo.dtype))
    return rows


def _narrow(
    b: Bracket, k: jax.Array, pivots: Pivots, seen: Counts, guess: jax.Array
) -> Bracket:
    """The bracket after one sweep."""
    lo, hi, at_lo, at_hi = b.lo, b.hi, b.at_lo, b.at_hi
    for p, c in zip(pivots, seen.at, strict=True):
        enough = c >= k
        lo, at_lo = jnp.where(enough, p, lo), jnp.where(enough, c, at_lo)
    for p, c in zip(reversed(pivots), reversed(seen.at), strict=True):
        enough = c >= k
        hi, at_hi = jnp.where(enough, hi, p), jnp.where(enough, at_hi, c)
    if seen.least is not None and seen.greatest is not None:
        # No integer lies between the old end and this one, so the counts stay. (Some
        # may lie at an end that no pass has counted at.)
        lo = jnp.maximum(lo, seen.least)
        hi = jnp.where(b.hi_moved, jnp.minimum(hi, seen.greatest + 1), hi)

    nearest = ~jnp.zeros_like(_unsigned(guess))
    for p, c in zip(pivots, seen.at, strict=True):
        away = _unsigned(jnp.where(p > guess, p - guess, guess - p))
        better = (c == k) & (away <= nearest)
        lo, nearest = jnp.where(better, p, lo), jnp.where(better, away, nearest)

    # The pivots of the pass were interpolated, if they neither leapt nor split evenly.
    both = (b.step == 0) | (b.lo_moved & b.hi_moved) | (b.passes >= _OVERSHOOTS)
    drew = both & (b.passes > 0) & ~b.bisect
    wide = _unsigned(hi - lo) > _width(b) // 4
    many = at_lo - at_hi > (b.at_lo - b.at_hi) // 2
    growth = jnp.where(b.passes == 0, 1.0, _GROWTH ** len(pivots))
    return Bracket(
        lo=lo,
        hi=hi,
        at_lo=at_lo,
        at_hi=at_hi,
        step=b.step * growth,
        lo_moved=b.lo_moved | (seen.at[0] >= k),
        hi_moved=b.hi_moved | (seen.at[-1] < k),
        bisect=drew & wide & many,
        passes=b.passes + 1,
    )


def _inside(b: Bracket, pivot: jax.Array) -> jax.Array:
    """A pivot clipped strictly into the bracket: this alone makes the search end."""
    return jnp.clip(pivot, b.lo + 1, b.hi - 1)


def _width(b: Bracket) -> jax.Array:
    return _unsigned(b.hi - b.lo)


def _unsigned(x: jax.Array) -> jax.Array:
    """A difference that wrapped around in the signed type, read as unsigned."""
    return x.astype(jnp.uint64 if x.dtype == jnp.int64 else jnp.uint32)


def _whole(offset: jax.Array, limit: jax.Array) -> jax.Array:
    """Floats cut into [0, limit] and made unsigned; no conversion out of range."""
    zero = np.array(0, offset.dtype)
    beyond = np.array(2.0 ** (8 * limit.dtype.itemsize), offset.dtype)
    largest = np.nextafter(beyond, zero)
    return jnp.minimum(jnp.clip(offset, 0, largest).astype(limit.dtype), limit)
