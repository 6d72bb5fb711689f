"""Methods that train theta in place of the weights: `reparam.wrap` on the loss.

Each is a list of variants, a reparameterization with its optimizer; `reparameterized`
trains them and tells a row for each.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jax.scipy.special import erfc

from experiments.lab import Lab, Run
from experiments.loop import compile_program, fit
from experiments.methods.removal import row
from experiments.methods.swept import kept_count
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import Rate, learning_rate
from jprune import compress, masks, reparam, transforms


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
    run: Run,
    epochs: int,
    start: tuple[Any, Any] | None = None,
) -> Exported:
    """One run of the network `r.apply(theta)`, from the initialization or `start`.

    Args:
      lab: the shared part.
      r: the reparameterization; its projection is placed last, its penalty in the loss.
      tx: the optimizer of theta.
      run: what it is.
      epochs: length of the run.
      start: parameters and statistics to start from; None for the seed's own.
    """
    export = jax.jit(r.export)
    params, stats = start or lab.init()

    def watch(theta: Any, opt: Any, hyper: Any, previous: Any) -> Any:
        del opt, hyper, previous
        mask = export(theta)[1]
        return mask, {"sparsity": masks.sparsity(mask)}

    chain = optax.chain(tx, reparam.projection(r))
    program = compile_program(
        lab,
        lambda _: chain,
        r=r,
        logits=lambda theta, stats: lab.logits(export(theta)[0], stats),
    )._replace(watch=watch)
    theta = lab.replicated(r.init(params))  # not traced: it may refuse values
    done = fit(lab, program, run, epochs, start=(theta, stats))
    params, mask = export(done.params)
    return Exported(done.params, params, mask, done.stats, done.seconds)


class Variant(NamedTuple):
    """One run: what it is, its reparameterization and the optimizer of theta."""

    run: Run
    r: reparam.Reparam
    tx: optax.GradientTransformation


def reparameterized(
    lab: Lab,
    variants: Iterable[Variant],
    *,
    epochs: int,
    start: tuple[Any, Any] | None = None,
    extra: Callable[[Exported], Mapping[str, float]] = lambda done: {},
) -> Iterator[Row]:
    """A run and a row for each variant.

    Args:
      lab: the shared part.
      variants: the runs.
      epochs: length of each.
      start: parameters and statistics to start from; None for the seed's own.
      extra: further numbers of a row.
    """
    for run, r, tx in variants:
        done = train_theta(lab, r, tx, run=run, epochs=epochs, start=start)
        found = row(
            lab,
            done.params,
            after=lab.logits(done.params, done.stats),
            run=run.label,
            method=lab.method,
            kept=done.kept(),
            seconds=done.seconds,
        )
        yield found._replace(extra=dict(extra(done)) or None)


def straight_through(
    lab: Lab,
    *,
    sparsity: tuple[float, ...],
    epochs: int,
    lr: Rate,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """Dense weights trained through the mask of their largest magnitudes.

    Args:
      lab: the shared part.
      sparsity: fractions to remove.
      epochs: length of each run.
      lr: see `schedules.learning_rate`.
      momentum: of heavy ball.
      weight_decay: of all dense weights, pruned now or not.
    """
    rate = learning_rate(lr, epochs * lab.per_epoch)

    def variant(share: float) -> Variant:
        kept = kept_count(lab, share)
        return Variant(
            lab.run(f"straight-through {percent(share)}", sparsity=share),
            reparam.straight_through(lambda p: masks.unstructured(p, keep=kept)),
            optax.chain(decayed(weight_decay), optax.sgd(rate, momentum)),
        )

    yield from reparameterized(lab, map(variant, sparsity), epochs=epochs)


def top_kast(
    lab: Lab,
    *,
    sparsity: tuple[float, ...],
    backward: float,
    epochs: int,
    lr: Rate,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """Top-KAST: a sparse forward pass, gradients for a larger set around it.

    Args:
      lab: the shared part.
      sparsity: of the forward pass, in each layer.
      backward: how many times as many weights get a gradient.
      epochs: length of each run.
      lr: see `schedules.learning_rate`.
      momentum: of heavy ball.
      weight_decay: of the paper's penalty.
    """
    tx = optax.sgd(learning_rate(lr, epochs * lab.per_epoch), momentum)

    def variant(share: float) -> Variant:
        behind = max(1 - backward * (1 - share), 0.0)
        run = lab.run(f"top-kast {percent(share)}", sparsity=share)
        return Variant(run, reparam.top_kast(share, behind, decay=weight_decay), tx)

    yield from reparameterized(lab, map(variant, sparsity), epochs=epochs)


def aswl(
    lab: Lab,
    *,
    density: tuple[float, ...],
    gamma: float,
    alpha: float,
    decay: float,
    epochs: int,
    lr: Rate,
    attention_rate: float,
    momentum: float,
) -> Iterator[Row]:
    """ASWL: attentions learn the sparsity of each layer with its weights.

    Args:
      lab: the shared part.
      density: r, at which the penalty is least; 0 is the paper's.
      gamma: weight of the penalty.
      alpha: exponent from attention to sparsity.
      decay: of the squared pruned weights.
      epochs: length of each run.
      lr: of the weights; see `schedules.learning_rate`.
      attention_rate: learning rate of the attentions over that of the weights.
      momentum: of heavy ball, for both.
    """
    steps = epochs * lab.per_epoch
    times = {"weights": 1.0, "attention": attention_rate}
    tx = optax.partition(
        {k: optax.sgd(learning_rate(lr, steps, v), momentum) for k, v in times.items()},
        lambda theta: theta._replace(weights="weights", attention="attention"),
    )

    def variant(target: float) -> Variant:
        r = reparam.learned_attention(
            gamma=gamma, alpha=alpha, decay=decay, target=target
        )
        return Variant(lab.run(f"aswl r={target:g}", density=target), r, tx)

    yield from reparameterized(
        lab, map(variant, density), epochs=epochs, extra=layer_sparsities
    )


def asl(
    lab: Lab,
    *,
    sparsity: tuple[float, ...],
    weight: float,
    budget: Any,
    min_size: int,
    epochs: int,
    lr: Rate,
    threshold_rate: float,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """Adaptive sparsity loss: thresholds learn each layer's sparsity, to a budget.

    A row tells the sparsity that the thresholds predict beside the one there is.

    Args:
      lab: the shared part.
      sparsity: targets of the loss.
      weight: of the sparsity loss.
      budget: "global" or "leaf".
      min_size: kernels with fewer weights stay dense.
      epochs: length of each run.
      lr: of the weights; see `schedules.learning_rate`.
      threshold_rate: learning rate of the thresholds over that of the weights.
      momentum: of heavy ball, for both.
      weight_decay: of the weights.
    """
    steps = epochs * lab.per_epoch
    weights = optax.chain(
        optax.add_decayed_weights(weight_decay, mask=masks.prunable),
        optax.sgd(learning_rate(lr, steps), momentum),
    )
    thresholds = optax.sgd(learning_rate(lr, steps, threshold_rate), momentum)
    tx = optax.partition(
        {"weights": weights, "thresholds": thresholds},
        lambda theta: theta._replace(weights="weights", thresholds="thresholds"),
    )

    def variant(share: float) -> Variant:
        r = reparam.learned_thresholds(
            share, weight=weight, budget=budget, min_size=min_size
        )
        return Variant(lab.run(f"asl {budget} {percent(share)}", sparsity=share), r, tx)

    yield from reparameterized(
        lab,
        map(variant, sparsity),
        epochs=epochs,
        extra=lambda done: (
            {"predicted": predicted(done.theta)} | layer_sparsities(done)
        ),
    )


def sls(
    lab: Lab,
    dense: Any,
    *,
    m: int,
    density: tuple[float, ...],
    uniform: bool,
    weight: float,
    scope: str,
    epochs: int,
    lr: Rate,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """SLS: every layer learns the N of its N:M until the network meets a budget.

    Args:
      lab: the shared part.
      dense: the dense run, from which it starts.
      m: group length.
      density: budgets, as fractions of the parameters in scope.
      uniform: also the same N in every layer, straight-through, for comparison.
      weight: of the relative cost.
      scope: regular expression of the kernels that take part.
      epochs: length of each run.
      lr: see `schedules.learning_rate`.
      momentum: of heavy ball.
      weight_decay: of the kernels.
    """
    inside = masks.prunable(dense.params, include=scope)
    rate = learning_rate(lr, epochs * lab.per_epoch)
    tx = optax.chain(decayed(weight_decay, _weights), optax.sgd(rate, momentum))

    def variants() -> Iterator[Variant]:
        for budget in density:
            search = reparam.learned_n_of_m(
                m,
                target=budget,
                weight=weight,
                scope=inside,
                steps_per_epoch=lab.per_epoch,
            )
            run = lab.run(f"sls {percent(budget)}", density=budget, uniform=False)
            yield Variant(run, search, tx)
            if uniform:
                n = max(int(budget * m), 1)
                run = lab.run(f"uniform {n}:{m}", density=budget, uniform=True)
                yield Variant(run, through_n_of_m(n, m, inside), tx)

    yield from reparameterized(
        lab, variants(), epochs=epochs, start=dense[:2], extra=layer_sparsities
    )


def sr_ste(
    lab: Lab,
    *,
    pairs: tuple[tuple[int, int], ...],
    strengths: tuple[float, ...],
    epochs: int,
    lr: Rate,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """SR-STE: N:M at every step, the pruned weights held small.

    Args:
      lab: the shared part.
      pairs: of n and m.
      strengths: of the decay of pruned weights; 0 is the plain straight-through mask.
      epochs: length of each run.
      lr: see `schedules.learning_rate`.
      momentum: of heavy ball.
      weight_decay: of all leaves.
    """
    rate = learning_rate(lr, epochs * lab.per_epoch)
    shapes, _ = jax.eval_shape(lab.init)

    def variants(n: int, m: int, scope: Any) -> Iterator[Variant]:
        for strength in strengths:
            label = f"sr-ste {strength:g}, {n}:{m}" if strength else f"ste {n}:{m}"
            tx = transforms.sr_ste(
                rate,
                n,
                m,
                scope=scope,
                strength=strength,
                weight_decay=weight_decay,
                momentum=momentum,
            )
            run = lab.run(label, pairs=(n, m), strengths=strength)
            yield Variant(run, through_n_of_m(n, m, scope), tx)

    for n, m in pairs:
        scope = eligible(shapes, m)
        yield from reparameterized(
            lab,
            variants(n, m, scope),
            epochs=epochs,
            extra=lambda done, n=n, m=m: stored(done.params, n, m),
        )


def through_n_of_m(n: int, m: int, scope: Any) -> reparam.Reparam:
    """Dense weights, of which the network sees n of each m."""
    return reparam.straight_through(lambda p: masks.n_of_m(p, n, m, scope=scope))


def eligible(params: Any, m: int) -> Any:
    """The kernels whose contracted axis m divides, as a scope."""
    return jax.tree.map(
        lambda on, p: bool(on and p.shape[-2] % m == 0), masks.prunable(params), params
    )


def stored(params: Any, n: int, m: int) -> dict[str, float]:
    """Bytes of the packed kernels over the dense ones; packing refuses other ones."""
    packed = compress.pack_n_of_m(params, n, m, scope=eligible(params, m))
    leaves = jax.tree.leaves(packed, is_leaf=_is_packed)
    mine = [leaf for leaf in leaves if _is_packed(leaf)]
    share = sum(x.nbytes for x in mine) / sum(x.dense_nbytes for x in mine)
    return {"bytes of the N:M kernels": share}


def _is_packed(x: Any) -> bool:
    return hasattr(x, "dense_nbytes")


def decayed(
    weight_decay: float, scope: Callable[[Any], Any] = masks.prunable
) -> optax.GradientTransformation:
    """Coupled decay of the kernels of theta, before momentum."""
    return optax.add_decayed_weights(weight_decay, mask=scope)


def layer_sparsities(done: Exported) -> dict[str, float]:
    """The sparsity of each leaf that the mask covers, by the name of its layer."""
    pairs = jax.tree_util.tree_leaves_with_path(done.mask)
    return {
        jax.tree_util.keystr(path[:1], simple=True): 1 - float(leaf.mean())
        for path, leaf in pairs
        if leaf.ndim
    }


def predicted(theta: Any) -> float:
    """The sparsity that a Gaussian would have under these thresholds."""
    sizes = {
        name: masks.size(theta.weights, scope=f"^{name}$") for name in theta.thresholds
    }
    left = sum(
        float(erfc(x / 2**0.5)) * sizes[name] for name, x in theta.thresholds.items()
    )
    return 1 - left / sum(sizes.values())


def _weights(theta: Any) -> Any:
    """The kernels of the weights, no priority: what decays."""
    if hasattr(theta, "priorities"):
        nothing = jax.tree.map(lambda _: False, theta)
        return nothing._replace(weights=masks.prunable(theta.weights))
    return masks.prunable(theta)
