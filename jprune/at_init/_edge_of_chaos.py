r"""The edge of chaos: where to initialize so that depth neither damps nor explodes.

In a wide layer with $W \sim N(0, \sigma_w^2 / \text{fan-in})$ and
$b \sim N(0, \sigma_b^2)$ the variance of what enters the activation $\varphi$ and the
factor by which a layer multiplies the gradient's second moment are, with
$Z \sim N(0, 1)$,

$$ q = \sigma_b^2 + \sigma_w^2\, E[\varphi(\sqrt q Z)^2], \qquad
   \chi = \sigma_w^2\, E[\varphi'(\sqrt q Z)^2]. $$

$\chi = 1$ is the edge of chaos. Off it, sensitivities $|w\, \partial L/\partial w|$ are
geometric in depth, so that one global threshold removes whole layers first; on it they
are of one size, and pruning by sensitivity is well-conditioned. For ReLU the edge is
$\sigma_w^2 = 2, \sigma_b = 0$, He's initialization; for tanh it is a curve.

Hayou, Ton, Doucet and Teh, "Robust Pruning at Initialization", ICLR 2021 (arXiv
2002.08797). Its body could not be read: the mean-field equations are standard, what the
edge does for pruning is the abstract's claim and `[recalled]`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._errors import value_error
from jprune._tree import leaf_name, map_named
from jprune._typing import Params, PyTree
from jprune.at_init._fan_in import fan_ins
from jprune.masks._scope import resolve_scope

Activation = Callable[[jax.Array], jax.Array]

# A fine midpoint rule over +-9 standard deviations, exact to rounding for what is
# smooth; no node at 0, where a rectifier has no derivative.
_NODES = (np.arange(-2250, 2250) + 0.5) / 250
_WEIGHTS = np.exp(-(_NODES**2) / 2) / np.exp(-(_NODES**2) / 2).sum()


class MeanField(NamedTuple):
    """The signal of a wide, deep network at initialization; Python floats.

    Attributes:
      sigma_w2: variance of a weight times its fan-in.
      sigma_b2: variance of a bias.
      q: variance of what enters the activation, far from the input.
      chi: factor of the gradient's second moment in each layer; 1 on the edge.
    """

    sigma_w2: float
    sigma_b2: float
    q: float
    chi: float


def edge_of_chaos(
    activation: Activation = jax.nn.relu, sigma_b2: float = 0.0
) -> MeanField:
    r"""The $\sigma_w^2$ at which $\chi = 1$, by quadrature and bisection on the host.

    Draw weights there with `initialize`, or let a Flax layer do so:
    `jax.nn.initializers.variance_scaling(edge.sigma_w2, "fan_in", "normal")`.

    Args:
      activation: an elementwise function of JAX.
      sigma_b2: $\sigma_b^2$. With 0 and $\varphi(0) = 0$ the signal's variance may be
        anything near 0, and $\sigma_w^2 = 1 / E[\varphi'(0)^2]$: 2 for ReLU, 1 for
        tanh.

    Returns:
      A `MeanField` with `chi` 1.

    Raises:
      ValueError: there is no edge for this `sigma_b2`; for ReLU there is none but 0,
        for a flat activation (a sign) none at all.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import at_init
      >>> round(at_init.edge_of_chaos(jnp.tanh, 0.05).sigma_w2, 5)
      1.76095

    References:
      Hayou et al., arXiv 2002.08797; the values are computed here.
    """
    _require_bias(sigma_b2)
    (square, slope), (_, nearer) = (_moments(activation, q) for q in (1e-12, 1e-14))
    # A slope that vanishes towards 0 (of a square) is no slope at 0.
    if sigma_b2 == 0 and square < 1e-6 and nearer > slope / 2:
        return MeanField(1 / slope, 0.0, 0.0, 1.0)

    def above(q: float) -> bool:
        """Whether the variance that belongs to q on the edge is above q."""
        square, slope = _moments(activation, q)
        return sigma_b2 * slope + square > q * (1 + 1e-9) * slope

    low, high = 1e-6, 1e3
    if not above(low) or above(high):
        raise value_error(
            f"This activation has no edge of chaos with `sigma_b2`={sigma_b2}. (ReLU "
            "has one for `sigma_b2`=0 only.)"
        )
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if above(middle) else (low, middle)
    return MeanField(1 / _moments(activation, high)[1], float(sigma_b2), high, 1.0)


def initialize(
    key: jax.Array,
    params: Params,
    sigma_w2: float = 2.0,
    sigma_b2: float = 0.0,
    *,
    fan_in: int | PyTree | None = None,
    scope: Any = None,
    stacked: Any = None,
) -> Params:
    """Draws the weights of any tree anew, e.g. on the edge of chaos.

    Args:
      key: a PRNG key.
      params: gives structure, shapes and dtypes.
      sigma_w2: of `edge_of_chaos`; 2 is the edge of ReLU (He's initialization).
      sigma_b2: of `edge_of_chaos`.
      fan_in: a number, a tree of numbers, or None for all axes but the last of leaves
        named `kernel` or `w` of rank 2 or 4.
      scope: the kernels; see `masks.unstructured`. Beside them leaves named `bias` or
        `b` are drawn, all others stay.
      stacked: see `masks.unstructured`; it tells the default of `fan_in`.

    Returns:
      Parameters like `params`.

    Raises:
      ValueError: no default fan-in for a leaf; as `masks.unstructured` for `scope`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jprune import at_init
      >>> params = {"kernel": jnp.zeros((500, 100)), "bias": jnp.ones(100)}
      >>> drawn = at_init.initialize(jax.random.key(0), params)
      >>> print(f"{500 * drawn['kernel'].var():.1f} {drawn['bias'].var():.1f}")
      2.0 0.0
    """
    taken = resolve_scope(scope, params)
    variances = iter([sigma_w2 / n for n in fan_ins(fan_in, params, taken, stacked)])
    keys = iter(jax.random.split(key, len(jax.tree.leaves(params))))

    def draw(path: str, x: Any, kernel: bool) -> Any:
        own = next(keys)
        if not kernel and leaf_name(path) not in ("bias", "b"):
            return x
        variance = next(variances) if kernel else sigma_b2
        normal = jax.random.normal(own, x.shape, jnp.float32)
        return (variance**0.5 * normal).astype(jnp.result_type(x))

    return map_named(draw, params, taken)


def _moments(activation: Activation, q: float) -> tuple[float, float]:
    r"""$E[\varphi(\sqrt q Z)^2]$ and $E[\varphi'(\sqrt q Z)^2]$."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        value, slope = _value_and_slope(activation, jnp.asarray(q**0.5 * _NODES))
        value, slope = np.asarray(value), np.asarray(slope)
    return float(_WEIGHTS @ value**2), float(_WEIGHTS @ slope**2)


def _value_and_slope(
    activation: Activation, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return jax.jvp(activation, (x,), (jnp.ones_like(x),))


def _require_bias(sigma_b2: float) -> None:
    if not sigma_b2 >= 0:
        raise value_error(f"`sigma_b2` must not be negative, got {sigma_b2}.")
