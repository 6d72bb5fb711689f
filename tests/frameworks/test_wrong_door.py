"""A model object given to the functions for functions says which module takes it."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

from jprune import analysis, surgery

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
