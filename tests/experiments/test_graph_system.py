"""Pruning on graphs: against dense adjacency algebra, and every method's count."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import build, lanes
from experiments.checkpoints import Checkpoints
from experiments.config import Config, ConfigError
from experiments.data.dataset import Dataset
from experiments.journal import Journal
from experiments.lanes import Fit
from experiments.models import sparse_gcn
from experiments.systems import graph_runs, graph_sparse
from experiments.systems import graphs as system
from jprune import masks, surgery

jraph = pytest.importorskip("jraph", reason="graphs need jraph")

NODES, WORDS, CLASSES = 60, 30, 4


def _graph():
    """A random graph with self edges, and its D^-1/2 (A + I) D^-1/2, dense."""
    random = np.random.default_rng(0)
    near = random.random((NODES, NODES)) < 0.03
    near = (near | near.T) | np.eye(NODES, dtype=bool)
    receivers, senders = (x.astype(np.int32) for x in np.nonzero(near))
    shuffled = random.permutation(len(senders))
    features = (random.random((NODES, WORDS)) < 0.2).astype(np.float32)
    features /= np.maximum(features.sum(1, keepdims=True), 1)
    make: Any = jraph.GraphsTuple
    graph = make(
        nodes=features,
        edges=None,
        senders=senders[shuffled],
        receivers=receivers[shuffled],
        globals=None,
        n_node=np.array([NODES]),
        n_edge=np.array([len(senders)]),
    )
    root = np.diag(near.sum(1) ** -0.5)
    return graph, root @ near @ root, features


def _dataset(folder):
    del folder
    graph, _, features = _graph()
    labels = (features @ np.random.default_rng(1).normal(size=(WORDS, CLASSES))).argmax(
        1
    )
    index = np.arange(NODES, dtype=np.int32)
    return Dataset(
        "cora",
        graph,
        labels.astype(np.int32),
        index[:16],
        index[24:],
        CLASSES,
        np.float32(0),
        np.float32(1),
        kind="nodes",
    )


CONFIG = Config(
    runner="graphs",
    data="cora",
    model="gcn",
    batch=0,
    setup={"seeds": 2, "hidden": 6, "validation": 8},
    dense={"steps": 20, "lr": 0.01, "weight_decay": 5e-4},
    runs={},
)
SIZE = WORDS * 6 + 6 * CLASSES


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    with pytest.MonkeyPatch.context() as patch, Journal(folder) as journal:
        patch.setitem(system.DATA, "cora", _dataset)
        yield build.open_runner(
            CONFIG,
            seed=0,
            data_dir=None,
            journal=journal,
            checkpoints=lambda run: Checkpoints(
                folder / "keep" / run.replace(" ", "-"), resume=False, every=1
            ),
            prefix="",
        )


@pytest.fixture(scope="module")
def dense(opened):
    return system.train_dense(opened, **CONFIG.dense)[0]


def test_the_sparse_form_is_the_network_of_the_paper():
    graph, mix, features = _graph()
    model = system.MODELS["gcn"](CLASSES, 6)
    params = model.init(jax.random.key(0), graph)["params"]
    found = sparse_gcn.logits(params, sparse_gcn.from_jraph(graph))
    first, second = (np.asarray(params[f"Dense_{i}"]["kernel"]) for i in (0, 1))
    expected = mix @ np.maximum(mix @ features @ first, 0) @ second
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found, model.apply({"params": params}, graph), atol=1e-5)


def test_two_edges_around_some_nodes_are_all_they_need():
    graph, _, _ = _graph()
    whole = sparse_gcn.from_jraph(graph)
    params = system.MODELS["gcn"](CLASSES, 6).init(jax.random.key(0), graph)["params"]
    index = np.array([3, 17])
    near = sparse_gcn.around(whole, index)
    assert len(near.values) < len(whole.values) and len(near.senders) < len(
        whole.senders
    )
    wanted, found = (sparse_gcn.logits(params, g)[index] for g in (whole, near))
    np.testing.assert_array_equal(found, wanted)


def test_dropout_drops_the_same_share_and_keeps_the_mean():
    graph, _, _ = _graph()
    data = sparse_gcn.from_jraph(graph)
    params = system.MODELS["gcn"](CLASSES, 6).init(jax.random.key(0), graph)["params"]
    linear = jax.tree.map(jnp.abs, params)  # no unit is cut, so the mean is the output
    keys = jax.random.split(jax.random.key(1), 4000)
    drawn = jax.vmap(lambda key: sparse_gcn.logits(linear, data, key))(keys)
    plain = sparse_gcn.logits(linear, data)
    error = np.abs(np.asarray(drawn.mean(0) - plain)) / (
        np.asarray(drawn.std(0)) + 1e-9
    )
    assert error.max() < 5 / np.sqrt(len(keys))


def test_hidden_features_leave_through_segment_sum():
    graph, mix, features = _graph()
    data = sparse_gcn.from_jraph(graph)
    params = system.MODELS["gcn"](CLASSES, 6).init(jax.random.key(0), graph)["params"]

    def network(params, data):
        return sparse_gcn.logits(params, data)

    deps = surgery.groups(network)(params, data)
    (group,) = [g for g in deps if g.size == 6]
    kept = np.array([0, 2, 5])
    plan = surgery.plan_from_keep(deps, {group.id: kept})
    compact = plan.pack(params)
    assert masks.size(compact) == WORDS * 3 + 3 * CLASSES < masks.size(params)
    small = jax.jit(surgery.shrink(network, plan))(compact, data)
    zeroed = network(plan.zero(params), data)
    np.testing.assert_allclose(small, zeroed, atol=1e-6)
    first, second = (np.asarray(params[f"Dense_{i}"]["kernel"]) for i in (0, 1))
    expected = mix @ np.maximum(mix @ features @ first[:, kept], 0) @ second[kept]
    np.testing.assert_allclose(small, expected, atol=1e-5)
    assert surgery.verify(network, plan, params, data).ok


COMMON = {"sparsity": (0.5, 0.9), "steps": 20}
ADAM = {"lr": 0.01, "weight_decay": 5e-4}
SWD = {"momentum": 0.9, "mu": 5e-4, "a_min": 0.1, "a_max": 10.0}
FALL = {"lr": 0.1, "last_lr": 0.01}
METHODS = [
    ("one_shot", {"sparsity": (0.5, 0.9)}),
    ("gradual", {**COMMON, **ADAM, "end": 0.75, "every": 2}),
    ("snip", {**COMMON, **ADAM}),
    (
        "rigl",
        {**COMMON, **ADAM, "end": 0.75, "every": 5, "drop_fraction": 0.3},
    ),
    ("gsm", {**COMMON, **ADAM, "momentum": 0.9}),
    ("swd", {**COMMON, **SWD, **FALL, "decoupled": True, "schedule": "cosine"}),
    ("swd", {**COMMON, **SWD, **FALL, "decoupled": False, "schedule": "exponential"}),
]


QUICK = ("one_shot", "gradual", "rigl")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        pytest.param(*m, marks=[] if m[0] in QUICK else pytest.mark.slow)
        for m in METHODS
    ],
)
def test_every_method_keeps_what_it_says(name, settings, opened, dense):
    extra = {"dense_last": False} if name == "rigl" else {}
    rows = list(system.RUNNER.methods[name](opened, dense, **settings, **extra))
    for row, share in zip(rows, (0.5, 0.9), strict=True):
        assert row.nonzero == row.kept == SIZE - int(SIZE * share + 0.5), row.run
        assert set(row.extra) >= {"seed 0", "seed 1", "deviation", "validation"}


@pytest.mark.slow
def test_the_last_kernel_may_stay_whole(opened, dense):
    settings = dict(METHODS[3][1], sparsity=(0.8,), dense_last=True)
    (row,) = system.rigl(opened, dense, **settings)
    assert row.nonzero == row.kept == SIZE - int(SIZE * 0.8 + 0.5)
    part = graph_sparse._dense_last(lanes.lane(dense.params, 0), 0.8)
    assert part["Dense_1"]["kernel"] == 0
    assert part["Dense_0"]["kernel"] == 1 - (row.kept - 6 * CLASSES) / (WORDS * 6)


@pytest.mark.slow
def test_hidden_rows_are_compact(opened, dense):
    rows = list(system.hidden(opened, dense, keep=(3,), steps=20, **ADAM))
    assert [row.run for row in rows] == ["hidden 6 -> 3", "hidden 6 -> 3, tuned"]
    for row in rows:
        assert row.kept == WORDS * 3 + 3 * CLASSES and row.asked == row.got == 0.5
        assert row.extra["largest difference from the zeroed network"] < 1e-6


def test_one_program_serves_every_sparsity(opened, dense):
    traced = []

    def transform(keep):
        traced.append(keep)
        return graph_runs.adam(0.01, 0.0)

    program = lanes.compile_program(opened, transform)
    counts = []
    for keep in (3, 30, 300):
        lanes.fit(opened, program, f"keep {keep}", 1, hyper=jnp.int32(keep))
        counts.append(len(traced))
    assert counts[0] == counts[1] == counts[2]
    chex.assert_tree_all_finite(dense.params)


def test_an_unknown_schedule_is_named(opened, dense):
    settings = dict(METHODS[-1][1], schedule="linear")
    with pytest.raises(ConfigError, match="`schedule` is 'linear'"):
        next(iter(system.swd(opened, Fit(dense.params, None, 0.0), **settings)))
