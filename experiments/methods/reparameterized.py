"""Training of theta instead of the weights: what the methods of `reparam` share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from experiments.lab import Lab
from experiments.loop import compile_program, fit
from jprune import masks, reparam


class Exported(NamedTuple):
    """A finished run, back in the space of the weights.

    Attributes:
      theta: what was trained.
      params: the parameters the network used, with exact zeros.
      mask: what is kept.
      stats: the other variables.
      seconds: wall time.
    """

    theta: Any
    params: Any
    mask: Any
    stats: Any
    seconds: float

    def kept(self) -> int:
        """How many prunable weights are left; one outside the mask's scope counts."""
        scope = masks.prunable(self.params)
        return int(masks.count(self.mask, self.params, scope))


def train_theta(
    lab: Lab,
    r: reparam.Reparam,
    tx: optax.GradientTransformation,
    *,
    run: str,
    epochs: int,
    start: tuple[Any, Any] | None = None,
) -> Exported:
    """One run of the network `r.apply(theta)`, from the initialization or `start`.

    Args:
      lab: the shared part.
      r: the reparameterization; its projection is placed last, its penalty in the loss.
      tx: the optimizer of theta.
      run: label of the row.
      epochs: length of the run.
      start: parameters and statistics to start from; None for the seed's own.
    """
    export = jax.jit(r.export)
    params, stats = start or lab.init()

    def forward(theta: Any, stats: Any, *args: Any, train: bool, key: Any) -> Any:
        noise = jax.random.fold_in(key, 1) if train else None
        used = r.apply(theta, noise)
        return lab.forward(used, stats, *args, train=train, key=key)

    def watch(theta: Any, opt: Any, hyper: Any, previous: Any) -> Any:
        del opt, hyper, previous
        mask = export(theta)[1]
        return mask, {"sparsity": masks.sparsity(mask)}

    chain = optax.chain(tx, reparam.projection(r))
    program = compile_program(
        lab,
        lambda _: chain,
        forward=forward,
        penalty=r.penalty,
        logits=lambda theta, stats: lab.logits(export(theta)[0], stats),
    )._replace(watch=watch)
    theta = lab.replicated(r.init(params))  # not traced: it may refuse values
    done = fit(lab, program, run, epochs, start=(theta, stats))
    params, mask = export(done.params)
    return Exported(done.params, params, mask, done.stats, done.seconds)


def decayed(
    weight_decay: float, scope: Callable[[Any], Any] = masks.prunable
) -> optax.GradientTransformation:
    """Coupled decay of the kernels of theta, before momentum."""
    return optax.add_decayed_weights(weight_decay, mask=scope)


def layer_sparsities(mask: Any) -> dict[str, float]:
    """The sparsity of each leaf that a mask covers, by the name of its layer."""
    pairs = jax.tree_util.tree_leaves_with_path(mask)
    return {
        jax.tree_util.keystr(path[:1], simple=True): 1 - float(leaf.mean())
        for path, leaf in pairs
        if leaf.ndim
    }
