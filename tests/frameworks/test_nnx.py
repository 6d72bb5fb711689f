"""Compact Flax NNX modules: one test for each column of the table, then the rest."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jprune import surgery
from jprune.frameworks import nnx as jnnx
from tests.frameworks import fresh
from tests.frameworks.nnx_nets import ConvNet, ConvNeXt, Qwen, ViT

X = np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype(np.float32)


pytestmark = pytest.mark.usefixtures("broadcasting")


def halves(model, *args):
    """A plan that removes every second coordinate of each removable group."""
    deps = jnnx.groups(model, *args)
    keep = {
        g.id: np.arange(g.size) % 2 == 0
        for g in deps
        if g.kind != "unused" and g.size > 1 and deps.exactness[g.id].exact
    }
    assert keep
    return surgery.plan_from_keep(deps, keep)


def zeroed(model, plan):
    """The dense model with the removed parts set to zero: the reference."""
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, plan.zero(state), copy=True)


@functools.cache
def plan_of_the_net():
    return halves(ConvNet(nnx.Rngs(0)), X)


def pair(**modes):
    """Dense with zeros, and compact, of a network with batch norm and dropout."""
    model, plan = ConvNet(nnx.Rngs(0)), plan_of_the_net()
    model.set_attributes(raise_if_not_found=False, **modes)
    return zeroed(model, plan), jnnx.shrink(model, plan), plan


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


TRAINED = (nnx.Param, nnx.BatchStat)


def arrays(model, kind=...):
    return nnx.to_pure_dict(nnx.state(model, kind))


def test_build():
    dense, small, plan = pair()
    assert isinstance(small, ConvNet) and isinstance(small.conv, nnx.Conv)
    assert small.conv.kernel.shape == (3, 3, 3, 4)
    assert small.head.kernel.shape == (6, 4)
    shapes = {p: x.shape for p, x in nnx.to_flat_state(nnx.state(small))}
    assert shapes == {p[:-1]: s for p, s in plan.compact_shapes.items()}
    assert dense.conv.kernel.shape == (3, 3, 3, 8)  # the dense model is untouched


def test_difference():
    dense, small, _ = pair(deterministic=True, use_running_average=True)
    close(small(X), dense(X))
    close(small(X, scale=3.0), dense(X, scale=3.0))
    close(small(X[:2]), dense(X[:2]))  # another batch size is traced anew


def test_call():
    dense, small, _ = pair()
    for _ in range(2):  # train mode: the dropout masks and counters are the dense ones
        close(small(X), dense(X))
    close(small.loss(X), dense.loss(X))  # another method
    small.eval()
    dense.eval()
    close(small(X), dense(X))
    if hasattr(nnx, "view"):  # the oldest Flax has none
        close(nnx.view(small, deterministic=True)(X), dense(X))
    close(nnx.jit(lambda m, x: m(x))(small, X), dense(X))
    again = nnx.merge(*nnx.split(small))
    close(again(X), dense(X))
    mapped = jax.vmap(lambda x: small(x[None]))(X)
    close(mapped[:, 0], dense(X))


def test_statistics():
    dense, small, plan = pair()
    for _ in range(3):
        small(X)
        dense(X)
    kept = plan.keep["conv", "bias", "value"][0]
    close(small.norm.mean[...], dense.norm.mean[...][kept])
    close(small.norm.var[...], dense.norm.var[...][kept])
    counts = [int(arrays(m)["drop"]["rngs"]["count"]) for m in (small, dense)]
    assert counts == [3, 3]
    assert float(jnp.abs(small.norm.mean[...]).max()) > 0.0


@nnx.jit
def step(model, optimizer, x):
    def loss(m):
        return jnp.mean((m(x) - 1.0) ** 2)

    value, grads = nnx.value_and_grad(loss)(model)
    optimizer.update(model, grads)
    return value, grads


def test_train_step():
    dense, small, plan = pair()
    optimizers = [
        nnx.Optimizer(m, optax.adam(0.01), wrt=nnx.Param) for m in (dense, small)
    ]
    (_, want), (_, got) = map(step, (dense, small), optimizers, (X, X))
    want = nnx.to_pure_dict(plan.pack(want))
    jax.tree.map(close, nnx.to_pure_dict(got), want)
    moments = arrays(optimizers[1], nnx.optimizer.OptState)
    assert any(x.shape == (3, 3, 3, 4) for x in jax.tree.leaves(moments))
    losses = [float(step(small, optimizers[1], X)[0]) for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]


def test_save(tmp_path):
    import orbax.checkpoint as ocp

    _, small, plan = pair(deterministic=True)
    small(X)
    plan.save(tmp_path / "plan.json")
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "arrays", arrays(small, TRAINED))
    other = jnnx.load(ConvNet(nnx.Rngs(5)), tmp_path / "plan.json")
    other.set_attributes(deterministic=True)
    with ocp.StandardCheckpointer() as saver:
        like = arrays(other, TRAINED)
        nnx.update(other, saver.restore(tmp_path / "arrays", like))
    close(other(X), small(X), 0.0)


@pytest.mark.slow
def test_fresh_process(tmp_path):
    import orbax.checkpoint as ocp

    _, small, plan = pair()
    small.eval()
    plan.save(tmp_path / "plan.json")
    np.save(tmp_path / "x.npy", X)
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "arrays", arrays(small, TRAINED))
    got = fresh.run(
        "import orbax.checkpoint as ocp\n"
        "from flax import nnx\n"
        "from jprune.frameworks import nnx as jnnx\n"
        "from tests.frameworks.nnx_nets import ConvNet\n"
        "small = jnnx.load(ConvNet(nnx.Rngs(9)), folder / 'plan.json')\n"
        "like = nnx.to_pure_dict(nnx.state(small, (nnx.Param, nnx.BatchStat)))\n"
        "saver = ocp.StandardCheckpointer()\n"
        "nnx.update(small, saver.restore(folder / 'arrays', like))\n"
        "small.eval()\n"
        "result = small(np.load(folder / 'x.npy'))\n",
        tmp_path,
    )
    close(got, small(X), 0.0 if jax.default_backend() == "cpu" else 1e-5)


TOKENS = np.random.default_rng(1).integers(0, 11, (2, 6))
NETS = {"vit": (ViT, X), "convnext": (ConvNeXt, X), "qwen": (Qwen, TOKENS)}


@pytest.mark.parametrize("name", NETS)
def test_networks(name):
    """Value and gradient of the compact object against the zeroed dense model."""
    make, x = NETS[name]
    model = make(nnx.Rngs(0))
    plan = halves(model, x)
    dense, small = zeroed(model, plan), jnnx.shrink(model, plan)

    @nnx.jit
    def both(dense, small):
        def loss(m):
            return jnp.mean(jnp.sin(jnp.arange(m(x).size).reshape(m(x).shape)) * m(x))

        return nnx.value_and_grad(loss)(dense), nnx.value_and_grad(loss)(small)

    (want, wants), (got, gots) = both(dense, small)
    close(got, want)
    wants = nnx.to_pure_dict(plan.pack(wants))
    jax.tree.map(
        functools.partial(close, tolerance=1e-4), nnx.to_pure_dict(gots), wants
    )
    sizes = [sum(x.size for x in jax.tree.leaves(arrays(m))) for m in (dense, small)]
    assert sizes[1] < 0.5 * sizes[0]


def test_shared_arrays_stay_shared():
    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.Linear(6, 6, use_bias=False, rngs=rngs)
            self.b = nnx.Linear(6, 6, use_bias=False, rngs=rngs)
            self.b.kernel = self.a.kernel
            self.inner = nnx.Linear(6, 8, rngs=rngs)
            self.outer = nnx.Linear(8, 6, rngs=rngs)

        def __call__(self, x):
            return self.b(self.outer(nnx.relu(self.inner(self.a(x)))))

    model, x = Tied(nnx.Rngs(0)), np.ones((2, 6), np.float32)
    plan = halves(model, x)
    small = jnnx.shrink(model, plan)
    assert small.b.kernel is small.a.kernel
    close(small(x), zeroed(model, plan)(x))


def test_rngs_given_as_an_argument_are_used_up():
    class Noisy(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)
            self.drop = nnx.Dropout(0.5)

        def __call__(self, x, rngs):
            return self.b(self.drop(self.a(x), rngs=rngs))

    model, x = Noisy(nnx.Rngs(0)), np.ones((4, 3), np.float32)
    plan = halves(model, x, nnx.Rngs(dropout=1))
    dense, small = zeroed(model, plan), jnnx.shrink(model, plan)
    ours, theirs = nnx.Rngs(dropout=1), nnx.Rngs(dropout=1)
    for _ in range(2):
        close(small(x, ours), dense(x, theirs))
    assert int(ours.dropout.count[...]) == 2


class Normed(nnx.Module):
    def __init__(self, width, rngs):
        self.a = nnx.Linear(8, width, rngs=rngs)
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.b = nnx.Linear(width, 4, rngs=rngs)

    def __call__(self, x):
        return self.b(self.norm(self.a(x)))


def test_the_meaning_of_a_mean_can_be_chosen():
    model = Normed(16, nnx.Rngs(0))
    x = np.random.default_rng(3).standard_normal((4, 8)).astype(np.float32)
    plan = halves(model, x)
    narrow = Normed(8, nnx.Rngs(1))  # the user's class at the compact width
    nnx.update(narrow, plan.pack(nnx.state(model)))
    close(jnnx.shrink(model, plan, mean="compact")(x), narrow(x))
    close(jnnx.shrink(model, plan)(x), zeroed(model, plan)(x))
    assert float(jnp.abs(jnnx.shrink(model, plan)(x) - narrow(x)).max()) > 0.01


@pytest.mark.parametrize("make", [ConvNet, lambda rngs: Normed(16, rngs)])
def test_a_second_cut_keeps_the_weights_of_the_compact_module(make):
    """Of a tuned compact module: the dense class on its weights, zeros elsewhere."""
    model = make(nnx.Rngs(0))
    x = X if isinstance(model, ConvNet) else np.resize(X, (4, 8))
    model.eval()
    first = halves(model, x)
    small = jnnx.shrink(model, first)
    nnx.update(small, jax.tree.map(lambda w: w * 1.25, nnx.state(small, nnx.Param)))
    second = halves(small, x)
    less = jnnx.shrink(small, second)
    both = first.then(second)
    shapes = {p: w.shape for p, w in nnx.to_flat_state(nnx.state(less))}
    assert shapes == {p[:-1]: s for p, s in both.compact_shapes.items()}
    assert both.compact_shapes != first.compact_shapes
    dense = make(nnx.Rngs(1))
    nnx.update(dense, both.unpack(nnx.state(less)))
    dense.eval()
    close(less(x), dense(x))
    again = jnnx.load(make(nnx.Rngs(2)), both)
    nnx.update(again, nnx.state(less))
    again.eval()
    close(again(x), less(x), 0)


def test_a_second_cut_means_what_the_first_meant():
    model = ConvNet(nnx.Rngs(0))
    small = jnnx.shrink(model, halves(model, X), mean="compact")
    with pytest.raises(ValueError, match="`mean` must be 'compact', as it was"):
        jnnx.shrink(small, halves(small, X))


def test_parts_and_wrong_plans_are_refused():
    model = ConvNet(nnx.Rngs(0))
    plan = halves(model, X)
    small = jnnx.shrink(model, plan)
    with pytest.raises(ValueError, match="`Conv.__call__` belongs to a part"):
        small.conv(X)
    with pytest.raises(ValueError, match="(?s)not made for this model.*conv/kernel"):
        jnnx.shrink(small, plan)  # the plan of the dense model
    with pytest.raises(ValueError, match="not in the plan: down/bias/value"):
        jnnx.shrink(ConvNeXt(nnx.Rngs(0)), plan)
    with pytest.raises(TypeError, match="`model` must be an nnx.Module"):
        jnnx.shrink(nnx.state(model), plan)
    with pytest.raises(TypeError, match="`plan` must be a `surgery.Plan`"):
        jnnx.shrink(model, {})


def test_a_call_that_makes_variables_is_refused():
    class Keeps(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

        def __call__(self, x):
            y = self.b(self.a(x))
            self.last = nnx.Variable(y)
            return y

    with pytest.raises(ValueError, match="creates variables[^:]*:\n  last/value"):
        jnnx.groups(Keeps(nnx.Rngs(0)), np.ones((2, 3), np.float32))


def test_methods_that_are_jitted_and_unhashable_attributes():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

        @nnx.jit
        def __call__(self, x):
            return self.b(self.a(x))

        @property
        def inner(self):
            return self.a.kernel.shape[1]

    model, x = Model(nnx.Rngs(0)), np.ones((2, 3), np.float32)
    plan = halves(model, x)
    small = jnnx.shrink(model, plan)
    close(small(x), zeroed(model, plan)(x))
    assert (model.inner, small.inner) == (8, 4)


def test_its_plan_fits_a_function_of_ones_own():
    """The plan of `groups` on a training step that returns its state, keys included."""
    graphdef, state = nnx.split(ConvNet(nnx.Rngs(0)))

    def step(state, x):
        model = nnx.merge(graphdef, state, copy=True)
        return model(x), nnx.state(model)

    plan = plan_of_the_net()
    report = surgery.verify(step, plan, state, X)
    assert report.ok, str(report)


@pytest.mark.slow
def test_export_with_a_free_batch_size(tmp_path):
    """StableHLO from the compact module, run in a process without jprune and flax."""
    _, small, _ = pair()
    small.eval()
    graphdef, state, rest = nnx.split(small, TRAINED, ...)
    names = list(nnx.to_flat_state(state))

    def run(arrays, x):
        leaves = jax.tree.unflatten(jax.tree.structure(state), arrays)
        return nnx.merge(graphdef, leaves, rest)(x)

    arrays = jax.tree.leaves(state)
    assert len(arrays) == len(names)
    (batch,) = jax.export.symbolic_shape("batch")
    free = jax.ShapeDtypeStruct((batch, *X.shape[1:]), X.dtype)
    exported = jax.export.export(jax.jit(run))(arrays, free)
    (tmp_path / "small.stablehlo").write_bytes(exported.serialize())
    np.savez(tmp_path / "arrays.npz", *arrays)
    np.save(tmp_path / "x.npy", X[:3])
    got = fresh.run(
        "import sys, jax.export\n"
        "loaded = jax.export.deserialize((folder / 'small.stablehlo').read_bytes())\n"
        "with np.load(folder / 'arrays.npz') as file:\n"
        "    arrays = [file[f'arr_{i}'] for i in range(len(file.files))]\n"
        "result = loaded.call(arrays, np.load(folder / 'x.npy'))\n"
        "assert 'jprune' not in sys.modules and 'flax' not in sys.modules\n",
        tmp_path,
    )
    close(got, small(X[:3]))
