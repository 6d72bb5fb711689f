"""LeNet-300-100 on MNIST, several seeds side by side, in the authors' own settings."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import lanes
from experiments.config import Config, ConfigError
from experiments.data import images
from experiments.lanes import Fit, Lanes
from experiments.methods.removal import kernels
from experiments.models.lenet import LeNet300
from experiments.results import Row
from experiments.rules import percent
from experiments.systems.runner import Runner
from jprune import at_init, masks, reparam, transforms

MODELS = {"lenet300": LeNet300}
DATA = {"mnist": images.load_mnist}


def open_mnist(
    config: Config,
    *,
    seed: int,
    data_dir: str | None,
    journal: Any,
    checkpoints: Callable[[str], Any],
    prefix: str,
    seeds: int,
    inputs: str,
    init: str,
    validation: int,
) -> Lanes:
    """MNIST on the device and the network beside it.

    Args:
      config: the configuration.
      seed: of the first lane; the others count on from it.
      data_dir: where the data set is.
      journal: log and progress.
      checkpoints: opens the checkpoints of one run.
      prefix: put before the names of the runs.
      seeds: how many lanes.
      inputs: "pixels" for value / 255, "standardized" for one mean and deviation.
      init: "he" for normal weights of variance 2 / fan-in, "lecun" for truncated normal
        ones of variance 1 / fan-in; biases are 0.
      validation: the last so many training images are "validation".

    Raises:
      ConfigError: another word for `inputs` or `init`, or a batch that is too large.
      DataError: if the data is not there.
    """
    for name, value, known in (
        ("inputs", inputs, ("pixels", "standardized")),
        ("init", init, ("he", "lecun")),
    ):
        if value not in known:
            raise ConfigError(f"`{name}` is {value!r}: one of {', '.join(known)}.")
    data = DATA[config.data](data_dir)
    mean, std = (0.0, 255.0) if inputs == "pixels" else (data.mean, data.std)
    model = MODELS[config.model](data.classes)
    train = data.train[: max(0, len(data.train) - validation)]
    if not 0 < config.batch <= len(train):
        raise ConfigError(
            f"`batch` is {config.batch}: {config.data} has {len(train)} training "
            f"examples, {validation} for validation left out."
        )

    def network(params: Any, pixels: jax.Array, index: jax.Array, key: Any):
        del key
        x = (pixels[index].astype(jnp.float32) - mean) / std
        return model.apply({"params": params}, x)

    def start(key: jax.Array) -> Any:
        params = model.init(key, jnp.zeros((1, *data.inputs.shape[1:])))["params"]
        return at_init.initialize(key, params, 2.0, 0.0) if init == "he" else params

    return Lanes(
        network=network,
        init=start,
        data=jnp.asarray(data.inputs),
        labels=jnp.asarray(data.labels),
        splits={
            "train": train,
            "validation": data.train[len(train) :],
            "test": data.test,
        },
        seeds=tuple(range(seed, seed + seeds)),
        batch=config.batch,
        per_epoch=len(train) // config.batch,
        journal=journal,
        checkpoints=checkpoints,
        config=config,
        prefix=prefix,
    )


def rate(lr: float, drops: tuple[int, ...], per_epoch: int, warmup: int):
    """A constant, a tenth of it after each of these epochs, after a linear warm-up."""
    falling = optax.piecewise_constant_schedule(lr, {e * per_epoch: 0.1 for e in drops})
    rise = max(warmup * per_epoch, 1)
    return lambda step: falling(step) * jnp.minimum(step / rise, 1.0)


def train_dense(
    shared: Lanes,
    *,
    epochs: int,
    lr: float,
    drops: tuple[int, ...],
    warmup: int,
    momentum: float,
    weight_decay: float,
) -> tuple[Fit | None, list[Row]]:
    """SGD with heavy ball; decay on the kernels alone. With 0 epochs there is none.

    Args:
      shared: the shared part.
      epochs: length of the run.
      lr: after the warm-up.
      drops: epochs at which it falls to a tenth.
      warmup: epochs in which it rises from 0.
      momentum: of heavy ball.
      weight_decay: coupled.
    """
    if not epochs:
        return None, []
    program = lanes.compile_program(
        shared,
        lambda _: optax.chain(
            optax.add_decayed_weights(weight_decay, mask=masks.prunable),
            optax.sgd(rate(lr, drops, shared.per_epoch, warmup), momentum),
        ),
    )
    done = lanes.fit(shared, program, "dense", epochs)
    size = masks.size(lanes.lane(done.params, 0))
    row = lanes.row(
        shared,
        done.params,
        run="dense",
        method="dense",
        kept=size,
        seconds=done.seconds,
    )
    return done, [row]


def gsm(
    shared: Lanes,
    dense: Fit,
    *,
    compression: int,
    epochs: int,
    lr: float,
    drops: tuple[int, ...],
    warmup: int,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    tickets: bool,
) -> Iterator[Row]:
    """GSM from the dense networks, its removal, and the winning-ticket experiment.

    floor(n / compression) weights are active in each step, n - floor(n (1 - 1 /
    compression)) are kept at the end: the authors' two counts.

    Args:
      shared: the shared part.
      dense: the dense run.
      compression: how many times fewer weights.
      epochs: length of the run.
      lr: after the warm-up.
      drops: epochs at which it falls to a tenth.
      warmup: epochs in which it rises from 0.
      momentum: of heavy ball.
      nesterov: whether it looks ahead.
      weight_decay: of the kernels.
      tickets: also train the initial weights under the mask of the largest weights of
        the dense network and under GSM's, with the settings of the dense run.
    """
    size = masks.size(lanes.lane(dense.params, 0))
    active = size // compression
    kept = size - int(size * (1 - Fraction(1, compression)))
    program = lanes.compile_program(
        shared,
        lambda _: transforms.gsm(
            rate(lr, drops, shared.per_epoch, warmup),
            keep=active,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
        ),
    )
    run = f"gsm {compression}x"
    done = lanes.fit(shared, program, run, epochs, start=dense.params)
    by_gsm, by_magnitude = (
        lanes.largest(done.params, kept),
        lanes.largest(dense.params, kept),
    )
    make = partial(lanes.row, shared, kept=kept)
    yield make(
        lanes.apply(by_gsm, done.params),
        run=run,
        method="gsm",
        before=done.params,
        seconds=done.seconds,
        extra={"active": active},
    )
    yield make(
        lanes.apply(by_magnitude, dense.params),
        run=f"one-shot {compression}x",
        method="one_shot",
        before=dense.params,
    )
    if tickets:
        yield from _tickets(
            shared, {"magnitude": by_magnitude, "GSM": by_gsm}, kept, compression
        )


def _tickets(shared: Lanes, found: dict[str, Any], kept: int, compression: int):
    """The initial weights under each mask, trained as the dense network was."""
    base = shared.config.dense
    program = lanes.compile_program(
        shared,
        lambda mask: optax.chain(
            optax.add_decayed_weights(base["weight_decay"], mask=masks.prunable),
            optax.sgd(
                rate(base["lr"], base["drops"], shared.per_epoch, base["warmup"]),
                base["momentum"],
            ),
            transforms.keep_masked(mask),
        ),
    )
    first = shared.first()
    for name, mask in found.items():
        run = f"ticket by {name} {compression}x"
        start, hyper = lanes.apply(mask, first), lanes.PerLane(mask)
        done = lanes.fit(shared, program, run, base["epochs"], start=start, hyper=hyper)
        yield lanes.row(
            shared,
            done.params,
            run=run,
            method="ticket",
            kept=kept,
            seconds=done.seconds,
        )


def powerprop(
    shared: Lanes,
    dense: Fit | None,
    *,
    alpha: tuple[float, ...],
    keep: tuple[float, ...],
    output: float,
    epochs: int,
    lr: float,
) -> Iterator[Row]:
    """One run for each power, plain SGD; rows for each share kept and each ranking.

    Args:
      shared: the shared part.
      dense: unused: alpha 1 is the ordinary network.
      alpha: the powers.
      keep: shares of the weights kept, in descending order; nothing is retrained.
      output: by how much denser the last layer stays, where each layer is cut alone.
      epochs: length of each run.
      lr: constant.
    """
    del dense
    first = shared.first()
    for power in alpha:
        r, run = reparam.powerpropagation(power), f"alpha {power:g}"
        program = lanes.compile_program(shared, lambda _: optax.sgd(lr), r=r)
        theta = jax.jit(jax.vmap(r.init))(first)
        done = lanes.fit(shared, program, run, epochs, start=theta)
        params = program.used(done.params)
        make = partial(lanes.row, shared, method="powerprop", seconds=done.seconds)
        size = masks.size(lanes.lane(params, 0))
        yield make(params, run=f"{run}, dense", kept=size)
        for share in keep:
            mask = inside_layers(params, share, output)
            kept = sum(kept_inside(lanes.lane(params, 0), share, output))
            yield make(
                lanes.apply(mask, params),
                run=f"{run}, {percent(share)} kept in each layer",
                kept=kept,
                extra={"overlap": overlap(inside_layers(first, share, output), mask)},
            )
            kept = masks.kept_count(size, 1 - share)
            mask = lanes.largest(params, kept)
            yield make(
                lanes.apply(mask, params),
                run=f"{run}, {percent(share)} kept of the network",
                kept=kept,
                extra={"overlap": overlap(lanes.largest(first, kept), mask)},
            )


def kept_inside(params: Any, share: float, output: float) -> list[int]:
    """int(share n) weights of each kernel; of the last one `output` times the share."""
    sizes = [leaf.size for leaf in kernels(params)]
    shares = [share] * (len(sizes) - 1) + [min(1.0, output * share)]
    return [int(Fraction(str(s)) * n) for s, n in zip(shares, sizes, strict=True)]


def inside_layers(params: Any, share: float, output: float) -> Any:
    """The largest weights of each kernel alone, as many as `kept_inside` says."""
    counts = iter(kept_inside(lanes.lane(params, 0), share, output))

    def one(leaf: jax.Array, on: bool) -> jax.Array:
        if not on:
            return jnp.ones(len(leaf), bool)  # a lane's mask is a 0-d True there
        keep = next(counts)
        return jax.vmap(lambda w: masks.unstructured({"w": w}, keep=keep)["w"])(leaf)

    return jax.tree.map(one, params, masks.prunable(lanes.lane(params, 0)))


def overlap(a: Any, b: Any) -> float:
    """Share of the covered weights on which two masks agree, over all lanes."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    same = [np.asarray(x == y).ravel() for x, y in pairs if x.ndim > 1]
    return float(np.concatenate(same).mean())


RUNNER = Runner(
    open=open_mnist,
    dense=train_dense,
    methods={"gsm": gsm, "powerprop": powerprop},
    data=DATA,
    models=MODELS,
)
