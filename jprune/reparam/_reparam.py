r"""Reparameterizations: the network uses $w = g(\theta)$, training sees $\theta$.

What decides about pruning (a power, a threshold, an attention, a priority) becomes part
of $\theta$ and is learned with the weights:

$$ \min_\theta \; L(g(\theta)) + R(\theta), \qquad \theta \in \Theta. $$

A `Reparam` is the five pure functions of this problem. $g$ is `apply`, $R$ is
`penalty`, $\Theta$ is kept by `project`; `init` leads in and `export` out. Nothing is
stored anywhere else: $\theta$ is a pytree of floating arrays, so it differentiates, is
checkpointed and sharded as parameters are.

    r = reparam.learned_thresholds(0.9)
    loss = reparam.wrap(loss_fn, r)                   # L(g(theta)) + R(theta)
    tx = optax.chain(optax.sgd(0.1), reparam.projection(r))
    theta = r.init(params)
    ... the usual loop on theta ...
    params, mask = r.export(theta)

Parts of $\theta$ that need another learning rate are named fields, and a tuple of
labels is a prefix of $\theta$, so that `optax.partition` tells them apart:

    labels = lambda theta: theta._replace(weights="slow", thresholds="fast")
    tx = optax.partition({"slow": optax.sgd(0.1), "fast": optax.sgd(1.0)}, labels)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune._errors import no_params, type_error, value_error
from jprune._typing import Mask, Params, PyTree


def no_penalty(theta: PyTree) -> jax.Array:
    """The `penalty` of a reparameterization that has none.

    Args:
      theta: ignored.

    Returns:
      0, 0-d.
    """
    del theta
    return jnp.zeros(())


def unconstrained(new: PyTree, old: PyTree, step: jax.Array) -> PyTree:
    """The `project` of a reparameterization whose theta may go anywhere.

    Args:
      new: theta after the update.
      old: ignored.
      step: ignored.

    Returns:
      `new`.
    """
    del old, step
    return new


class Reparam(NamedTuple):
    """A reparameterization: five pure functions.

    Attributes:
      init: `params -> theta`, in arrays of its own. Where the map is one to one, its
        inverse.
      apply: `(theta, key=None) -> params`, the map, differentiable in theta. Only a
        stochastic map reads `key`; without one it is its own mean or mode.
      export: `theta -> (params, mask)`, called once at the end: the parameters that
        `apply` uses, with exact zeros, and the mask of what is kept.
      penalty: `theta -> 0-d array`, what joins the loss; none by default.
      project: `(new, old, step) -> theta`: what the update from `old` to `new` at the
        0-based `step` may lead to; anything by default. Parts that training must not
        move return to `old`.
    """

    init: Callable[[Params], PyTree]
    apply: Callable[..., Params]
    export: Callable[[PyTree], tuple[Params, Mask]]
    penalty: Callable[[PyTree], jax.Array] = no_penalty
    project: Callable[[PyTree, PyTree, jax.Array], PyTree] = unconstrained


def wrap(
    loss_fn: Callable[..., Any], r: Reparam, *, has_aux: bool = False
) -> Callable[..., Any]:
    r"""The loss as a function of theta: $L(g(\theta), \ldots) + R(\theta)$.

    Args:
      loss_fn: `loss_fn(params, *args, **kwargs)`, a scalar.
      r: the reparameterization.
      has_aux: `loss_fn` returns `(loss, aux)`, as for `jax.grad`.

    Returns:
      `loss(theta, *args, reparam_key=None, **kwargs)`; `reparam_key` goes to `r.apply`,
      everything else to `loss_fn`. The penalty is added in the loss's dtype.

    Raises:
      TypeError: `r` is not a `Reparam`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jprune import reparam
      >>> loss = reparam.wrap(lambda w: jnp.sum(w), reparam.powerpropagation(2))
      >>> jax.grad(loss)(jnp.array([[0.5, -0.2]]))
      Array([[1. , 0.4]], dtype=float32)
    """
    _require_reparam("r", r)

    def loss(theta: PyTree, *args: Any, reparam_key: Any = None, **kwargs: Any) -> Any:
        out = loss_fn(r.apply(theta, reparam_key), *args, **kwargs)
        value, *aux = out if has_aux else (out,)
        value = value + r.penalty(theta).astype(jnp.result_type(value))
        return (value, *aux) if has_aux else value

    return loss


def compose(first: Reparam, second: Reparam) -> Reparam:
    r"""$g(\theta) = g_2(g_1(\theta))$: powerpropagation under a mask, for instance.

    Args:
      first: the map next to theta.
      second: the map next to the network. Its own theta must be a tree of weights like
        the parameters, with no constraint: `straight_through`, `top_kast` or
        `powerpropagation`.

    Returns:
      A `Reparam` whose theta is that of `first`.

    Raises:
      ValueError: `second` has a constraint, a `project` of its own.
      TypeError: one of the two is not a `Reparam`.
    """
    _require_reparam("first", first)
    _require_reparam("second", second)
    if second.project is not unconstrained:
        raise value_error(
            "`second` must be unconstrained: its theta is what `first` gives and is "
            "never stored, so that its `project` could not hold it. Exchange the two, "
            "or take a map that was given no `project`."
        )

    def penalty(theta: PyTree) -> jax.Array:
        return first.penalty(theta) + second.penalty(first.apply(theta))

    def apply(theta: PyTree, key: Any = None) -> Params:
        keys = (None, None) if key is None else jax.random.split(key)
        return second.apply(first.apply(theta, keys[0]), keys[1])

    def export(theta: PyTree) -> tuple[Params, Mask]:
        inner, kept = first.export(theta)
        params, mask = second.export(inner)
        return params, jax.tree.map(_both, kept, mask)

    return Reparam(
        init=lambda params: first.init(second.init(params)),
        apply=apply,
        penalty=penalty,
        project=first.project,
        export=export,
    )


def _require_reparam(name: str, r: Any) -> None:
    if not isinstance(r, Reparam):
        raise type_error(f"`{name}` must be a Reparam, got {type(r).__name__}.")


def _both(a: jax.Array, b: jax.Array) -> jax.Array:
    """Two mask leaves, of which a 0-d True gives way."""
    shape = jnp.broadcast_shapes(a.shape, b.shape)
    return jnp.broadcast_to(a, shape) & jnp.broadcast_to(b, shape)


class ProjectionState(NamedTuple):
    """State of `projection`.

    Attributes:
      step: updates made so far, 0-d int32.
    """

    step: jax.Array


def projection(r: Reparam) -> optax.GradientTransformationExtraArgs:
    """`r.project` as an Optax transformation: place it last.

    After plain `optax.apply_updates` theta is what `r.project` makes of the update,
    to one rounding. Where it leaves a value alone the update passes bit for bit, and
    where it puts the old value back the update is exactly 0.

    Args:
      r: the reparameterization whose theta is trained.

    Returns:
      A `GradientTransformationExtraArgs` whose state is one counter.

    Raises:
      ValueError: from `update`, no `params`.
    """

    def init(params: PyTree) -> ProjectionState:
        del params
        return ProjectionState(jnp.int32(0))

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, ProjectionState]:
        del extra
        if params is None:
            raise no_params("projection")
        following = ProjectionState(jnp.asarray(optax.safe_increment(state.step)))
        if not jax.tree.leaves(params):
            return updates, following
        new = optax.apply_updates(params, updates)
        allowed = r.project(new, params, state.step)

        def leaf(u: jax.Array, p: jax.Array, n: jax.Array, a: jax.Array) -> jax.Array:
            dtype = jnp.promote_types(jnp.result_type(u), jnp.result_type(p))
            back = jnp.asarray(a, dtype) - jnp.asarray(p, dtype)
            return jnp.where(a == n, jnp.asarray(u, dtype), back)

        return jax.tree.map(leaf, updates, params, new, allowed), following

    return optax.GradientTransformationExtraArgs(init, update)


class ReparameterizedState(NamedTuple):
    """State of `reparameterized`.

    Attributes:
      inner: the state of the inner optimizer, which lives in theta.
    """

    inner: Any


def reparameterized(
    inner: optax.GradientTransformation, r: Reparam
) -> optax.GradientTransformationExtraArgs:
    r"""An optimizer of ordinary parameters that moves them as one of theta would.

    With $\theta = g^{-1}(w)$ and the chain rule $\partial L/\partial\theta$ from
    $\partial L/\partial w$, the inner optimizer takes its step in $\theta$ and the
    update is $g(\theta + u) - w$. The training loop, masks and whatever stands around
    it (SWD, RigL, which must see $\partial L/\partial w$) stay in the space of the
    weights. Around it a method that grows weights from zero (RigL, SET) needs
    `powerpropagation` with a `floor` above 0: elsewhere a weight at 0 stays there.

    Args:
      inner: the optimizer of theta, learning rate included.
      r: a one-to-one reparameterization: `init` must be the inverse of `apply`, which
        among ours is true of `powerpropagation`. Its penalty is not added. What `init`
        refuses is refused at the start only: later a leaf may be masked entirely.

    Returns:
      A `GradientTransformationExtraArgs`. The inverse is taken anew at each step, so
      that nothing but the inner state is stored; near 0 and for high powers it loses
      digits that training theta itself would keep.

    Raises:
      ValueError: from `init`, a theta of another structure than the parameters; from
        `update`, no `params`.
    """
    inner = optax.with_extra_args_support(inner)
    inverse = jax.jit(r.init)  # of traced values, which `init` cannot refuse

    def init(params: Params) -> ReparameterizedState:
        theta = r.init(params)
        if jax.tree.structure(theta) != jax.tree.structure(params):
            raise value_error(
                "`reparameterized` needs a theta structured as the parameters (that of "
                "`powerpropagation` is); train theta itself through `wrap` instead."
            )
        return ReparameterizedState(inner.init(theta))

    def update(
        updates: PyTree,
        state: Any,
        params: Params = None,
        **extra: Any,
    ) -> tuple[PyTree, ReparameterizedState]:
        if params is None:
            raise no_params("reparameterized")
        theta, pull = inverse(params), updates
        if jax.tree.leaves(params):
            (pull,) = jax.vjp(r.apply, theta)[1](_like(updates, params))
        steps, following = inner.update(pull, state.inner, theta, **extra)
        moved = r.apply(optax.apply_updates(theta, steps))
        change = jax.tree.map(jnp.subtract, moved, params)
        return change, ReparameterizedState(following)

    return optax.GradientTransformationExtraArgs(init, update)


def _like(updates: PyTree, params: Params) -> PyTree:
    return jax.tree.map(
        lambda u, p: jnp.asarray(u, jnp.result_type(p)), updates, params
    )
