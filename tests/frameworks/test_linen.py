"""Compact Flax Linen modules: one test for each column of the table, then the rest."""

import functools

import flax.errors
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

from jprune import analysis, surgery
from jprune.frameworks import linen as jlinen
from tests.frameworks import fresh
from tests.frameworks.linen_nets import ConvNet

X = np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype(np.float32)
MODEL = ConvNet()
TRAIN = {
    "train": True,
    "mutable": ["batch_stats"],
    "rngs": {"dropout": jax.random.key(7)},
}


pytestmark = pytest.mark.usefixtures("broadcasting")


@functools.cache
def compact_pair():
    """Variables, their plan, the reference variables, the compact module, its own."""
    variables = MODEL.init(jax.random.key(0), X)
    deps = jlinen.groups(MODEL, variables, X)
    plan = surgery.plan_from_keep(deps, {g.id: range(0, g.size, 2) for g in deps})
    small = jlinen.shrink(MODEL, plan)
    return variables, plan, plan.zero(variables), small, plan.pack(variables)


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_its_text_shows_the_widths():
    rows = {tuple(line.split()) for line in repr(compact_pair()[3]).splitlines()}
    assert ("params/conv/kernel", "3x3x3x8", "->", "3x3x3x4") in rows
    assert ("batch_stats/norm/mean", "8", "->", "4") in rows
    assert not any("head/bias" in row[0] for row in rows)  # it is as it was


def test_build():
    _, plan, _, small, packed = compact_pair()
    assert isinstance(small, nn.Module)
    assert packed["params"]["conv"]["kernel"].shape == (3, 3, 3, 4)
    assert packed["params"]["head"]["kernel"].shape == (6, 4)
    made = small.init(jax.random.key(3), X)
    want = plan.pack(MODEL.init(jax.random.key(3), X))
    jax.tree.map(functools.partial(close, tolerance=0), made, want)


def test_difference():
    _, _, zeroed, small, packed = compact_pair()
    close(small.apply(packed, X), MODEL.apply(zeroed, X))
    close(small.apply(packed, X[:2]), MODEL.apply(zeroed, X[:2]))


def test_call():
    _, _, zeroed, small, packed = compact_pair()
    close(small.apply(packed, X, scale=3.0), MODEL.apply(zeroed, X, scale=3.0))
    close(small.apply(packed, X, method="loss"), MODEL.apply(zeroed, X, method="loss"))
    by_name = small.apply(packed, X, method=ConvNet.loss, mutable=["losses"])
    close(by_name[1]["losses"]["size"][0], jnp.abs(MODEL.apply(zeroed, X)).mean())
    features = small.apply(packed, X, method="features")  # what is left of them
    assert features.shape[-1] < MODEL.apply(zeroed, X, method="features").shape[-1]
    got, want = small.apply(packed, X, **TRAIN), MODEL.apply(zeroed, X, **TRAIN)
    close(got[0], want[0])  # the dropout masks are those of the dense model
    mapped = jax.jit(jax.vmap(lambda x: small.apply(packed, x[None])))(X)
    close(mapped[:, 0], MODEL.apply(zeroed, X))


def test_statistics():
    _, plan, zeroed, small, packed = compact_pair()
    _, got = small.apply(packed, X, **TRAIN)
    _, want = MODEL.apply(zeroed, X, **TRAIN)
    jax.tree.map(close, got, plan.pack(want))
    assert set(got) == {"batch_stats"}
    assert float(jnp.abs(got["batch_stats"]["norm"]["mean"]).max()) > 0.0


@jax.jit
def step(state, stats, key):
    def loss(params):
        out, new = state.apply_fn(
            {"params": params, "batch_stats": stats},
            X,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return jnp.mean((out - 1.0) ** 2), new["batch_stats"]

    (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads), stats, value, grads


def test_train_step():
    _, plan, zeroed, small, packed = compact_pair()
    key = jax.random.key(2)
    state = TrainState.create(
        apply_fn=small.apply, params=packed["params"], tx=optax.adam(0.01)
    )
    dense = state.replace(apply_fn=MODEL.apply, params=zeroed["params"])
    dense = dense.replace(opt_state=dense.tx.init(dense.params))
    _, _, want, wants = step(dense, zeroed["batch_stats"], key)
    state, stats, first, grads = step(state, packed["batch_stats"], key)
    close(first, want)
    jax.tree.map(close, grads, plan.pack(wants, at="params"))
    for i in range(20):
        state, stats, last, _ = step(state, stats, jax.random.key(i))
    assert float(last) < 0.7 * float(first)


def test_save(tmp_path):
    _, plan, _, small, packed = compact_pair()
    plan.save(tmp_path / "plan.json")
    data = flax.serialization.to_bytes(packed)
    other = jlinen.load(ConvNet(), tmp_path / "plan.json")
    like = jax.eval_shape(other.init, jax.random.key(0), X)
    close(
        other.apply(flax.serialization.from_bytes(like, data), X),
        small.apply(packed, X),
        0.0,
    )


@pytest.mark.slow
def test_fresh_process(tmp_path):
    _, plan, _, small, packed = compact_pair()
    plan.save(tmp_path / "plan.json")
    (tmp_path / "packed").write_bytes(flax.serialization.to_bytes(packed))
    np.save(tmp_path / "x.npy", X)
    got = fresh.run(
        "import jax, flax.serialization\n"
        "from jprune.frameworks import linen as jlinen\n"
        "from tests.frameworks.linen_nets import ConvNet\n"
        "x = np.load(folder / 'x.npy')\n"
        "small = jlinen.load(ConvNet(), folder / 'plan.json')\n"
        "like = jax.eval_shape(small.init, jax.random.key(0), x)\n"
        "data = (folder / 'packed').read_bytes()\n"
        "result = small.apply(flax.serialization.from_bytes(like, data), x)\n",
        tmp_path,
    )
    close(got, small.apply(packed, X))


def test_init_in_training_mode_is_that_of_the_dense_module_packed():
    """It draws and starts statistics; no step of them is taken."""
    _, plan, _, small, _ = compact_pair()
    keys = {"params": jax.random.key(3), "dropout": jax.random.key(4)}
    want = plan.pack(MODEL.init(keys, X, train=True))
    jax.tree.map(np.testing.assert_array_equal, small.init(keys, X, train=True), want)


def test_a_compact_module_is_a_part_of_others():
    _, plan, zeroed, small, packed = compact_pair()
    whole = nn.Sequential([small, nn.Dense(3)])
    variables = whole.init(jax.random.key(0), X)
    assert variables["params"]["layers_0"]["conv"]["kernel"].shape == (3, 3, 3, 4)
    stats = variables["batch_stats"]["layers_0"]
    assert jax.tree.map(jnp.shape, stats) == jax.tree.map(
        jnp.shape, packed["batch_stats"]
    )
    head = variables["params"]["layers_1"]
    params = {"layers_0": packed["params"], "layers_1": head}
    out = whole.apply(variables | {"params": params}, X)
    want = nn.Dense(3).apply({"params": head}, small.apply(packed, X))
    close(out, want)


def test_bound_and_tabulated():
    _, _, zeroed, small, packed = compact_pair()
    close(small.bind(packed)(X), MODEL.apply(zeroed, X))
    assert "CompactModule" in small.tabulate(jax.random.key(0), X)


def test_groups_found_in_training_and_plans_of_parameters_alone():
    variables, *_ = compact_pair()
    in_train = jlinen.groups(MODEL, variables, X, **TRAIN)
    assert [g.size for g in in_train] == [8, 12]
    model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
    x = X.reshape(4, -1)
    variables = model.init(jax.random.key(0), x)
    fn = lambda params, x: model.apply({"params": params}, x)  # noqa: E731
    deps = surgery.groups(fn)(variables["params"], x)
    plan = surgery.plan_from_keep(deps, {deps[0].id: [0, 5]})
    packed = {"params": plan.pack(variables["params"])}
    want = fn(plan.zero(variables["params"]), x)
    close(jlinen.shrink(model, plan).apply(packed, x), want)


def test_a_second_cut_is_over_the_packed_variables():
    _, plan, _, small, packed = compact_pair()
    tuned = jax.tree.map(lambda x: x * 1.25, packed)
    deps = jlinen.groups(small, tuned, X)
    keep = {g.id: range(0, g.size, 2) for g in deps if g.size > 1}
    again = surgery.plan_from_keep(deps, keep)
    less, left = jlinen.shrink(small, again), again.pack(tuned)
    assert left["params"]["conv"]["kernel"].shape == (3, 3, 3, 2)
    both = plan.then(again)
    close(less.apply(left, X), MODEL.apply(both.unpack(left), X))
    jax.tree.map(
        functools.partial(close, tolerance=0),
        less.init(jax.random.key(3), X),
        both.pack(MODEL.init(jax.random.key(3), X)),
    )


def test_what_is_refused():
    variables, plan, _, small, _ = compact_pair()
    with pytest.raises(ValueError, match="for the compact parameters"):
        jlinen.shrink(small, plan)
    with pytest.raises(TypeError, match=r"`model` must be a linen\.Module"):
        jlinen.shrink(MODEL.apply, plan)
    with pytest.raises(TypeError, match="`plan` must be a `surgery.Plan`"):
        jlinen.shrink(MODEL, {})
    with pytest.raises(ValueError, match=r"pass `plan\.pack"):
        small.apply(variables, X)


def test_parameters_in_place_of_variables():
    model = nn.Dense(3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), X)
    with pytest.raises(
        ValueError, match=r"^\[jprune\] `variables` must be all.*kernel"
    ):
        jlinen.groups(model, shapes["params"], X)


def test_a_call_in_training_mode_says_what_to_pass():
    variables = compact_pair()[0]
    with pytest.raises(flax.errors.ModifyScopeVariableError) as error:
        analysis.flops(MODEL)(variables, X, train=True, rngs=TRAIN["rngs"])
    assert any("such as `train=False`" in note for note in error.value.__notes__)
