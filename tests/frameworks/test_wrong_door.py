"""A model object given to the functions for functions says which module takes it."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

from jprune import analysis, compress, surgery
from jprune.frameworks import equinox as jeqx
from jprune.frameworks import haiku as jhk
from jprune.frameworks import linen as jlinen
from jprune.frameworks import nnx as jnnx

MODELS = {
    "nnx": lambda: nnx.Linear(4, 3, rngs=nnx.Rngs(0)),
    "linen": lambda: linen.Dense(3),
    "equinox": lambda: eqx.nn.Linear(4, 3, key=jax.random.key(0)),
    "haiku": lambda: hk.transform(lambda x: hk.Linear(3)(x)),
}
X = jnp.ones((2, 4))


@pytest.mark.parametrize("name", MODELS)
def test_the_error_names_the_framework_and_the_class(name):
    model = MODELS[name]()
    plan = surgery.Plan({})
    for call in (
        lambda: surgery.groups(model)(X),
        lambda: surgery.shrink(model, plan)(X),
    ):
        with pytest.raises(TypeError, match=rf"jprune\.frameworks\.{name}") as error:
            call()
        assert type(model).__name__ in str(error.value)


def test_what_is_advised_works():
    model = MODELS["nnx"]()
    graphdef, state = nnx.split(model)

    def of_state(state, *args):
        return nnx.merge(graphdef, state)(*args)

    assert any(
        f.path[0] == "kernel" for f in surgery.groups(of_state)(state, X).frozen()
    )
    linear = MODELS["equinox"]()

    def of_model(model, *args):
        return model(*args)

    assert any(
        f.path[0] == "weight" for f in surgery.groups(of_model)(linear, X[0]).frozen()
    )
    pair = (of_model, linear)
    measured = analysis.compare(pair, pair, X[0], rounds=3)
    assert measured.dense.parameters == 15


def test_a_jitted_function_of_a_model_is_a_function():
    linear = MODELS["equinox"]()
    for jit in (jax.jit, eqx.filter_jit):
        assert surgery.groups(jit(lambda m, x: m(x)))(linear, X[0]).frozen()


def test_no_function_at_all():
    with pytest.raises(TypeError, match="`fn` must be a function.*got dict"):
        surgery.groups({"w": X})


@pytest.mark.parametrize("name", ["linen", "haiku"])
def test_compare_of_objects_says_how(name):
    model = MODELS[name]()
    says = rf"got {type(model).__name__}\. .*`\(model, variables\)`"
    with pytest.raises(TypeError, match=says):
        analysis.compare(model, model, X)


READERS = {
    "capture": lambda fn: compress.capture(fn, {}, [X]),
    "wanda": lambda fn: compress.wanda(fn, {}, [X], sparsity=0.5),
    "sparse_gpt": lambda fn: compress.sparse_gpt(fn, {}, [X], sparsity=0.5),
    "reconstruct": lambda fn: compress.reconstruct(fn, DEPS, PARAMS, [X], {"a:1": 1}),
    "sample_inputs": lambda fn: compress.sample_inputs(fn, PARAMS, {"a": [0]}, X),
    "block_influence": lambda fn: analysis.block_influence(fn, DEPS, {}, [X]),
    "residual_branches": lambda fn: analysis.residual_branches(fn, DEPS, {}, X),
    "scale_invariance": lambda fn: analysis.scale_invariance(fn, {}, X),
}
PARAMS = {"a": jnp.ones((4, 2)), "b": jnp.ones((2, 1))}
DEPS = surgery.groups(lambda p, x: x @ p["a"] @ p["b"])(PARAMS, X)


@pytest.mark.parametrize("reader", READERS)
def test_what_reads_a_function_says_what_to_give_for_a_model(reader):
    for name, what in (("linen", r"its `model\.apply`"), ("equinox", "`lambda model")):
        model = MODELS[name]()
        says = rf"got the model object {type(model).__name__}\. Pass {what}"
        with pytest.raises(TypeError, match=says):
            READERS[reader](model)


@pytest.mark.parametrize("reader", READERS)
def test_what_reads_a_function_says_what_it_was_called_with(reader):
    def strange(p, x):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine") as error:
        READERS[reader](strange)
    (note,) = _ours(error)
    assert "`fn` was called with `params` dict of" in note
    assert note.partition(" and ")[2].startswith("float32[2, 4].")


def test_groups_of_a_bound_method_names_who_knows_more():
    dense = linen.Dense(3)
    params = dense.init(jax.random.key(0), X)["params"]
    with pytest.raises(Exception, match="collection") as error:
        surgery.groups(dense.apply)(params, X)
    notes = "".join(error.value.__notes__)
    assert "`jprune.frameworks.linen.groups(model, ...)`" in notes
    with pytest.raises(RuntimeError) as error:
        surgery.groups(_raises)(params, X)
    assert "frameworks" not in "".join(error.value.__notes__)


def _raises(p, x):
    raise RuntimeError


def _ours(error):
    notes = getattr(error.value, "__notes__", ())
    return [note for note in notes if "[jprune]" in note]


LOADS = {"nnx": jnnx, "linen": jlinen, "equinox": jeqx, "haiku": jhk}


@pytest.mark.parametrize("name", LOADS)
def test_load_takes_the_model_first(name):
    model = MODELS[name]()
    says = (
        rf"`plan` must be the file .* got {type(model).__name__}.*`load\(model, plan\)"
    )
    with pytest.raises(TypeError, match=says):
        LOADS[name].load("plan.json", model)


class _Normed(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        h = linen.Dense(4)(x)
        return linen.Dense(3)(linen.BatchNorm(use_running_average=not train)(h))


def test_variables_without_a_collection_of_the_module():
    model = _Normed()
    variables = model.init(jax.random.key(0), X)
    params = {"params": variables["params"]}
    says = "as its `init` gave them; got dict of 'params': .*batch_stats"
    with pytest.raises(ValueError, match=says) as error:
        jlinen.groups(model, params, X)
    assert not _ours(error)
    says = r'by collection, \{"params".*its other collections beside them'
    with pytest.raises(ValueError, match=says):
        compress.recalibrate(model, variables["params"], [X], momentum=0.9, train=True)


def test_a_call_in_training_mode_is_told_once():
    model = _Normed()
    variables = model.init(jax.random.key(0), X)
    deps = jlinen.groups(model, variables, X)
    plan = surgery.select(deps, deps.scores(variables), sparsity=0.5)
    small, packed = jlinen.shrink(model, plan), plan.pack(variables)
    with pytest.raises(Exception, match="immutable") as error:
        small.apply(packed, X, train=True)
    (note,) = _ours(error)
    assert "training mode" in note


def test_a_batch_for_a_module_that_takes_one_example():
    linear = MODELS["equinox"]()
    with pytest.raises(Exception, match=".") as error:
        jeqx.groups(linear, X)
    assert "takes one example: give `x[0]`" in "".join(error.value.__notes__)
    with pytest.raises(TypeError, match="Without `state` it has no statistics"):
        compress.recalibrate(linear, [X])
