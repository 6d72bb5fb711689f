r"""Powerpropagation: weights as a power of what is trained; the rich get richer.

$$ w = \theta\, |\theta|^{\alpha - 1}, \qquad
   \frac{\partial L}{\partial \theta} =
   \frac{\partial L}{\partial w}\; \alpha\, |\theta|^{\alpha - 1}. $$

With $\alpha > 1$ large weights learn fast and small ones hardly move: the trained
network has far more mass near zero, and magnitude pruning costs it less. It is no
criterion by itself. $|w|$ and $|\theta|$ order alike, so every magnitude method may
work on $\theta$ as if on weights: `transforms.prune_gradually`, `swd` and `keep_masked`
go unchanged into the chain that trains theta. $\theta = 0$ is a fixed point, so what
they remove stays removed. Methods that grow weights (RigL, SET) need a `floor` and
stand around `reparameterized`, where they see $w$ and $\partial L / \partial w$.

One step of gradient descent moves w by about
$-\eta\, \alpha^2 |w|^{2 - 2/\alpha}\, \partial L/\partial w$, and an L2 decay of theta
is a penalty $\sum |w|^{2/\alpha}$ on w: L1 at $\alpha = 2$ `[inferred]`. Adaptive
optimizers renormalize small gradients and partly undo the effect. Keep theta in
float32: small powers underflow in half precision.

Schwarz et al., "Powerpropagation: A sparsity inducing weight reparameterisation",
NeurIPS 2021 (arXiv 2110.00296), section 2.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import masks
from jprune._errors import listing, value_error
from jprune._tree import named_leaves
from jprune._typing import Mask, Params, PyTree
from jprune.masks._count import is_traced
from jprune.masks._scope import resolve_scope
from jprune.reparam._named import copied
from jprune.reparam._reparam import Reparam


def powerpropagation(
    alpha: float = 2.0, *, scope: Any = None, floor: float = 0.0
) -> Reparam:
    r"""$w = \theta |\theta|^{\alpha - 1}$ on the leaves in scope, the others untouched.

    Args:
      alpha: $\alpha \ge 1$; the paper uses 2 to 5, 1 is the ordinary network.
      scope: which leaves; None for `masks.prunable` (kernels, not biases or norms).
      floor: least derivative used in the backward pass,
        $\max(\alpha |\theta|^{\alpha-1}, \text{floor})$. A deviation for methods that
        grow weights from zero (RigL, SET), which without it could never leave it: at
        $\theta = 0$ the gradient is `floor` times $\partial L / \partial w$. Among
        exact zeros $|\partial L/\partial\theta|$ then orders as $|\partial L/\partial
        w|$, but not against weights just dropped, whose own slope is far above `floor`
        and which would come straight back: grow in the space of the weights,
        `drop_and_grow(reparameterized(inner, powerpropagation(alpha, floor=0.1)),
        ...)`.

    Returns:
      A `Reparam` whose theta is structured as the parameters. `init` is the inverse
      $\operatorname{sign}(w) |w|^{1/\alpha}$, so that w starts as initialized; `export`
      keeps what is not exactly 0.

    Raises:
      ValueError: `alpha` below 1, a negative `floor`; from `init`, a leaf in scope that
        is all zero, which would never train (not checked under `jit`).

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import reparam
      >>> r = reparam.powerpropagation(2)
      >>> r.apply(jnp.array([[0.5, -0.2, 0.0]]))
      Array([[ 0.25, -0.04,  0.  ]], dtype=float32)

    References:
      Schwarz et al., arXiv 2110.00296, eq. (1) and (2).
    """
    _require_power("alpha", alpha)
    if floor < 0:
        raise value_error(f"`floor` must not be negative, got {floor}.")

    def init(params: Params) -> PyTree:
        if alpha > 1 and floor == 0:
            _require_not_zero(params, scope)
        return _map(partial(_root, alpha=alpha), copied(params), scope)

    def apply(theta: PyTree, key: Any = None) -> Params:
        del key
        return _map(lambda t: power(t, alpha, floor), theta, scope)

    def export(theta: PyTree) -> tuple[Params, Mask]:
        params = copied(apply(theta))
        return params, masks.from_zeros(params, scope)

    return Reparam(init, apply, export)


def power(theta: jax.Array, alpha: float, floor: float = 0.0) -> jax.Array:
    r"""$\theta |\theta|^{\alpha - 1}$ with derivatives that are finite everywhere.

    Plain autodiff gives NaN at 0 for $1 \le \alpha < 2$. Here the derivative at 0 is
    its limit, 0 (1 for $\alpha = 1$); the second derivative at 0, which has none for
    $\alpha < 2$, is taken as 0.

    Args:
      theta: any float array.
      alpha: the power, at least 1, a Python number.
      floor: least derivative, see `powerpropagation`.

    Returns:
      The power, shape and dtype of `theta`.
    """
    if alpha == 1:
        return theta
    return _power(float(alpha), float(floor), theta)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _power(alpha: float, floor: float, theta: jax.Array) -> jax.Array:
    return theta * _even(alpha - 1, theta)


@_power.defjvp
def _(alpha: float, floor: float, primals: tuple, tangents: tuple) -> tuple:
    (theta,), (d,) = primals, tangents
    slope = alpha * _even(alpha - 1, theta)
    slope = jnp.maximum(slope, floor) if floor else slope
    return _power(alpha, floor, theta), slope * d


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _even(exponent: float, x: jax.Array) -> jax.Array:
    """$|x|^b$ for b > 0, by multiplications where b is an integer."""
    size = jnp.abs(x)
    return size ** (int(exponent) if exponent.is_integer() else exponent)


@_even.defjvp
def _(exponent: float, primals: tuple, tangents: tuple) -> tuple:
    (x,), (d,) = primals, tangents
    safe = jnp.where(x == 0, jnp.ones_like(x), x)
    slope = exponent * jnp.sign(x) * jnp.abs(safe) ** (exponent - 1)
    return _even(exponent, x), slope * d


def _root(w: jax.Array, alpha: float) -> jax.Array:
    """The inverse power; 0 stays 0."""
    return w if alpha == 1 else jnp.sign(w) * jnp.abs(w) ** (1 / alpha)


def _map(fn: Any, tree: PyTree, scope: Any) -> PyTree:
    taken = resolve_scope(scope, tree)
    return jax.tree.map(lambda x, t: fn(x) if t else x, tree, taken)


def _require_power(name: str, alpha: Any) -> None:
    if is_traced(alpha) or not 1 <= alpha < float("inf"):
        raise value_error(
            f"`{name}` must be a finite number of at least 1, got {alpha}."
        )


def _require_not_zero(params: Params, scope: Any) -> None:
    taken = jax.tree.leaves(resolve_scope(scope, params))
    pairs = zip(named_leaves(params), taken, strict=True)
    zero = [
        name
        for (name, leaf), t in pairs
        if t and not is_traced(leaf) and np.size(leaf) and not np.any(leaf)
    ]
    if zero:
        raise value_error(
            "Zero is a fixed point of powerpropagation: these leaves are all zero and "
            "would never train. Initialize them otherwise, leave them out of `scope`, "
            f"or give a `floor`.{listing(zero)}"
        )
