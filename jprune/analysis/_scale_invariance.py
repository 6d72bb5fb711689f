r"""Filters whose scale the network does not see, and what follows for training.

A filter w in front of a batch norm gives the same network as c w, for any c > 0: its
size says nothing of the function. The gradient is orthogonal to it and shrinks with it,
g(c w) = g(w) / c, so that the size sets the pace instead: with u = w / |w|

    effective learning rate  eta / |w|^2 ,   turn of a step  tan(theta) = eta |g|/|w| .

SGD without decay only ever lengthens w; with decay l the length settles where both
balance, at a turn of about sqrt(2 eta l) a step whatever the layer.

Liu et al., "Weight Rescaling", arXiv 2102.03497; van Laarhoven, arXiv 1706.05350; Wan
et al., "Spherical Motion Dynamics", arXiv 2006.08419. Of the first
the abstract was read.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._errors import value_error
from jprune._jaxpr._chain import data_dependent
from jprune._jaxpr._flat import flatten
from jprune._jaxpr._matrix import Unreadable, matrix_form
from jprune._scale_groups import (
    Scaled,
    ScaleGroup,
    flat_norms,
    group_leaves,
    rescaled,
    turn,
)
from jprune._tree import KeyTuple, keyed_leaves
from jprune._typing import PyTree
from jprune.analysis._homogeneity import Breaks, joint_scaling
from jprune.surgery._callable import traced


class ScaleInvariance(NamedTuple):
    r"""The result of `scale_invariance`.

    Attributes:
      groups: one for each invariant kernel, for scores, transformations, and
        `compress.canonicalize`.
      why: by path of every other kernel, what sees its scale.
      radial: by path $|\langle w, g \rangle| / (|w| |g|)$ of each filter, of a random
        projection of the results; NaN where the gradient is 0. Empty without `check`.
    """

    groups: list[ScaleGroup]
    why: dict[str, str]
    radial: dict[str, np.ndarray]

    def filter_sizes(self, params: PyTree) -> dict[str, jax.Array]:
        """The lengths |w| of the filters.

        Args:
          params: the parameters, those analyzed or later ones.

        Returns:
          By path one length for each filter, [filters]; a number for a whole kernel.
        """
        found = group_leaves(params, self.groups)
        return {g.name: flat_norms(w, g.kernel.axis) for g, _, w in found}

    def effective_learning_rate(
        self, learning_rate: float, params: PyTree
    ) -> dict[str, jax.Array]:
        r"""$\eta / |w|^2$ of each filter: the step of SGD seen on the unit sphere.

        Args:
          learning_rate: $\eta$.
          params: the parameters.

        Returns:
          By path one rate for each filter, [filters].
        """
        sizes = self.filter_sizes(params)
        return {name: learning_rate / size**2 for name, size in sizes.items()}

    def angular_update(self, before: PyTree, after: PyTree) -> dict[str, jax.Array]:
        """By how much each filter turned, in radians, [filters], by path.

        Args:
          before: the parameters.
          after: the parameters some steps later.

        Returns:
          Angles from 0 to pi, exact for small ones; 0 for a filter of zeros.
        """
        old, new = group_leaves(before, self.groups), group_leaves(after, self.groups)
        pairs = zip(old, new, strict=True)
        return {g.name: turn(a, b, g.kernel.axis) for (g, _, a), (_, _, b) in pairs}


def scale_invariance(
    fn: Callable[..., Any],
    params: PyTree,
    *args: Any,
    check: bool = True,
    tolerance: float = 1e-2,
) -> ScaleInvariance:
    """Finds the kernels whose filters may be scaled without changing the results.

    Proved from the program (see `_homogeneity`), then measured: all filters are scaled
    by random factors at once.

    Args:
      fn: `fn(params, *args)`, the loss or the logits. In train mode (batch statistics)
        the groups are kernels, with their biases before the norm; in evaluation they
        hold the running statistics, too. Updated statistics are not to be returned.
      params: the parameters; in evaluation all variables.
      *args: the other arguments, concrete if `check`.
      check: measure as well.
      tolerance: how far results may change, relative to the largest. The epsilon of a
        norm is not quite scale invariant.

    Returns:
      A `ScaleInvariance`. Filters that a layer or group norm sees together are one
      group (`axis=None`).

    Raises:
      ValueError: no kernel is read in a contraction, or what was proved does not hold
        by measurement (filters so small that a norm's epsilon counts).

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jprune import analysis
      >>> def net(p, x):
      ...     h = x @ p["a"]
      ...     h = h - h.mean(0)[None]
      ...     h = h * jax.lax.rsqrt((h * h).mean(0)[None] + 1e-5)
      ...     return jax.nn.relu(h) @ p["b"]
      >>> p = {"a": jnp.array([[1.0, 2], [-1, 1]]), "b": jnp.ones((2, 1))}
      >>> x = jnp.array([[1.0, 2], [3, 5], [0, 1]])
      >>> found = analysis.scale_invariance(net, p, x)
      >>> [g.name for g in found.groups], found.why
      (['a'], {'b': 'a result scales with it'})
    """
    flat = flatten(traced(fn, params, args))
    data = data_dependent(flat)
    groups: list[ScaleGroup] = []
    why: dict[str, str] = {}
    for path, axes in _kernels(flat).items():
        name = "/".join(map(str, path))
        for axis in (*axes, None):
            try:
                found = joint_scaling(flat, data, path, axis)
            except Breaks as reason:
                why.setdefault(name, str(reason))
                continue
            rows = [Scaled(p, d.axis, d.power) for p, d in found.items()]
            groups.append(ScaleGroup(rows[0], tuple(rows[1:])))
            why.pop(name, None)
            break
    if not groups and not why:
        raise value_error("`fn` reads no parameter in a contraction.")
    radial: dict[str, np.ndarray] = {}
    if check and groups:
        radial = _measured(fn, params, args, groups, tolerance)
    return ScaleInvariance(groups, why, radial)


def equilibrium(
    learning_rate: float,
    weight_decay: float,
    momentum: float = 0.0,
    gradient_norm: float = 1.0,
) -> tuple[float, float]:
    r"""Length and turn of a step at which scale-invariant filters settle under SGD.

    $|w|^4 = \eta G^2 / (\lambda (1 - a)(2 - \eta\lambda / (1 + a)))$ and
    $\theta = \sqrt{2 \eta \lambda / (1 + a)}$, with heavy-ball momentum a and coupled
    decay.

    Args:
      learning_rate: $\eta$.
      weight_decay: $\lambda$, added to the gradient.
      momentum: a.
      gradient_norm: G, the gradient's norm at |w| = 1.

    Returns:
      |w| and theta in radians.

    Raises:
      ValueError: values out of range.
    """
    if min(learning_rate, weight_decay, gradient_norm) <= 0 or not 0 <= momentum < 1:
        raise value_error(
            "`learning_rate`, `weight_decay` and `gradient_norm` must be positive, "
            f"`momentum` in [0, 1); got {learning_rate}, {weight_decay}, "
            f"{gradient_norm}, {momentum}."
        )
    product = learning_rate * weight_decay / (1 + momentum)
    fourth = learning_rate * gradient_norm**2
    fourth /= weight_decay * (1 - momentum) * (2 - product)
    return fourth**0.25, math.sqrt(2 * product)


def _kernels(flat: Any) -> dict[KeyTuple, tuple[int, ...]]:
    """The kernels that contractions read, each with its axis of outputs, if one."""
    found: dict[KeyTuple, tuple[int, ...]] = {}
    for site in flat.sites:
        if site.origin.at:
            found.setdefault(site.origin.path, ())
            continue
        try:
            form = matrix_form(flat, site)
        except Unreadable:
            continue
        axes = [a for a in (*form.axes(0), *form.axes(2)) if a is not None]
        found.setdefault(site.origin.path, tuple(axes[:1]) if len(axes) == 1 else ())
    return found


def _measured(
    fn: Callable[..., Any],
    params: PyTree,
    args: tuple,
    groups: list[ScaleGroup],
    tolerance: float,
) -> dict[str, np.ndarray]:
    """Checks all groups at once; the radial part of each filter's gradient."""
    kernels = group_leaves(params, groups)
    leaves = dict(keyed_leaves(params))
    rng = np.random.default_rng(0)
    factors = []
    for group in groups:
        axis = group.kernel.axis
        count = 1 if axis is None else np.shape(leaves[group.kernel.path])[axis]
        drawn = np.exp(rng.uniform(-0.7, 0.7, count))
        factors.append(drawn if axis is not None else float(drawn[0]))

    def project(p: PyTree) -> tuple[jax.Array, list[jax.Array]]:
        outs: list[Any] = [y for y in jax.tree.leaves(fn(p, *args)) if _floating(y)]
        keys = jax.random.split(jax.random.key(0), len(outs))
        total: Any = sum(
            jnp.vdot(jax.random.normal(k, y.shape, y.dtype), y)
            for k, y in zip(keys, outs, strict=True)
        )
        return total, outs

    spots = [i for _, i, _ in kernels]
    flat_leaves, tree = jax.tree.flatten(params)

    def of_kernels(chosen: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        filled = list(flat_leaves)
        for i, w in zip(spots, chosen, strict=True):
            filled[i] = w
        return project(jax.tree.unflatten(tree, filled))

    grads, outs = jax.jit(jax.grad(of_kernels, has_aux=True))(
        [w for _, _, w in kernels]
    )
    other = jax.jit(lambda p: project(p)[1])(rescaled(params, groups, factors))
    for a, b in zip(outs, other, strict=True):
        gap = float(jnp.abs(a - b).max(initial=0))
        if not gap <= tolerance * max(float(jnp.abs(a).max(initial=0)), 1e-30):
            raise value_error(
                f"Scaling the filters changed a result by {gap:.1e}, although the "
                "program should not see it: filters so small that the epsilon of a "
                "norm counts, or raise `tolerance`."
            )
    return {
        group.name: _radial(np.asarray(w), np.asarray(g), group.kernel.axis)
        for (group, _, w), g in zip(kernels, grads, strict=True)
    }


def _radial(w: np.ndarray, g: np.ndarray, axis: int | None) -> np.ndarray:
    rest = tuple(d for d in range(w.ndim) if d != axis)
    inner = np.abs((w.astype(np.float64) * g).sum(rest))
    size = np.sqrt((w.astype(np.float64) ** 2).sum(rest) * (g**2.0).sum(rest))
    return np.where(size > 0, inner / np.where(size > 0, size, 1), np.nan).reshape(-1)


def _floating(y: Any) -> bool:
    return jnp.issubdtype(y.dtype, jnp.floating)
