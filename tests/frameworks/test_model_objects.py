"""What `shrink` of a framework takes, `verify`, `recalibrate` and the measures take.

One network in every framework: linear 4 -> 8, batch norm, ReLU, linear 8 -> 3, on six
rows; half of the eight units go. By hand, 2 operations a multiply-add: dense
2 * 6 * (4 * 8 + 8 * 3) = 672, compact 336; the compact statistics are those of the
compact first layer's outputs, averaged over the batches.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import functools
import importlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import analysis, compress, surgery

ROWS, IN, WIDTH, OUT = 6, 4, 8, 3
DENSE_FLOPS = 2 * ROWS * WIDTH * (IN + OUT)
BATCHES = [
    jnp.asarray(np.random.default_rng(i).normal(1, 2, (ROWS, IN)), jnp.float32)
    for i in range(3)
]
X = BATCHES[0]


class Case(NamedTuple):
    """A model, its plan, its compact form; what each call takes beside them.

    Attributes:
      model: the dense object.
      plan: half of the units.
      small: the compact object.
      call: what stands before the input in a call of the dense one.
      packed: the same of the compact one.
      held: what holds the compact statistics; None for the object.
      training: keywords of a call in training mode, and the momentum.
      first: from the recalibrated thing to kernel, bias, mean and variance.
      tail: what stands after the input in a call.
      kind: its file in `jprune.frameworks`.
    """

    model: Any
    plan: Any
    small: Any
    call: tuple
    packed: tuple
    held: Any
    training: dict[str, Any]
    first: Any
    tail: tuple = ()
    packed_tail: tuple = ()
    x: Any = X
    kind: str = ""


def nnx_case() -> Case:
    from flax import nnx

    from jprune.frameworks import nnx as jnnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.Linear(IN, WIDTH, rngs=rngs)
            self.norm = nnx.BatchNorm(WIDTH, momentum=0.8, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)
            self.down = nnx.Linear(WIDTH, OUT, rngs=rngs)

        def __call__(self, x):
            return self.down(self.drop(nnx.relu(self.norm(self.up(x)))))

    model = Net(nnx.Rngs(0))
    model.eval()
    deps = jnnx.groups(model, X)
    plan = surgery.select(deps, deps.scores(nnx.state(model)), sparsity=0.5)
    small = jnnx.shrink(model, plan)

    def first(small):
        assert small.norm.use_running_average  # the modes are as they were
        up, norm = small.up, small.norm
        return up.kernel[...], up.bias[...], norm.mean[...], norm.var[...]

    return Case(model, plan, small, (), (), None, {}, first)


def linen_case() -> Case:
    from flax import linen as nn

    from jprune.frameworks import linen as jlinen

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool = False):
            h = nn.Dense(WIDTH, name="up")(x)
            h = nn.BatchNorm(not train, momentum=0.8, name="norm")(h)
            return nn.Dense(OUT)(nn.relu(h))

    model = Net()
    variables = model.init(jax.random.key(0), X)
    deps = jlinen.groups(model, variables, X)
    plan = surgery.select(deps, deps.scores(variables), sparsity=0.5)
    small, packed = jlinen.shrink(model, plan), plan.pack(variables)

    def first(packed):
        up, norm = packed["params"]["up"], packed["batch_stats"]["norm"]
        return up["kernel"], up["bias"], norm["mean"], norm["var"]

    training = {"momentum": 0.8, "train": True}
    return Case(model, plan, small, (variables,), (packed,), packed, training, first)


def equinox_case() -> Case:
    import equinox as eqx

    from jprune.frameworks import equinox as jeqx

    class Net(eqx.Module):
        up: Any
        norm: Any
        down: Any

        def __init__(self, key):
            self.up = eqx.nn.Linear(IN, WIDTH, key=key)
            self.norm = eqx.nn.BatchNorm(WIDTH, "batch", momentum=0.8, mode="batch")
            self.down = eqx.nn.Linear(WIDTH, OUT, key=key)

        def __call__(self, x, state):
            h, state = self.norm(self.up(x), state)
            return self.down(jax.nn.relu(h)), state

    model, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    for x in BATCHES[:2]:  # a counter that is not 0: what is stored is not the mean
        run = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        _, state = run(x, state)
    model = eqx.nn.inference_mode(model)
    deps = jeqx.groups(model, X[0], state)
    plan = surgery.select(deps, deps.scores((model, state)), sparsity=0.5)
    small, packed = jeqx.shrink(model, plan, state)

    def first(state):
        up, norm = small.packed.up, small.packed.norm
        flat = norm.bias * 0
        zero = norm(flat, state, inference=True)[0] - norm.bias  # -mean / sqrt(var)
        slope = norm(flat + 1, state, inference=True)[0] - norm.bias - zero
        return up.weight.T, up.bias, -zero / slope, 1 / slope**2 - 1e-5

    tail = (state,), (packed,)
    return Case(model, plan, small, (), (), packed, {}, first, *tail, x=X[0])


def haiku_case() -> Case:
    import haiku as hk

    from jprune.frameworks import haiku as jhk

    def net(x, is_training):
        h = hk.Linear(WIDTH, name="up")(x)
        h = hk.BatchNorm(True, True, 0.8, name="norm")(h, is_training)
        return hk.Linear(OUT)(jax.nn.relu(h))

    model = hk.transform_with_state(net)
    trees = model.init(jax.random.key(0), X, True)
    deps = jhk.groups(model, *trees, None, X, True)
    plan = surgery.select(deps, deps.scores(trees), sparsity=0.5)
    small, packed = jhk.shrink(model, plan), plan.pack(trees)

    def first(pair):
        params, state = pair
        up = params["up"]
        mean, var = (
            state[f"norm/~/{name}_ema"]["average"][0] for name in ("mean", "var")
        )
        return up["w"], up["b"], mean, var

    training = {"momentum": 0.8, "is_training": True}
    call, tail = (*trees, None), (False,)
    return Case(
        model, plan, small, call, (*packed, None), packed, training, first, tail, tail
    )


def keras_case() -> Case:
    import keras

    from jprune.frameworks import keras as jkeras

    model = keras.Sequential(
        [
            keras.Input((IN,)),
            keras.layers.Dense(WIDTH),
            keras.layers.BatchNormalization(momentum=0.8),
            keras.layers.ReLU(),
            keras.layers.Dense(OUT),
        ]
    )
    deps = jkeras.groups(model, X)
    plan = surgery.select(deps, deps.scores(jkeras.named(model)), sparsity=0.5)
    small = jkeras.shrink(model, plan)

    def first(small):
        named = jkeras.named(small)
        return [named[path] for path in named if "kernel" in path][:1] + [
            next(named[path] for path in named if name in path)
            for name in ("bias", "moving_mean", "moving_variance")
        ]

    return Case(model, plan, small, (), (), None, {}, first)


NEEDS = {
    "nnx": ("flax", nnx_case),
    "linen": ("flax", linen_case),
    "equinox": ("equinox", equinox_case),
    "haiku": ("haiku", haiku_case),
    "keras": ("keras", keras_case),
}


@pytest.fixture(autouse=True)
def _promotion():
    with jax.numpy_rank_promotion("allow"):  # Keras
        yield


@pytest.fixture(scope="module", params=NEEDS)
def case(request):
    package, make = NEEDS[request.param]
    pytest.importorskip(package, reason=f"{package} is not installed")
    with jax.numpy_rank_promotion("allow"):
        return make()._replace(kind=request.param)


def test_verify(case):
    given = (*case.call, case.x, *case.tail)
    found = surgery.verify(case.model, case.plan, *given)
    assert found.ok and found.error < 1e-5
    assert surgery.verify(case.model, case.plan, *given, reference="dense").error > 0


def test_a_compact_object_is_compared(case):
    """It equals the compact form; with another's weights, or doubled, it does not."""
    given = (*case.call, case.x, *case.tail)
    found = surgery.verify(
        case.model, case.plan, *given, compact=case.small, gradient=True
    )
    assert found.ok and found.compact["dense"] < 1e-5
    with pytest.raises(TypeError, match="`compact` must be what `fn` is"):
        surgery.verify(case.model, case.plan, *given, compact=lambda *args: args)


def test_the_statistics_of_the_compact_network(case):
    held = () if case.held is None else (case.held,)
    new = compress.recalibrate(case.small, *held, BATCHES, **case.training)
    assert (new is case.small) == (case.held is None)
    kernel, bias, mean, var = case.first(new)
    assert kernel.shape == (IN, WIDTH // 2)
    hidden = [
        np.asarray(x, np.float64) @ np.asarray(kernel) + np.asarray(bias)
        for x in BATCHES
    ]
    np.testing.assert_allclose(mean, np.mean([h.mean(0) for h in hidden], 0), 2e-5)
    np.testing.assert_allclose(var, np.mean([h.var(0) for h in hidden], 0), 2e-5)


def test_flops_by_hand(case):
    rows = ROWS if case.x.ndim == 2 else 1
    dense = analysis.flops(case.model)(*case.call, case.x, *case.tail)
    assert dense == DENSE_FLOPS * rows // ROWS
    compact = analysis.flops(case.small)(*case.packed, case.x, *case.packed_tail)
    assert compact == dense // 2


def test_costs_of_a_plan(case):
    given = (*case.call, case.x, *case.tail)
    count = analysis.relative_cost("bytes", case.model, *given)
    assert 0.4 < count(case.plan) < 0.7
    assert 0.4 < analysis.relative_cost("flops", case.model, *given)(case.plan) < 0.9
    assert analysis.relative_cost("latency", case.model, *given, rounds=1)(case.plan)


def test_compare(case):
    pairs = (case.model, case.small)
    x = (case.x, *case.tail)
    if case.tail and not case.call:  # Equinox: the state goes with the model
        pairs = ((case.model, *case.tail), (case.small, *case.packed_tail))
        x = (case.x,)
    elif case.call:
        trees = [c if len(c) == 1 else c[:2] for c in (case.call, case.packed)]
        trees = [t[0] if len(t) == 1 else t for t in trees]
        pairs = tuple(zip(pairs, trees, strict=True))
        x = (*case.call[2:], *x)
    both = analysis.compare(*pairs, *x, rounds=1)
    assert both.dense.flops == 2 * both.compact.flops
    assert (both.dense.parameters, both.compact.parameters) == (83, 43)
    assert both.dense.statistics >= 2 * WIDTH
    assert "statistics" in str(both)


def linen_in_training():
    nn = pytest.importorskip("flax.linen", reason="flax is not installed")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool = True):
            return nn.BatchNorm(not train)(nn.Dense(3)(x))

    model = Net()
    variables = model.init(jax.random.key(0), X, train=False)
    return model, (variables, X), {"train": False}, "such as `train=False`"


def equinox_in_training():
    eqx = pytest.importorskip("equinox", reason="equinox is not installed")
    layers = [eqx.nn.Linear(IN, 3, key=jax.random.key(0)), eqx.nn.Dropout()]
    return eqx.nn.Sequential(layers), (X[0],), None, "`eqx.nn.inference_mode(model)`."


def haiku_in_training():
    hk = pytest.importorskip("haiku", reason="dm-haiku is not installed")

    def net(x, is_training):
        h = hk.Linear(3)(x)
        return hk.dropout(hk.next_rng_key(), 0.5, h) if is_training else h

    model = hk.transform(net)
    trees = model.init(jax.random.key(0), X, False)
    return model, (trees, None, X, True), None, "such as `is_training=False`."


@pytest.mark.parametrize(
    "make", [linen_in_training, equinox_in_training, haiku_in_training]
)
def test_a_model_in_training_mode_says_what_to_do(make):
    model, given, quiet, says = make()
    name = make.__name__.partition("_")[0]
    file = importlib.import_module(f"jprune.frameworks.{name}")
    held = (model, given[0]) if name != "equinox" else model
    rest = given[name != "equinox" :]
    calls = [
        lambda **k: analysis.compare(held, held, *rest, rounds=1, **k),
        lambda **k: analysis.flops(model)(*given, **k),
        lambda **k: file.groups(model, *given, **k),
    ]
    for call in calls:
        with pytest.raises(Exception) as error:  # noqa: B017, PT011 - the framework's
            call()
        (note,) = [n for n in error.value.__notes__ if "training mode" in n]
        assert note.startswith("[jprune]") and says in note
        assert quiet is None or call(**quiet) is not None


def test_parameters_are_what_is_trained(case):
    """By hand 4 x 8 + 8, twice 8 of the norm, 8 x 3 + 3; no mean, variance, counter."""
    file = importlib.import_module(f"jprune.frameworks.{case.kind}")
    deps = file.groups(case.model, *case.call, case.x, *case.tail)
    (unit,) = (g.id for g in deps if g.kind == "coupled")
    assert deps.parameters() == 83 and deps.parameters({unit: 4}) == 43
    plan = surgery.select(deps, {unit: np.arange(8.0)}, params=43)
    assert plan.groups[unit] == (4, 8)


def test_a_call_that_is_not_in_training_mode_says_so():
    pytest.importorskip("flax", reason="flax is not installed")
    case = linen_case()
    with pytest.raises(ValueError, match=r"no statistic moved.*`train=True`"):
        compress.recalibrate(case.small, case.held, BATCHES, momentum=0.8)
    with pytest.raises(ValueError, match="give `momentum=`"):
        compress.recalibrate(case.small, case.held, BATCHES, train=True)
    with pytest.raises(TypeError, match=r"`recalibrate\(model, variables, batches\)`"):
        compress.recalibrate(case.small, BATCHES, momentum=0.8)


def test_one_array_is_no_list_of_batches(case):
    held = () if case.held is None else (case.held,)
    with pytest.raises(TypeError, match=r"one array, float32\[6, 4\].*as `\[x\]`"):
        compress.recalibrate(case.small, *held, X, **case.training)


def test_labels_do_not_belong_to_a_batch(case):
    held = () if case.held is None else (case.held,)
    labels = jnp.zeros(ROWS, jnp.int32)
    with pytest.raises(TypeError, match=r"the model's call takes \([^:]*got") as error:
        compress.recalibrate(case.small, *held, [(X, labels)], **case.training)
    assert "float32[6, 4], " in str(error.value)
    assert "labels do not belong to it" in str(error.value)


MISFITS = {
    "labels": lambda case: (case.x, *case.tail, jnp.zeros(ROWS, jnp.int32), 0),
    "nothing": lambda case: (),
    "compact": lambda case: (case.small, case.x, *case.tail, 0),
}


@pytest.mark.parametrize("given", MISFITS)
def test_arguments_that_the_call_does_not_take(case, given):
    """In place of Python's count, which has the model and its parameters in it."""
    args = (*case.call, *MISFITS[given](case))
    dense = case.model if not case.call else (case.model, case.call[0])
    if case.kind == "haiku":
        dense = (case.model, case.call[:2])
    ways = {
        "flops": lambda: analysis.flops(case.model)(*args),
        "latency": lambda: analysis.latency(case.model, *args),
        "groups": lambda: _groups(case)(case.model, *args),
    }
    if args:  # Python asks for the third argument of `verify` itself
        ways["verify"] = lambda: surgery.verify(case.model, case.plan, *args)
    if case.kind in ("nnx", "linen", "keras"):
        rest = args[len(case.call) :]
        ways["compare"] = lambda: analysis.compare(dense, dense, *rest)
    for name, way in ways.items():
        with pytest.raises(TypeError, match=r"\[jprune\] the model's call takes") as e:
            way()
        assert "labels are none of them" in str(e.value), name


def test_the_note_of_an_error_inside_shows_the_arguments_as_given(case):
    if case.kind == "keras":
        pytest.skip("a graph of Keras layers takes of a tuple what it needs")
    args = (*case.call, (case.x, jnp.zeros(ROWS, jnp.int32)), *case.tail)
    for way in (
        lambda: surgery.verify(case.model, case.plan, *args),
        lambda: _groups(case)(case.model, *args),
    ):
        with pytest.raises(Exception) as error:  # noqa: B017, PT011 - the model's own
            way()
        notes = [n for n in error.value.__notes__ if "called" in n]
        (note,) = notes  # and none of what we make of them
        assert f"(float32{list(case.x.shape)}, int32[6])" in note


def _groups(case):
    return importlib.import_module(f"jprune.frameworks.{case.kind}").groups


def test_a_haiku_function_with_state_is_followed_by_it():
    case = haiku_case()
    with pytest.raises(TypeError, match=r"`params`, its `state`[^:]*got float32\[6, 4"):
        surgery.verify(case.model, case.plan, X)


def test_norms_of_two_momenta_have_no_one_mean():
    nnx = pytest.importorskip("flax.nnx", reason="flax is not installed")
    norms = [nnx.BatchNorm(4, momentum=m, rngs=nnx.Rngs(0)) for m in (0.9, 0.5)]
    for given in ({}, {"momentum": 0.9}):
        with pytest.raises(ValueError, match=r"have `momentum` \[0.5, 0.9\], and one"):
            compress.recalibrate(nnx.Sequential(*norms), BATCHES, **given)
    with pytest.raises(ValueError, match=r"have `momentum` \[0.9\], .*got 0.99"):
        compress.recalibrate(norms[0], BATCHES, momentum=0.99)


def test_a_model_is_no_tree_and_no_variables():
    linen = pytest.importorskip("flax.linen", reason="flax is not installed")
    with pytest.raises(TypeError, match="followed by its `variables`.*got ArrayImpl"):
        analysis.flops(linen.Dense(3))(X)
    with pytest.raises(TypeError, match="must be a tree of arrays, got Dense"):
        linen_case().plan.pack(linen.Dense(3))


def test_a_model_without_statistics():
    nnx = pytest.importorskip("flax.nnx", reason="flax is not installed")
    with pytest.raises(ValueError, match="no batch statistics: no `nnx.BatchStat`"):
        compress.recalibrate(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), BATCHES)


def test_a_function_takes_no_keywords():
    with pytest.raises(TypeError, match=r"go with a model object, got \['train'\]"):
        compress.recalibrate(lambda s, x: s, {}, BATCHES, train=True)
    with pytest.raises(TypeError, match="takes `update`, `stats` and `batches`"):
        compress.recalibrate(lambda s, x: s, {})


def test_a_class_of_your_own_at_the_compact_widths():
    nn = pytest.importorskip("flax.linen", reason="flax is not installed")
    case = linen_case()

    class Narrow(nn.Module):
        gain: float = 1.0

        @nn.compact
        def __call__(self, x, train: bool = False):
            h = nn.Dense(WIDTH // 2, name="up")(x)
            h = nn.BatchNorm(not train, momentum=0.8, name="norm")(h)
            return self.gain * nn.Dense(OUT)(nn.relu(h))

    for fn in (case.model, case.model.apply):
        call = functools.partial(surgery.verify, fn, case.plan, *case.call, X)
        assert call(compact=Narrow()).ok
        wrong = call(compact=Narrow(1.5))
        assert not wrong.ok and wrong.compact["dense"] == pytest.approx(0.5, rel=1e-3)
