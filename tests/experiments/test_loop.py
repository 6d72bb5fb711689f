"""The loop against a plain one, its dispatches, its one compilation, its resumption."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import results
from experiments.config import ConfigError
from experiments.data.dataset import Dataset
from experiments.lab import make_lab
from experiments.loop import compile_program, fit
from experiments.models.lenet import LeNet300


def momentum_sgd(_):
    return optax.sgd(0.1, 0.9)


def network(params: Any, x: Any) -> Any:
    return LeNet300().apply({"params": params}, x)


def plain_run(lab, epochs):
    """The same training in a plain Python loop on one device."""
    data = lab.dataset
    params, _ = jax.device_get(lab.init())
    tx = momentum_sgd(None)
    opt = tx.init(params)

    def loss_fn(params, x, y):
        logits = network(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    gradient, update = jax.jit(jax.value_and_grad(loss_fn)), jax.jit(tx.update)
    losses = []
    for epoch in range(epochs):
        order = np.random.default_rng([lab.seed, epoch]).permutation(data.train)
        for step in range(lab.per_epoch):
            at = order[step * lab.batch : (step + 1) * lab.batch]
            x = (data.inputs[at] - data.mean) / data.std
            loss, grads = gradient(params, x, data.labels[at])
            updates, opt = update(grads, opt, params)
            params = optax.apply_updates(params, updates)
            losses.append(float(loss))
    return params, losses


def close(a, b, tol=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tol, atol=tol)


def equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("dispatch", [0, 1])
def test_four_devices_train_as_a_plain_loop_does(dispatch, tmp_path, open_tiny):
    lab = open_tiny(tmp_path, steps_per_dispatch=dispatch, seed=3)
    assert lab.per_dispatch == (dispatch or lab.per_epoch) and lab.per_epoch == 2
    assert lab.mesh.size == 4
    done = fit(lab, compile_program(lab, momentum_sgd), lab.run("plain"), 2)
    params, losses = plain_run(lab, 2)
    close(done.params, params)
    log = results.history(tmp_path / "log.jsonl")["plain"]
    assert [e["step"] for e in log] == [2, 4]
    means = np.mean([losses[:2], losses[2:]], 1)
    np.testing.assert_allclose([e["loss"] for e in log], means, rtol=1e-5)
    logits = network(params, images_of_test(lab))
    right = np.mean(logits.argmax(-1) == lab.dataset.labels[lab.dataset.test])
    np.testing.assert_allclose(log[-1]["test_accuracy"], right, atol=1e-6)


@pytest.mark.slow
def test_a_dispatch_that_does_not_divide_the_epoch(tmp_path, open_tiny):
    one = open_tiny(tmp_path / "a", batch=280, steps_per_dispatch=1)
    three = open_tiny(tmp_path / "b", batch=280, steps_per_dispatch=3)
    assert one.per_epoch == 5
    runs = [
        fit(lab, compile_program(lab, momentum_sgd), lab.run("run"), 1)
        for lab in (one, three)
    ]
    close(runs[0].params, runs[1].params)


def images_of_test(lab):
    data = lab.dataset
    return (data.inputs[data.test] - data.mean) / data.std


def test_logits_are_those_of_the_test_set_in_order(tmp_path, open_tiny):
    lab = open_tiny(tmp_path)
    short = lab.dataset._replace(test=lab.dataset.test[:37])  # not a multiple of four
    lab = make_lab(
        lab.config,
        short,
        LeNet300(),
        lambda key, x: x,
        seed=0,
        journal=lab.journal,
        checkpoints=lab.checkpoints,
    )
    params, stats = lab.init()
    assert stats == {}
    expected = network(jax.device_get(params), images_of_test(lab))
    np.testing.assert_allclose(lab.logits(params, stats), expected, atol=1e-5)


def test_order_is_a_permutation_made_of_seed_and_epoch(tmp_path, open_tiny):
    lab, other = open_tiny(tmp_path / "a"), open_tiny(tmp_path / "b", seed=1)
    first = np.asarray(lab.order(0))
    assert len(first) == lab.per_epoch * lab.batch == len(set(first.tolist()))
    assert set(first.tolist()) <= set(lab.dataset.train.tolist())
    equal(first, lab.order(0))
    assert (first != np.asarray(lab.order(1))).any()
    assert (first != np.asarray(other.order(0))).any()


def test_a_run_may_have_batches_of_its_own(tmp_path, open_tiny):
    lab = open_tiny(tmp_path)
    other = lab.rebatched(356)
    assert (other.batch, other.per_epoch, other.per_dispatch) == (356, 4, 4)
    assert (lab.batch, lab.per_epoch) == (716, 2)
    done = fit(other, compile_program(other, momentum_sgd), other.run("run"), 1)
    params, _ = plain_run(other, 1)
    close(done.params, params)
    with pytest.raises(ConfigError, match="among 4 devices"):
        lab.rebatched(355)


def test_one_compiled_step_serves_every_hyper_parameter(tmp_path, open_tiny):
    lab = open_tiny(tmp_path)
    program = compile_program(lab, lambda rate: optax.sgd(rate, 0.9))
    slow, fast = (
        fit(
            lab,
            program,
            lab.run(f"rate {rate}"),
            1,
            hyper=lab.replicated(np.float32(rate)),
        )
        for rate in (0.0, 0.1)
    )
    assert program.advance._cache_size() == 1
    equal(slow.params, lab.init()[0])
    fixed = fit(lab, compile_program(lab, momentum_sgd), lab.run("fixed"), 1)
    close(fast.params, fixed.params, 1e-6)


@pytest.mark.slow
def test_an_epoch_logs_what_the_choice_would_remove(tmp_path, open_tiny):
    lab = open_tiny(tmp_path)

    def select(params, hyper):
        del hyper
        return jax.tree.map(lambda p: abs(p) > 0.05 if p.ndim > 1 else True, params)

    done = fit(
        lab, compile_program(lab, momentum_sgd, select=select), lab.run("run"), 2
    )
    kernels = [abs(np.asarray(p)) for p in jax.tree.leaves(done.params) if p.ndim > 1]
    flat = np.concatenate([k.ravel() for k in kernels])
    first, last = results.history(tmp_path / "log.jsonl")["run"]
    small = flat <= 0.05
    assert last["targeted_fraction"] == pytest.approx(small.mean(), abs=1e-6)
    assert last["largest_targeted"] == pytest.approx(flat[small].max(), rel=1e-6)
    assert last["sparsity"] == 0 < last["mask_churn"] < first["targeted_fraction"]


class Cut(Exception):
    """A power cut."""


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path, open_tiny):
    def transform(_):
        return optax.adam(optax.cosine_decay_schedule(1e-2, 8))

    whole = open_tiny(tmp_path / "whole", checkpoint_every=2)
    unbroken = fit(whole, compile_program(whole, transform), whole.run("run"), 4)

    lab = open_tiny(tmp_path / "cut", checkpoint_every=2)
    program, calls = compile_program(lab, transform), 0

    def until_the_third_epoch(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls > 2:
            raise Cut
        return program.advance(*args, **kwargs)

    with pytest.raises(Cut):
        fit(lab, program._replace(advance=until_the_third_epoch), lab.run("run"), 4)

    again = open_tiny(tmp_path / "cut", checkpoint_every=2, resume=True)
    resumed = fit(again, compile_program(again, transform), again.run("run"), 4)
    equal(resumed.params, unbroken.params)

    def never(*args, **kwargs):
        raise AssertionError("a finished run trains no more")

    once_more = compile_program(again, transform)._replace(advance=never)
    finished = fit(again, once_more, again.run("run"), 4)
    equal(finished.params, unbroken.params)
    assert finished.seconds == pytest.approx(resumed.seconds, rel=0.5)
    epochs = [
        [{k: v for k, v in e.items() if k != "seconds"} for e in runs["run"]]
        for runs in (
            results.history(tmp_path / "whole" / "log.jsonl"),
            results.history(tmp_path / "cut" / "log.jsonl"),
        )
    ]
    assert epochs[0] == epochs[1]


@pytest.mark.parametrize(
    ("batch", "message"),
    [(2000, "1437 training examples"), (-4, "1437"), (62, "among 4 devices, e.g. 60")],
)
def test_a_batch_that_does_not_fit(batch, message, tmp_path, open_tiny):
    with pytest.raises(ConfigError, match=message):
        open_tiny(tmp_path, batch=batch)


def test_convolutions_on_cpu_take_one_step_a_dispatch(tmp_path, open_tiny):
    assert open_tiny(tmp_path, model="digits_resnet").per_dispatch == 1


@pytest.mark.slow
def test_a_graph_trains_on_its_nodes(tmp_path, open_tiny, tiny):
    jraph = pytest.importorskip("jraph", reason="graphs need jraph")
    from experiments.models.gcn import GCN

    each = np.arange(6, dtype=np.int32)
    graph = jraph.GraphsTuple(
        nodes=np.eye(6, dtype=np.float32),
        edges=None,
        senders=each,
        receivers=each,
        globals=None,
        n_node=np.array([6], np.int32),
        n_edge=np.array([6], np.int32),
    )
    labels = np.array([0, 1, 0, 1, 0, 1], np.int32)
    data = Dataset(
        "six", graph, labels, each, each, 2, np.float32(0), np.float32(1), "nodes"
    )
    other = open_tiny(tmp_path)
    lab = make_lab(
        dataclasses.replace(tiny, batch=0),
        data,
        GCN(2, dropout=0.1),
        lambda key, x: x,
        seed=0,
        journal=other.journal,
        checkpoints=other.checkpoints,
    )
    assert lab.batch == 6 and lab.per_epoch == 1
    done = fit(
        lab, compile_program(lab, lambda _: optax.adam(0.1)), lab.run("graph"), 30
    )
    logits = lab.logits(done.params, done.stats)
    assert (jnp.argmax(logits, -1) == labels).all()
