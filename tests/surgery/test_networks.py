"""Every network: its minima hold, and the compact model equals the zeroed dense one.

Bounds: float64 1e-10 everywhere; float32 1e-5 in eval mode, 1e-3 in train mode (batch
norm over a handful of values amplifies rounding).
"""

import jax
import numpy as np
import pytest

from jprune import surgery
from tests.surgery.flax_nets import FLAX_NETS, VGG_NET
from tests.surgery.nets import Net, total
from tests.surgery.other_nets import OTHER_NETS
from tests.surgery.proof import (
    cast,
    coupled,
    difference,
    errors,
    other_batch_and_ensemble,
    random_plan,
    reached,
    training_plan,
)
from tests.surgery.sequence_nets import SEQUENCE_NETS

NETS = FLAX_NETS + SEQUENCE_NETS + OTHER_NETS
TRAINED = tuple(net for net in NETS if net.train)
every = pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


@every
def test_minima_and_equality_in_float64(net: Net):
    case = net.make()
    deps = surgery.groups(case.apply)(case.variables, *case.args)
    assert len(coupled(deps)) >= net.groups, deps.table()
    out_of_reach = total(case.variables) - reached(deps, case.variables)
    assert out_of_reach <= net.fixed, deps.table()
    plan = random_plan(deps)
    assert total(plan.pack(case.variables)) < total(case.variables)
    assert max(errors(case, plan)) <= 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("net", TRAINED, ids=lambda net: net.name)
def test_train_mode_in_float64(net: Net):
    """The training step has the groups of evaluation, and takes their plans."""
    case = net.make(train=True)
    deps = surgery.groups(case.apply)(case.variables, *case.args)
    assert len(coupled(deps)) >= net.groups, deps.table()
    assert max(errors(case, training_plan(net, case))) <= 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@every
def test_float32(net: Net, train: bool):
    if train and not net.train:
        pytest.skip("no train mode of its own")
    with jax.enable_x64(False):
        case = net.make(train=train)
        deps = surgery.groups(case.apply)(case.variables, *case.args)
        found = errors(case, random_plan(deps), np.float32)
    assert max(found) <= (1e-3 if train else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@every
def test_other_plans(net: Net, seed: int):
    case = net.make()
    deps = surgery.groups(case.apply)(case.variables, *case.args)
    assert max(errors(case, random_plan(deps, seed))) <= 1e-10


@pytest.mark.slow
@every
def test_other_batch_and_ensembles(net: Net):
    case = net.make()
    deps = surgery.groups(case.apply)(case.variables, *case.args)
    plan = random_plan(deps)
    assert other_batch_and_ensemble(net, case, plan) <= 1e-10


def test_the_proof_can_fail():
    """Against the dense network with nothing zeroed, the difference is plain."""
    case = VGG_NET.make()
    deps = surgery.groups(case.apply)(case.variables, *case.args)
    plan = random_plan(deps)
    small = surgery.shrink(case.apply, plan)
    found = jax.jit(small)(plan.pack(case.variables), *case.args)
    whole = jax.jit(case.apply)(case.variables, *case.args)
    assert difference(found, whole) > 0.1


def test_difference_can_fail():
    """The measure itself: a wrong leaf of small scale is seen."""
    for scale, want in ((0.1, 0.1), (1e-2, 0.05)):
        tree = {"a": np.array([1.0, 2.0]), "b": np.array([scale])}
        wrong = {"a": tree["a"], "b": np.array([1.1 * scale])}
        assert difference(tree, cast(tree, np.float64)) == 0.0
        assert np.isclose(difference(wrong, tree), want)
