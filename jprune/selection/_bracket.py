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


class Counts(NamedTuple):
    """What one sweep over the data returns for ascending pivots.

    Attributes:
      at: how many integers are at least each pivot. [pivots, *batch] int32
      least: the smallest integer that is at least the first pivot, or None. [*batch]
      greatest: the largest integer below the last pivot, or None. [*batch]
    """

    at: jax.Array
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
    count: Callable[[jax.Array], Counts],
    k: jax.Array,
    bracket: Bracket,
    first: jax.Array,
    guess: jax.Array,
    octave: float,
) -> Bracket:
    """Narrows a bracket until it decides the k largest integers.

    Args:
      count: one sweep over the data at ascending pivots [pivots, *batch].
      k: wanted count, with C(lo) >= k > C(hi) unless C(lo) = k already. [*batch] int32
      bracket: from `start`.
      first: pivots of the first pass, ascending. [pivots, *batch]
      guess: the integer to stay near when several pivots decide. [*batch]
      octave: the width over which the density of the integers may change by a factor of
        about two; infinity where they are evenly spread.

    Returns:
      The final bracket: `lo` is the answer, `at_lo` its count.
    """

    def undecided(b: Bracket) -> jax.Array:
        return (_width(b) > 1) & (b.at_lo != k)

    def body(b: Bracket) -> Bracket:
        inner = _pivots(b, k, len(first), octave)
        pivots = jnp.where((b.passes == 0)[None], _inside(b, first), inner)
        new = _narrow(b, k, pivots, count(pivots), guess)
        live = undecided(b)
        return jax.tree.map(lambda x, y: jnp.where(live, x, y), new, b)

    return lax.while_loop(lambda b: jnp.any(undecided(b)), body, bracket)


def around(guess: jax.Array, spread: jax.Array, b: Bracket, pivots: int) -> jax.Array:
    """`pivots` integers evenly over guess -+ spread, cut to the bracket."""
    guess = jnp.clip(guess, b.lo + 1, b.hi - 1)
    rows = []
    for t in np.linspace(-1.0, 1.0, pivots):
        # The distance to the end may exceed the signed range; as unsigned it never
        # does.
        room = _unsigned((b.hi - guess) if t > 0 else (guess - b.lo))
        move = _whole(spread.astype(b.step.dtype) * abs(t), room).astype(guess.dtype)
        rows.append(guess + move if t > 0 else guess - move)
    return _inside(b, jnp.stack(rows))


def _pivots(b: Bracket, k: jax.Array, pivots: int, octave: float) -> jax.Array:
    """Pivots of a pass after the first, as offsets from `lo`. [pivots, *batch]"""
    real = b.step.dtype
    rows = (pivots,) + (1,) * b.lo.ndim
    ramp = jnp.arange(1, pivots + 1, dtype=real).reshape(rows)
    width = _width(b)
    w = width.astype(real)
    even = w[None] * (ramp / (pivots + 1))

    far = b.step[None] * _GROWTH**ramp
    up, down = far, w[None] - far[::-1]
    leap = (b.step > 0) & (b.passes < _OVERSHOOTS)

    c = (b.at_lo - b.at_hi).astype(real)
    c = jnp.maximum(c, 1)
    f = (b.at_lo - k).astype(real) / c + 0.5 / c
    chance = jnp.maximum(_DEVIATIONS * jnp.sqrt(c * f * jnp.maximum(1 - f, 0)), 0.5) / c
    margin = jnp.clip(_CURVATURE * w / octave, chance, jnp.maximum(chance, 0.25))
    side = jnp.linspace(-1.0, 1.0, pivots, dtype=real).reshape(rows)
    line = w[None] * (f[None] + side * margin[None])

    offset = jnp.where((leap & ~b.lo_moved)[None], down, line)
    offset = jnp.where((leap & ~b.hi_moved)[None], up, offset)
    plain = b.bisect | (width <= pivots + 1) | (b.passes >= GUARD)
    offset = jnp.where(plain[None], even, offset)
    return _inside(b, b.lo[None] + _whole(offset, width[None]).astype(b.lo.dtype))


def _narrow(
    b: Bracket, k: jax.Array, pivots: jax.Array, seen: Counts, guess: jax.Array
) -> Bracket:
    """The bracket after one sweep."""
    enough = seen.at >= k[None]
    lo = jnp.max(jnp.where(enough, pivots, b.lo[None]), axis=0)
    hi = jnp.min(jnp.where(enough, b.hi[None], pivots), axis=0)
    at_lo = jnp.min(jnp.where(enough, seen.at, b.at_lo[None]), axis=0)
    at_hi = jnp.max(jnp.where(enough, b.at_hi[None], seen.at), axis=0)
    if seen.least is not None:
        lo = jnp.where(lo == pivots[0], seen.least, lo)
    if seen.greatest is not None:
        hi = jnp.where(hi == pivots[-1], seen.greatest + 1, hi)

    hit = seen.at == k[None]
    away = _unsigned(jnp.where(pivots > guess[None], pivots - guess, guess - pivots))
    nearest = jnp.min(jnp.where(hit, away, ~jnp.zeros_like(away)), axis=0)
    chosen = jnp.max(jnp.where(hit & (away == nearest[None]), pivots, b.lo), axis=0)
    lo = jnp.where(jnp.any(hit, axis=0), chosen, lo)

    lo_moved = b.lo_moved | jnp.any(enough, axis=0)
    hi_moved = b.hi_moved | ~jnp.all(enough, axis=0)
    real = b.step.dtype
    narrower = 4 * _unsigned(hi - lo).astype(real) <= _width(b).astype(real)
    fewer = 2 * (at_lo - at_hi).astype(real) <= (b.at_lo - b.at_hi).astype(real)
    both = (b.step == 0) | (b.lo_moved & b.hi_moved) | (b.passes >= _OVERSHOOTS)
    stalled = both & (b.passes > 0) & ~b.bisect & ~(narrower | fewer)
    step = b.step * jnp.where(b.passes == 0, 1.0, _GROWTH ** len(pivots))
    return Bracket(
        lo, hi, at_lo, at_hi, step, lo_moved, hi_moved, stalled, b.passes + 1
    )


def _inside(b: Bracket, pivots: jax.Array) -> jax.Array:
    """Pivots clipped strictly into the bracket: this alone makes the search end."""
    return jnp.clip(pivots, b.lo[None] + 1, b.hi[None] - 1)


def _width(b: Bracket) -> jax.Array:
    return _unsigned(b.hi - b.lo)


def _unsigned(x: jax.Array) -> jax.Array:
    """A difference that wrapped around in the signed type, read as unsigned."""
    return x.astype(jnp.uint64 if x.dtype == jnp.int64 else jnp.uint32)


def _whole(offset: jax.Array, limit: jax.Array) -> jax.Array:
    """Floats cut into [0, limit] and made unsigned; no conversion out of range."""
    largest = np.nextafter(
        np.array(2.0 ** (8 * limit.dtype.itemsize), offset.dtype),
        np.array(0, offset.dtype),
    )
    return jnp.minimum(jnp.clip(offset, 0, largest).astype(limit.dtype), limit)
