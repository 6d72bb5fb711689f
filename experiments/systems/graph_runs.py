"""A graph convolutional network on one citation graph: what all of its runs share.

Every run sees all training nodes in every step. All seeds train side by side.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import lanes
from experiments.config import Config, ConfigError
from experiments.data import graphs
from experiments.lanes import Fit, Lanes
from experiments.models import sparse_gcn
from experiments.results import Row
from jprune import masks

DATA = {name: partial(graphs.load_graph, name) for name in ("cora", "citeseer")}
CHUNK = 20
"""Steps in one compiled call."""


def _gcn(classes: int, hidden: int) -> Any:
    from experiments.models import gcn  # jraph comes with the extra `data`

    return gcn.GCN(classes, hidden)


MODELS = {"gcn": _gcn}


def open_graph(
    config: Config,
    *,
    seed: int,
    data_dir: str | None,
    journal: Any,
    checkpoints: Callable[[str], Any],
    prefix: str,
    seeds: int,
    hidden: int,
    validation: int,
) -> Lanes:
    """One citation graph on the device and the network beside it.

    Args:
      config: the configuration.
      seed: of the first lane; the others count on from it.
      data_dir: where the data set is.
      journal: log and progress.
      checkpoints: opens the checkpoints of one run.
      prefix: put before the names of the runs.
      seeds: how many lanes.
      hidden: width of the hidden layer.
      validation: so many nodes behind the training nodes, to choose settings by.

    Raises:
      ConfigError: if the steps of a run or the nodes for validation do not fit.
      DataError: if the data is not there.
    """
    data = DATA[config.data](data_dir)
    model = MODELS[config.model](data.classes, hidden)

    def network(params: Any, graph: Any, index: jax.Array, key: Any) -> jax.Array:
        whole, near = graph
        used = whole if key is None else near  # a key says that this is training
        return sparse_gcn.logits(params, used, key)[index]

    whole = sparse_gcn.from_jraph(data.inputs)

    last = int(data.train.max()) + 1
    behind = np.arange(last, last + validation)
    free = np.setdiff1d(np.arange(last, len(data.labels)), data.test)
    if not np.isin(behind, free).all():
        raise ConfigError(
            f"`setup.validation` is {validation}: behind the training nodes there are "
            f"{np.isin(behind, free).sum()} that are no test nodes."
        )
    for name, run in {"dense": config.dense, **config.runs}.items():
        if run.get("steps", 0) % CHUNK:
            raise ConfigError(
                f"`{name}.steps` is {run['steps']}: it must be a multiple of {CHUNK}, "
                "the steps of one compiled call."
            )
    return Lanes(
        network=network,
        init=lambda key: model.init(key, data.inputs)["params"],
        data=(whole, sparse_gcn.around(whole, data.train)),
        labels=jnp.asarray(data.labels),
        splits={
            "train": data.train,
            "validation": behind,
            "test": data.test,
        },
        seeds=tuple(range(seed, seed + seeds)),
        batch=0,
        per_epoch=CHUNK,
        journal=journal,
        checkpoints=checkpoints,
        config=config,
        prefix=prefix,
    )


def adam(lr: optax.ScalarOrSchedule, weight_decay: float, *last: Any) -> Any:
    """Adam with coupled decay, as the network's authors train it; then `last`."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=masks.prunable),
        optax.adam(lr),
        *last,
    )


def fit(shared: Lanes, program: Any, run: str, steps: int, **given: Any) -> Fit:
    return lanes.fit(shared, program, run, steps // CHUNK, log_every=5, **given)


def size(params: Any) -> int:
    return masks.size(lanes.lane(params, 0))


def validated(shared: Lanes, params: Any) -> dict[str, float]:
    return {"validation": float(shared.accuracy(params, "validation").mean())}


def train_dense(
    shared: Lanes, *, steps: int, lr: float, weight_decay: float
) -> tuple[Fit, list[Row]]:
    """Adam on all training nodes.

    Args:
      shared: the shared part.
      steps: length of the run.
      lr: constant.
      weight_decay: coupled.
    """
    program = lanes.compile_program(shared, lambda _: adam(lr, weight_decay))
    done = fit(shared, program, "dense", steps)
    row = lanes.row(
        shared,
        done.params,
        run="dense",
        method="dense",
        kept=size(done.params),
        seconds=done.seconds,
        extra=validated(shared, done.params),
    )
    return done, [row]


def sparse_row(shared: Lanes, done: Fit, share: float, *, run: str, method: str) -> Row:
    """The row of a run that is sparse before it ends."""
    return lanes.row(
        shared,
        done.params,
        run=run,
        method=method,
        kept=masks.kept_count(size(done.params), share),
        seconds=done.seconds,
        extra=validated(shared, done.params),
    )
