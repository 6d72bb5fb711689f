"""What every method of one experiment shares: data on the device, network, mesh, test.

The arrays lie on the devices from the start. A batch is a slice of the epoch's order,
gathered inside the compiled step and sharded over the mesh; parameters are replicated.
The order of epoch e is a function of the seed and e alone, so a resumed run needs no
iterator state and an epoch has one shape whatever the length of the run.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from types import MappingProxyType
from typing import Any, NamedTuple
from zlib import crc32

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.config import Config, ConfigError
from experiments.data.dataset import Dataset
from experiments.journal import Journal

Forward = Callable[..., tuple[jax.Array, Any]]
"""`forward(params, stats, inputs, index, train=, key=)` -> logits, stats.

`stats` are the other variables (batch statistics), `index` which examples, logits are
[batch, classes].
"""

Augment = Callable[[jax.Array, jax.Array], jax.Array]
"""`augment(key, images)` -> images of the same shape."""

_EVAL_BATCH = 1000


class Run(NamedTuple):
    """One training run: what people read, and what makes it itself.

    Attributes:
      label: in table, log and progress.
      settings: all that it was made with, literals: its checkpoints and its random key
        are made of these, never of the label.
    """

    label: str
    settings: Mapping[str, Any]

    def then(self, stage: str) -> "Run":
        """The run that follows it: "tuned", "round 2"."""
        stages = [*self.settings.get("stages", ()), stage]
        return Run(f"{self.label} {stage}", {**self.settings, "stages": stages})

    @property
    def digest(self) -> str:
        """SHA-256 of the settings, in hexadecimal."""
        text = json.dumps(self.settings, sort_keys=True, default=str)
        return sha256(text.encode()).hexdigest()


class Lab(NamedTuple):
    """The shared part of one experiment.

    Attributes:
      config: the configuration.
      dataset: the data on the host.
      seed: of initialization, batch order and dropout.
      mesh: all devices, one axis "batch".
      inputs: the dataset's inputs, replicated on the devices.
      labels: [n] its labels, likewise.
      forward: the network as a pure function.
      logits: `logits(params, stats)`, the network on the test set, compiled once.
      batch: examples in a step.
      per_epoch: steps in an epoch; a last partial batch is dropped.
      per_dispatch: steps in one compiled call.
      init: `init()` -> parameters and statistics of this seed.
      journal: log and progress.
      checkpoints: opens the checkpoints of one run; see `experiments.checkpoints`.
      prefix: put before the names of its runs, where a job has several labs.
      settings: of the entry of the configuration that is being run.
    """

    config: Config
    dataset: Dataset
    seed: int
    mesh: Mesh
    inputs: Any
    labels: jax.Array
    forward: Forward
    logits: Callable[[Any, Any], jax.Array]
    batch: int
    per_epoch: int
    per_dispatch: int
    init: Callable[..., tuple[Any, Any]]
    journal: Journal
    checkpoints: Callable[[Run], Any]
    prefix: str = ""
    settings: Mapping[str, Any] = MappingProxyType({})

    @property
    def method(self) -> str:
        """The method that is being run, for its rows."""
        return self.settings.get("method", "")

    def run(self, label: str, **own: Any) -> Run:
        """A run of the entry's settings; `own` takes the place of what is swept."""
        return Run(label, {**self.settings, **own})

    def replicated(self, tree: Any) -> Any:
        """Host or device arrays, a whole copy on every device of the mesh."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def rebatched(self, batch: int, name: str = "batch") -> "Lab":
        """The same lab with other batches, for a run that wants its own.

        Raises:
          ConfigError: if the batch does not fit the training set or the devices.
        """
        _check_batch(batch, self.dataset, self.mesh, self.config.accumulate, name)
        per_epoch = len(self.dataset.train) // batch
        whole = self.per_dispatch == self.per_epoch
        return self._replace(
            batch=batch,
            per_epoch=per_epoch,
            per_dispatch=per_epoch if whole else self.per_dispatch,
        )

    def reseeded(self, seed: int) -> "Lab":
        """The same lab with the initialization and batch order of another seed."""
        return self._replace(seed=seed, init=partial(self.init, seed=seed))

    def count(self, number: int) -> jax.Array:
        """An integer as a traced hyper-parameter, int32."""
        return self.replicated(np.int32(number))

    def order(self, epoch: int) -> jax.Array:
        """Training examples of an epoch in their order, [per_epoch * batch] int32."""
        shuffle = np.random.default_rng([self.seed, epoch])
        train = shuffle.permutation(self.dataset.train)
        return self.replicated(train[: self.per_epoch * self.batch])

    def key(self, name: str | Run) -> jax.Array:
        """The random key of a run, or of another draw by its name."""
        if isinstance(name, Run):
            number = int(name.digest[:8], 16)
        else:
            number = crc32(name.encode())
        return jax.random.fold_in(jax.random.key(self.seed), number)


def make_lab(
    config: Config,
    dataset: Dataset,
    model: nn.Module,
    augment: Augment,
    *,
    seed: int,
    journal: Journal,
    checkpoints: Callable[[Run], Any],
    prefix: str = "",
) -> Lab:
    """Puts the data on the devices and the network beside it.

    Args:
      config: the configuration.
      dataset: the data on the host.
      model: a Flax module, `__call__(x, train=False)`.
      augment: `(key, images)` -> images, in training.
      seed: of everything random.
      journal: log and progress.
      checkpoints: opens the checkpoints of one run.
      prefix: put before the names of its runs.

    Raises:
      ConfigError: if the batch does not fit the training set or the devices.
    """
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), (AxisType.Auto,))
    batch = config.batch or len(dataset.train)
    _check_batch(batch, dataset, mesh, config.accumulate)
    inputs, labels = jax.device_put(
        (dataset.inputs, dataset.labels), NamedSharding(mesh, PartitionSpec())
    )
    init = partial(_init, model, dataset, mesh, seed=seed)
    forward = _forward(model, dataset, augment, mesh, jnp.dtype(config.compute))
    per_epoch = len(dataset.train) // batch
    return Lab(
        config=config,
        dataset=dataset,
        seed=seed,
        mesh=mesh,
        inputs=inputs,
        labels=labels,
        forward=forward,
        logits=test_logits(forward, dataset, inputs, mesh),
        batch=batch,
        per_epoch=per_epoch,
        per_dispatch=config.steps_per_dispatch or _dispatch(init, mesh, per_epoch),
        init=init,
        journal=journal,
        checkpoints=checkpoints,
        prefix=prefix,
    )


def test_logits(
    forward: Forward, dataset: Dataset, inputs: Any, mesh: Mesh
) -> Callable[[Any, Any], jax.Array]:
    """`logits(params, stats)` of the whole test set, [test, classes], not waited for.

    Args:
      forward: the network, dense or compact.
      dataset: whose test examples.
      inputs: its inputs on the devices.
      mesh: the devices; a chunk of test examples divides among them.
    """
    test = dataset.test
    devices = mesh.size
    chunk = min(-(-len(test) // devices) * devices, _EVAL_BATCH * devices)
    padded = np.resize(test, -(-len(test) // chunk) * chunk)
    everywhere = NamedSharding(mesh, PartitionSpec())
    chunks = [jax.device_put(part, everywhere) for part in padded.reshape(-1, chunk)]

    @partial(jax.jit, out_shardings=everywhere)
    def one(params: Any, stats: Any, inputs: Any, index: jax.Array) -> jax.Array:
        key = jax.random.key(0)  # nothing is random in evaluation
        return forward(params, stats, inputs, index, train=False, key=key)[0]

    def logits(params: Any, stats: Any) -> jax.Array:
        parts = [one(params, stats, inputs, index) for index in chunks]
        return jnp.concatenate(parts)[: len(test)]

    return logits


def _forward(
    model: nn.Module, dataset: Dataset, augment: Augment, mesh: Mesh, compute: Any
) -> Forward:
    """A Flax module as a pure function of the whole inputs and an index.

    `augmented` is whether the examples are changed at random; None as in `train`. The
    network computes in the data type `compute`; logits and statistics do not change
    theirs.
    """
    sharded = NamedSharding(mesh, PartitionSpec("batch"))

    def examples(inputs: jax.Array, index: jax.Array, train: bool, key: jax.Array):
        index = jax.lax.with_sharding_constraint(index, sharded)
        x = inputs[index].astype(jnp.float32)
        x = (x - _by_channel(dataset.mean, x)) / _by_channel(dataset.std, x)
        return augment(key, x) if train else x

    def cast(tree: Any) -> Any:
        return tree if compute == jnp.float32 else optax.tree.cast(tree, compute)

    def forward(
        params, stats, inputs, index, *, train: bool, key: jax.Array, augmented=None
    ):
        nodes = dataset.kind == "nodes"
        changed = train if augmented is None else augmented
        x = inputs if nodes else cast(examples(inputs, index, changed, key))
        variables, before = {"params": cast(params), **stats}, stats
        logits: Any
        if train:
            logits, stats = model.apply(
                variables,
                x,
                train=True,
                rngs={"dropout": key},
                mutable=list(stats),
            )
        else:
            logits = model.apply(variables, x)
        if compute != jnp.float32:
            logits = logits.astype(jnp.float32)
            stats = jax.tree.map(lambda new, old: new.astype(old.dtype), stats, before)
        return (logits[index] if nodes else logits), stats

    return forward


def _by_channel(moment: Any, x: jax.Array) -> Any:
    """A scalar as it is; one number a channel with the rank of the images."""
    lead = (1,) * (x.ndim - np.ndim(moment))
    return np.reshape(moment, lead + np.shape(moment)) if np.ndim(moment) else moment


def _init(model: nn.Module, dataset: Dataset, mesh: Mesh, *, seed: int):
    """Parameters and other variables, initialized in one compiled call.

    The generator is XLA's own: many small kernels compile three times faster with it
    than with JAX's default, which costs seconds on CPU.
    """

    @partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def build(key: jax.Array, x: Any):
        variables = dict(model.init(key, x))
        return variables.pop("params"), variables

    nodes = dataset.kind == "nodes"
    x = dataset.inputs if nodes else np.zeros_like(dataset.inputs[:1], np.float32)
    return build(jax.random.key(seed, impl="rbg"), x)


def _dispatch(init: Callable[[], Any], mesh: Mesh, per_epoch: int) -> int:
    """An epoch in one call, except for convolutions on CPU."""
    params, _ = jax.eval_shape(init)
    convolves = any(leaf.ndim > 2 for leaf in jax.tree.leaves(params))
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return 1 if convolves and on_cpu else per_epoch


def _check_batch(
    batch: int, dataset: Dataset, mesh: Mesh, parts: int, name: str = "batch"
) -> None:
    if not 0 < batch <= len(dataset.train):
        raise ConfigError(
            f"`{name}` is {batch}: {dataset.name} has {len(dataset.train)} training "
            "examples."
        )
    each = mesh.size * parts
    if dataset.kind == "examples" and batch % each:
        among = f"{mesh.size} devices" + f" and {parts} parts" * (parts > 1)
        raise ConfigError(
            f"`{name}` is {batch}: it must divide among {among}, e.g. "
            f"{max(batch // each, 1) * each}."
        )
