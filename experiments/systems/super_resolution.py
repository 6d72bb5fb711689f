"""Pruning a network that enlarges images, from a random start; PSNR beside bicubic.

Every run has the same number of steps on the same patches in the same order, and Adam
with the same rate. `after` of a row is the PSNR on Set5 in hundredths, so that the
table's percent read as dB; both sets stand in `extra`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import lanes, stopping
from experiments.checkpoints import Saved
from experiments.config import Config
from experiments.data import super_resolution as images
from experiments.loop import Diverged, bad_leaf
from experiments.methods.removal import kernels
from experiments.models.edsr import EDSR
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import drops
from experiments.systems.runner import Runner
from jprune import masks, reparam, transforms

DATA = {"t91": "T91"}
TESTS = ("Set5", "Set14")
SAVE_EVERY = 250
"""Steps between two checkpoints and two lines of the log."""


class Bench(NamedTuple):
    """What every run shares.

    Attributes:
      config: the configuration.
      network: `network(params, small)` -> large, [batch, height, width, 1].
      init: `init()` -> parameters of this seed.
      small: [patches, side, side] what is trained on.
      large: [patches, scale side, scale side] what it should become.
      tests: pairs of images by the name of their set.
      scale: by how much the network enlarges.
      batch: patches in a step.
      steps: of every run.
      rate: the schedule of every run.
      seed: of initialization and order.
      journal: log and progress.
      checkpoints: opens the checkpoints of one run.
      prefix: put before the names of the runs.
    """

    config: Config
    network: Callable[[Any, jax.Array], Any]
    init: Callable[[], Any]
    small: jax.Array
    large: jax.Array
    tests: dict[str, list[images.Pair]]
    scale: int
    batch: int
    steps: int
    rate: optax.Schedule
    seed: int
    journal: Any
    checkpoints: Callable[[str], Any]
    prefix: str

    def quality(self, params: Any) -> dict[str, float]:
        """Mean PSNR in dB of each test set."""
        return {
            f"{name} dB": quality(partial(self.network, params), pairs, self.scale)
            for name, pairs in self.tests.items()
        }


def open_images(
    config: Config,
    *,
    seed: int,
    data_dir: str | None,
    journal: Any,
    checkpoints: Callable[[str], Any],
    prefix: str,
    scale: int,
    channels: int,
    blocks: int,
    side: int,
    stride: int,
    steps: int,
    lr: float,
    drops_at: tuple[float, ...],
) -> Bench:
    """Patches on the device, the test images on the host, the network beside them.

    Args:
      config: the configuration.
      seed: of initialization and order.
      data_dir: where the sets are.
      journal: log and progress.
      checkpoints: opens the checkpoints of one run.
      prefix: put before the names of the runs.
      scale: by how much to enlarge.
      channels: of the network.
      blocks: of the network.
      side: of a small patch, in pixels.
      stride: between two small patches.
      steps: of every run.
      lr: of Adam.
      drops_at: shares of a run at which it falls to a fifth.

    Raises:
      DataError: if the images are not there.
    """
    train = images.load_set(DATA[config.data], scale, data_dir)
    small, large = images.patches(train, side, stride)
    model = MODELS[config.model](channels, blocks, scale)

    def network(params: Any, x: jax.Array) -> Any:
        return model.apply({"params": params}, x)

    def init() -> Any:
        make = jax.jit(model.init)
        return make(jax.random.key(seed), jnp.zeros((1, side, side, 1)))["params"]

    return Bench(
        config=config,
        network=jax.jit(network),
        init=init,
        small=jnp.asarray(small),
        large=jnp.asarray(large),
        tests={name: images.load_set(name, scale, data_dir) for name in TESTS},
        scale=scale,
        batch=config.batch,
        steps=steps,
        rate=drops(lr, steps, drops_at, 0.2),
        seed=seed,
        journal=journal,
        checkpoints=checkpoints,
        prefix=prefix,
    )


MODELS = {"edsr": EDSR}


def quality(
    enlarge: Callable[..., Any], pairs: Sequence[images.Pair], scale: int
) -> float:
    """Mean PSNR in dB over a set, without a border of `scale` pixels."""
    found = []
    for _, small, large in pairs:
        made = np.asarray(enlarge(small[None, :, :, None]))[0, :, :, 0]
        found.append(images.psnr(made, large, scale))
    return float(np.mean(found))


def bicubic(scale: int, small: np.ndarray) -> np.ndarray:
    """What `quality` takes, for the plain enlargement."""
    height, width = (scale * side for side in small.shape[1:3])
    return images.resize(small[0, :, :, 0], height, width)[None, :, :, None]


class State(NamedTuple):
    """All that training changes; what a checkpoint holds."""

    step: jax.Array
    params: Any
    opt: Any


class Fit(NamedTuple):
    """A finished run: its parameters (or theta) and wall seconds."""

    params: Any
    seconds: float


def fit(
    bench: Bench,
    tx: optax.GradientTransformation,
    run: str,
    *,
    start: Any = None,
    r: reparam.Reparam | None = None,
) -> Fit:
    """Trains with the mean absolute error; one step a call, as suits XLA on CPU.

    Args:
      bench: the shared part.
      tx: the optimizer.
      run: name in the log and of the checkpoints.
      start: parameters to start from; None for the seed's own.
      r: a reparameterization; what is trained is then its theta.

    Raises:
      Diverged: when the loss or a weight is no longer finite.
      Stopped: if the job was asked to leave; what was done is saved.
    """
    clock = time.perf_counter()

    def loss_fn(theta: Any, small: jax.Array, large: jax.Array) -> jax.Array:
        params = r.apply(theta) if r else theta
        error = bench.network(params, small[..., None])[..., 0] - large
        return jnp.abs(error).mean() + (r.penalty(theta) if r else 0.0)

    @partial(jax.jit, donate_argnums=0)
    def advance(state: State, small: jax.Array, large: jax.Array):
        index = draw(jax.random.key(bench.seed), state.step, len(small), bench.batch)
        batch = turned(index[1], small[index[0]]), turned(index[1], large[index[0]])
        loss, grads = jax.value_and_grad(loss_fn)(state.params, *batch)
        updates, opt = tx.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, opt), loss

    params = bench.init() if start is None else start
    params = jax.tree.map(jnp.copy, r.init(params) if r else params)
    opt = jax.tree.map(jnp.copy, tx.init(params))  # no buffer twice: it is donated
    state, zero = State(jnp.int32(0), params, opt), jnp.zeros(())
    with bench.checkpoints(run) as keeper:
        found = keeper.restore(state, zero) or Saved(0, state, zero, 0.0)
        done, state, _, earlier = found
        if done < bench.steps and stopping.wanted():
            raise stopping.Stopped(f"asked to leave before run `{run}`")
        bench.journal.begin(run, bench.steps, done)
        for step in range(done + 1, bench.steps + 1):
            state, loss = advance(state, bench.small, bench.large)
            leave = step != bench.steps and stopping.wanted()
            if step % SAVE_EVERY and step != bench.steps and not leave:
                continue
            bad = bad_leaf(state.params) if np.isfinite(float(loss)) else "its loss"
            if bad:
                raise Diverged(
                    f"`{run}` diverged before step {step}: {bad} is not finite."
                )
            bench.journal.write({"run": run, "step": step, "loss": float(loss)})
            keeper.save(Saved(step, state, zero, earlier + time.perf_counter() - clock))
            if leave:
                raise stopping.Stopped(f"asked to leave in run `{run}`")
    bench.journal.end()
    passed = time.perf_counter() - clock if done < bench.steps else 0.0
    return Fit(state.params, earlier + passed)


def draw(key: jax.Array, step: Any, count: int, batch: int) -> tuple[Any, Any]:
    """Which patches step `step` sees, and whether each is mirrored and transposed."""
    which, how = jax.random.split(jax.random.fold_in(key, step))
    index = jax.random.randint(which, (batch,), 0, count)
    return index, jax.random.bernoulli(how, shape=(2, batch, 1, 1))


def turned(how: jax.Array, patches: jax.Array) -> jax.Array:
    """Each patch mirrored, transposed, both or neither."""
    mirrored = jnp.where(how[0], patches[:, :, ::-1], patches)
    return jnp.where(how[1], mirrored.transpose(0, 2, 1), mirrored)


def _row(
    bench: Bench, params: Any, *, run: str, method: str, kept: int, seconds: float
) -> Row:
    size, found = masks.size(params), bench.quality(params)
    left = lanes.nonzero(params)
    return Row(
        run=run,
        method=method,
        asked=1 - kept / size,
        got=1 - left / size,
        kept=kept,
        nonzero=left,
        after=found["Set5 dB"] / 100,
        seconds=seconds,
        extra=found,
    )


def train_dense(bench: Bench) -> tuple[Fit, list[Row]]:
    """Adam on everything; before it the row of bicubic enlargement."""
    plain = partial(bicubic, bench.scale)
    found = {
        f"{name} dB": quality(plain, pairs, bench.scale)
        for name, pairs in bench.tests.items()
    }
    first = Row("bicubic", "bicubic", 0, 0, 0, 0, found["Set5 dB"] / 100, extra=found)
    done = fit(bench, optax.adam(bench.rate, b2=0.99), "dense")
    size = masks.size(done.params)
    dense = _row(
        bench,
        done.params,
        run="dense",
        method="dense",
        kept=size,
        seconds=done.seconds,
    )
    return done, [first, dense]


def per_layer(params: Any, share: float) -> int:
    """How many weights stay when each kernel loses ceil(share n), at most 0.995 n."""
    sizes = [x.size for x in kernels(params)]
    low = [min(int(np.ceil(share * n - 1e-9)), int(0.995 * n)) for n in sizes]
    return sum(sizes) - sum(low)


def one_shot(bench: Bench, dense: Fit, *, sparsity: float) -> Iterator[Row]:
    """The largest initial weights of each kernel, trained on under that mask; then the
    largest of the dense network, not trained.

    Args:
      bench: the shared part.
      dense: the dense run.
      sparsity: of every kernel.
    """
    first = bench.init()
    kept = per_layer(first, sparsity)
    mask = smallest_gone(first, sparsity)
    tx = optax.chain(optax.adam(bench.rate, b2=0.99), transforms.keep_masked(mask))
    run = f"one-shot at the start {percent(sparsity)}"
    done = fit(bench, tx, run, start=masks.apply(mask, first))
    make = partial(_row, bench, method="one_shot", kept=kept)
    yield make(done.params, run=run, seconds=done.seconds)
    cut = masks.apply(smallest_gone(dense.params, sparsity), dense.params)
    yield make(cut, run=f"one-shot at the end {percent(sparsity)}", seconds=0.0)


def smallest_gone(params: Any, sparsity: float) -> Any:
    """The mask whose kernels have each lost as many as `per_layer` says."""

    def one(leaf: jax.Array, on: bool) -> Any:
        if not on:
            return jnp.ones((), bool)
        keep = per_layer({"kernel": leaf}, sparsity)
        return masks.unstructured({"kernel": leaf}, keep=keep)["kernel"]

    return jax.tree.map(one, params, masks.prunable(params))


def gradual(
    bench: Bench, dense: Fit, *, sparsity: float, end: float, every: int
) -> Iterator[Row]:
    """Gradual magnitude pruning of every kernel, from the random start.

    Args:
      bench: the shared part.
      dense: unused.
      sparsity: of every kernel.
      end: share of the run after which the mask stands still.
      every: steps between two removals.
    """
    del dense
    params = bench.init()
    share = jax.tree.map(
        lambda leaf, on: (
            1 - per_layer({"kernel": leaf}, sparsity) / leaf.size if on else 0.0
        ),
        params,
        masks.prunable(params),
    )
    tx = optax.chain(
        optax.adam(bench.rate, b2=0.99),
        transforms.prune_gradually(share, end=round(end * bench.steps), every=every),
    )
    run = f"gradual {percent(sparsity)}"
    done = fit(bench, tx, run)
    kept = per_layer(params, sparsity)
    yield _row(
        bench, done.params, run=run, method="gradual", kept=kept, seconds=done.seconds
    )


def issp(
    bench: Bench, dense: Fit, *, sparsity: float, factors: tuple[float, ...], end: float
) -> Iterator[Row]:
    """ISS-P from the random start, one run for each factor.

    Args:
      bench: the shared part.
      dense: unused.
      sparsity: of every kernel.
      factors: what low weights are multiplied by; 0 is hard thresholding (IHT).
      end: share of the run after which the low set is zero.
    """
    del dense
    for factor in factors:
        tx = transforms.issp(
            bench.rate, sparsity=sparsity, factor=factor, end=round(end * bench.steps)
        )
        run = f"{f'ISS-P {factor:g},' if factor else 'IHT'} {percent(sparsity)}"
        done = fit(bench, tx, run)
        kept = per_layer(done.params, sparsity)
        yield _row(
            bench, done.params, run=run, method="issp", kept=kept, seconds=done.seconds
        )


def issr(
    bench: Bench,
    dense: Fit,
    *,
    sparsity: float,
    increment: float,
    every: int,
    limit: float,
    end: float,
) -> Iterator[Row]:
    """ISS-R from the random start.

    Args:
      bench: the shared part.
      dense: unused.
      sparsity: of every kernel.
      increment: by which the decay of a low weight grows.
      every: steps between two growths.
      limit: of the decay.
      end: share of the run after which the low set is zero at the latest.
    """
    del dense
    tx = transforms.issr(
        bench.rate,
        sparsity=sparsity,
        increment=increment,
        every=every,
        limit=limit,
        end=round(end * bench.steps),
    )
    run = f"ISS-R {percent(sparsity)}"
    done = fit(bench, tx, run)
    kept = per_layer(done.params, sparsity)
    yield _row(
        bench, done.params, run=run, method="issr", kept=kept, seconds=done.seconds
    )


def n_of_m(
    bench: Bench,
    dense: Fit,
    *,
    m: int,
    n: int,
    weight: float,
    search_epoch: int,
) -> Iterator[Row]:
    """SLS from the dense network against the same N in every layer, at equal cost.

    Every convolution in scope works on the small image, so that its cost is its weights
    times the same number of pixels. Head and tail stay dense, as in the paper.

    Args:
      bench: the shared part.
      dense: the dense run, from which both start.
      m: group length.
      n: of the uniform network; SLS gets the budget n / m.
      weight: of the relative cost.
      search_epoch: steps after which units are ranked anew and the penalty may grow.
    """
    scope = masks.prunable(dense.params, exclude="head|tail")
    total, inside = masks.size(dense.params), masks.size(dense.params, scope)
    choices = {
        f"SLS {percent(n / m)}": reparam.learned_n_of_m(
            m,
            target=n / m,
            weight=weight,
            scope=scope,
            steps_per_epoch=search_epoch,
        ),
        f"uniform {n}:{m}": reparam.straight_through(
            lambda p: masks.n_of_m(p, n, m, scope=scope)
        ),
    }
    for run, r in choices.items():
        tx = optax.chain(optax.adam(bench.rate, b2=0.99), reparam.projection(r))
        done = fit(bench, tx, run, start=dense.params, r=r)
        params, mask = jax.jit(r.export)(done.params)
        kept = total - inside + inside * n // m
        found = _row(
            bench, params, run=run, method="sls", kept=kept, seconds=done.seconds
        )
        each = {
            jax.tree_util.keystr(path[:1], simple=True): m * float(leaf.mean())
            for path, leaf in jax.tree_util.tree_leaves_with_path(mask)
            if leaf.ndim
        }
        yield found._replace(extra={**(found.extra or {}), **each})


RUNNER = Runner(
    open=open_images,
    dense=train_dense,
    methods={
        "gradual": gradual,
        "issp": issp,
        "issr": issr,
        "n_of_m": n_of_m,
        "one_shot": one_shot,
    },
    data=DATA,
    models=MODELS,
)
