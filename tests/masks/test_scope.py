"""Which leaves take part, in the trees of every framework."""

import re
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze

from jprune import masks

PARAMS = {
    "conv": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
    "attention": {"kernel": jnp.ones((4, 2, 2)), "bias": jnp.ones((2, 2))},
    "norms": {"scale": jnp.ones((3, 4)), "mean": jnp.ones((3, 4))},
    "embed": {"embedding": jnp.ones((9, 4))},
    "step": jnp.ones((2, 2), jnp.int32),
    "phase": {"kernel": jnp.ones((2, 2), jnp.complex64)},
}
DEFAULT = ["attention/kernel", "conv/kernel"]


def taken(scope):
    leaves = jax.tree_util.tree_leaves_with_path(scope)
    assert {type(x) for _, x in leaves} <= {bool}
    name = lambda p: jax.tree_util.keystr(p, simple=True, separator="/")  # noqa: E731
    return sorted(name(path) for path, x in leaves if x)


def test_default_rule():
    scope = masks.prunable(PARAMS)
    assert taken(scope) == DEFAULT
    assert jax.tree.structure(scope) == jax.tree.structure(PARAMS)


def test_include_and_exclude():
    assert taken(masks.prunable(PARAMS, include="embedding")) == ["embed/embedding"]
    assert taken(masks.prunable(PARAMS, include="n/kernel$|v/kernel$")) == DEFAULT
    assert taken(masks.prunable(PARAMS, exclude="^conv")) == ["attention/kernel"]
    both = masks.prunable(PARAMS, include="conv|attention", exclude="bias")
    assert taken(both) == DEFAULT
    large = masks.prunable(PARAMS, include=lambda path, leaf: leaf.size > 30)
    assert taken(large) == ["conv/kernel", "embed/embedding"]
    small = masks.prunable(PARAMS, exclude=lambda path, leaf: "conv" in path)
    assert taken(small) == ["attention/kernel"]


def test_an_expression_for_modules_takes_their_weights():
    """As a person means it: "this layer" is not its biases and norms."""
    layer = {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}
    params = {"layer1": {**layer, "norm": {"scale": jnp.ones(8)}}, "layer2": layer}
    found = {pattern: taken(masks.prunable(params, pattern)) for pattern in (
        "layer1", "layer", "layer2/", "layer1/bias", "scale", "1.*(kernel|bias)", "."
    )}  # fmt: skip
    assert found == {
        "layer1": ["layer1/kernel"],
        "layer": ["layer1/kernel", "layer2/kernel"],
        "layer2/": ["layer2/kernel"],
        "layer1/bias": ["layer1/bias"],
        "scale": ["layer1/norm/scale"],
        "1.*(kernel|bias)": ["layer1/bias", "layer1/kernel"],
        ".": [
            "layer1/bias",
            "layer1/kernel",
            "layer1/norm/scale",
            "layer2/bias",
            "layer2/kernel",
        ],
    }
    mask = masks.unstructured(params, 0.5, scope="layer1")
    assert mask["layer1"]["bias"].ndim == 0 == mask["layer1"]["norm"]["scale"].ndim
    with pytest.raises(ValueError, match="takes others if it ends in their names"):
        masks.prunable(params, "norm")


def test_patterns_that_match_nothing():
    for argument in ("include", "exclude"):
        pattern: Any = {argument: "kernels"}
        with pytest.raises(ValueError) as error:
            masks.prunable(PARAMS, **pattern)
        assert f"`{argument}`='kernels' matches no leaf" in str(error.value)
        assert "\n  conv/kernel" in str(error.value)
    with pytest.raises(ValueError, match="`scope`='kernels' matches no leaf"):
        masks.unstructured(PARAMS, 0.5, scope="kernels")


def test_a_glob_is_no_regular_expression():
    reason = r"'\*/kernel' is not a regular expression \(.*write '/kernel\$'"
    for argument in ("include", "exclude"):
        pattern: Any = {argument: "*/kernel"}
        with pytest.raises(ValueError, match=f"`{argument}`={reason}"):
            masks.prunable(PARAMS, **pattern)
    with pytest.raises(ValueError, match=f"`scope`={reason}"):
        masks.unstructured(PARAMS, 0.5, scope="*/kernel")


def test_nothing_prunable():
    with pytest.raises(ValueError, match="by the default rule.*\n.*b float32.3."):
        masks.prunable({"b": jnp.ones(3)})
    counts = {"step": jnp.ones((2, 2), jnp.int32)}
    with pytest.raises(ValueError, match="by `include`='.*'.*must be floating"):
        masks.prunable(counts, include=".*")


TABLES = {
    "one": {"kernel": jnp.ones((2, 2)), "ids": jnp.ones((2, 2), jnp.int32)},
    "two": {"kernel": jnp.ones((2, 2), jnp.int8), "bias": jnp.ones(2)},
    "count": jnp.int32(0),
}


@pytest.mark.parametrize("pattern", ["ids", "one/ids$", "kernel", "bias|kernel", "nt$"])
def test_a_pattern_that_names_an_integer_leaf_is_refused(pattern):
    for take in (
        lambda: masks.prunable(TABLES, include=pattern),
        lambda: masks.unstructured(TABLES, 0.5, scope=pattern),
        lambda: masks.prunable(
            TABLES, include=lambda p, _: bool(re.search(pattern, p))
        ),
    ):
        with pytest.raises(TypeError, match=r"Only floating .*got int(32|8)\[.* at "):
            take()


@pytest.mark.parametrize(
    "pattern, names",
    [
        (".*", ["one/kernel", "two/bias"]),
        ("^one/", ["one/kernel"]),
        ("one|bias", ["one/kernel", "two/bias"]),
        ("one/kernel", ["one/kernel"]),
        (r"\w", ["one/kernel", "two/bias"]),
    ],
)
def test_a_pattern_for_any_name_passes_an_integer_leaf_over(pattern, names):
    assert taken(masks.prunable(TABLES, include=pattern)) == names
    mask = masks.from_zeros(TABLES, pattern)
    assert mask["one"]["ids"].ndim == 0 == mask["count"].ndim


def test_a_pattern_in_another_case_finds_what_it_may_mean():
    many = {f"layer_{i}": {"kernel": jnp.ones((2, 2))} for i in range(20)}
    with pytest.raises(ValueError, match=r"matches no leaf. Near it are:\n  layer_7/k"):
        masks.prunable(many, include="Layer_7")
    with pytest.raises(ValueError, match=r"Near it are:\n  layer_0/kernel\n  layer_1/"):
        masks.prunable(many, exclude="kernal")


def test_verbose(capsys):
    masks.prunable(
        {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}, verbose=True
    )
    assert capsys.readouterr().out == "leave  a/bias\nprune  a/kernel\n"


@pytest.mark.parametrize("empty", [{}, (), None, {"a": {}}])
def test_trees_without_leaves_pass(empty):
    assert masks.prunable(empty) == empty == masks.from_zeros(empty, "anything")
    assert masks.from_zeros(empty) == empty


def test_shapes_will_do():
    shapes = jax.eval_shape(lambda: PARAMS)
    assert taken(masks.prunable(shapes)) == DEFAULT
    assert masks.size(shapes) == 3 * 3 * 2 * 4 + 16


def test_forms_of_a_scope():
    scope = masks.prunable(PARAMS)
    for given in (None, "conv/kernel|attention/kernel", scope, lambda p: scope):
        found = masks.from_zeros(PARAMS, given)
        assert jax.tree.map(lambda m: m.ndim > 0, found) == scope


def with_leaf(value):
    return masks.prunable(PARAMS) | {"step": value}


@pytest.mark.parametrize(
    "scope, error, message",
    [
        (with_leaf(np.True_), TypeError, "must hold Python bools, got bool at step"),
        (with_leaf(1), TypeError, "must hold Python bools, got int at step"),
        (with_leaf(True), TypeError, "Only floating.*got int32.2, 2. at step"),
        ({"conv": True}, ValueError, "`scope` must have exactly the structure"),
        (jax.tree.map(lambda x: False, PARAMS), ValueError, "takes no leaf at all"),
        (lambda p: {"a": True}, ValueError, "`scope` must have exactly the structure"),
    ],
)
def test_errors_of_a_scope(scope, error, message):
    with pytest.raises(error, match=message):
        masks.from_zeros(PARAMS, scope)


def test_complex_leaves_are_refused_by_path():
    scope = masks.prunable(PARAMS) | {"phase": {"kernel": True}}
    with pytest.raises(TypeError, match="got complex64.* at phase/kernel"):
        masks.unstructured(PARAMS, 0.5, scope=scope)


def check(params, names):
    """The default scope is `names`; masks and pruned parameters keep the structure."""
    assert taken(masks.prunable(params)) == sorted(names)

    def prune(params):
        mask = masks.unstructured(params, 0.5)
        return mask, masks.apply(mask, params), masks.from_zeros(params)

    for tree in jax.eval_shape(prune, params):
        assert jax.tree.structure(tree) == jax.tree.structure(params)
    mask, pruned, _ = jax.eval_shape(prune, params)
    given = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    assert [leaf.shape for leaf in jax.tree.leaves(pruned)] == given
    ranked = [m.shape for m in jax.tree.leaves(mask) if m.shape]
    assert sum(map(np.prod, ranked)) == masks.size(params)


def test_flax_linen_frozen_dict():
    net = nn.Sequential([nn.Dense(4), nn.LayerNorm(), nn.Dense(2)])
    variables = jax.eval_shape(net.init, jax.random.key(0), jnp.ones((1, 3)))
    names = ["params/layers_0/kernel", "params/layers_2/kernel"]
    check(freeze(variables), names)


def test_flax_nnx_state():
    rngs = nnx.Rngs(0)
    net = nnx.Sequential(
        nnx.Linear(3, 4, rngs=rngs),
        nnx.BatchNorm(4, rngs=rngs),
        nnx.Embed(5, 4, rngs=rngs),
    )
    state = nnx.state(net, nnx.Param)
    check(state, ["layers/0/kernel/value"])
    # The name is found behind NNX's `value`, so axes have their defaults too.
    assert masks.n_of_m(state, 1, 3)["layers"][0]["kernel"][...].sum() == 4


def test_haiku():
    def forward(x):
        x = hk.Linear(4)(hk.Embed(5, 3)(x))
        return hk.LayerNorm(-1, True, True)(x)

    init = hk.transform(forward).init
    params = jax.eval_shape(init, jax.random.key(0), jnp.zeros(2, jnp.int32))
    check(params, ["linear/w"])


def test_equinox():
    net = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    params = eqx.filter(net, eqx.is_array)
    names = ["layers/0/weight", "layers/1/weight"]
    check(params, names)
    # The tree of bools is callable as the model is; it is taken for the tree it is.
    scope = masks.prunable(params)
    assert callable(scope)
    assert masks.size(params, scope) == 3 * 4 + 4 * 2
    with pytest.raises(ValueError, match="No default output axis for layers/0/weight"):
        masks.channels(params, 0.5)


def test_names_beside_arrays():
    """Keras hands a list; its paths tell kernels from embeddings and biases."""
    arrays = [np.ones((9, 4)), np.ones((4, 2, 2)), np.ones((2, 2)), np.ones((4, 2))]
    names = ["embedding/embeddings", "attention/query/kernel", "attention/query/bias"]
    names = [*names, "dense/kernel"]
    scope = masks.prunable(arrays, names=names)
    assert scope == [False, True, False, True]
    mask = masks.unstructured(arrays, 0.5, scope=scope)
    assert [m.ndim for m in mask] == [0, 3, 0, 2]
    assert masks.prunable(arrays, "dense", names=names) == [False, False, False, True]
    with pytest.raises(
        ValueError, match="`names` must hold one path for each of the 4"
    ):
        masks.prunable(arrays, names=names[:3])


def test_a_bare_list_is_refused():
    kernel, bias = np.ones((4, 2)), np.ones(2)
    with pytest.raises(
        ValueError, match=r"no names(.|\n)*names=(.|\n)*0 float64\[4, 2\]"
    ):
        masks.prunable([kernel, bias])
    # Nor do lists in a pair, or in a list, have names.
    for nested in (([kernel], [bias]), [[bias], [kernel]], [bias, (bias, [kernel])]):
        with pytest.raises(ValueError, match="no names"):
            masks.prunable(nested)
    assert masks.prunable([(kernel, bias)]) == [(True, False)]
    # With a name around, or a scope, it is no guess.
    assert masks.prunable({"convs": [kernel, bias]}) == {"convs": [True, False]}
    assert masks.size([kernel, bias], [True, False]) == 8
    assert masks.prunable([kernel, bias], include=".*") == [True, True]
    assert masks.prunable((kernel, bias)) == (True, False)
    assert masks.prunable([bias, {"w": kernel}]) == [False, {"w": True}]


def test_a_function_of_a_path_says_where_it_belongs():
    params = {"a": {"kernel": jnp.ones((2, 3))}}
    with pytest.raises(TypeError) as caught:
        masks.unstructured(params, 0.5, scope=lambda path, leaf: True)
    assert "prunable(params, include=function)" in caught.value.__notes__[0]


@pytest.mark.parametrize("names", [["a", "b"], ("a", "b")])
def test_a_list_of_names_is_one_expression(names):
    says = rf"'a\|b', got {type(names).__name__} of texts"
    with pytest.raises(TypeError, match=says):
        masks.unstructured(PARAMS, 0.5, scope=names)
