"""Every public function names an argument of another kind, and packages their names."""

import importlib
import inspect
import pickle
from collections.abc import Callable
from typing import Any, get_origin

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from jprune import (
    analysis,
    at_init,
    compress,
    masks,
    reparam,
    surgery,
    transforms,
)
from jprune._public import _is_scalar
from jprune._typing import kinds_of

PARAMS = {"kernel": jnp.arange(8.0).reshape(2, 4)}
NAN = float("nan")
X = jnp.ones((1, 2))


def net(params, x):
    return x @ params["kernel"]


PLAN = surgery.plan_from_keep(surgery.groups(net)(PARAMS, X), {})
WRONG: dict[str, Any] = {
    "a text for a rate": (
        lambda: transforms.gsm("a", weight_decay=0.1, keep=2),
        "learning_rate",
    ),
    "none for a step": (lambda: transforms.prune_gradually(0.5, end=None), "end"),
    "half a step": (lambda: transforms.prune_gradually(0.5, end=2.5), "end"),
    "none for beta": (
        lambda: transforms.prune_by_weight_history(0.5, end=9, beta=None),
        "beta",
    ),
    "a text for gamma": (
        lambda: transforms.prune_by_weight_history(0.5, end=9, gamma="1"),
        "gamma",
    ),
    "a text for a factor": (
        lambda: transforms.shrink_softly(0.5, end=9, factor="a"),
        "factor",
    ),
    "NaN for momentum": (
        lambda: transforms.rigl(0.1, sparsity=0.5, total_steps=900, momentum=NAN),
        "momentum",
    ),
    "a negative rate": (
        lambda: transforms.rigl(-0.1, sparsity=0.5, end=9),
        "learning_rate",
    ),
    "momentum above 1": (
        lambda: transforms.trp(0.1, momentum=2.5),
        "momentum",
    ),
    "a text for a tree": (lambda: masks.above(PARAMS, "x"), "threshold"),
    "a text for a rate that may be None": (
        lambda: transforms.add_masked_l1(0.1, masks.full(PARAMS), learning_rate="x"),
        "learning_rate",
    ),
    "a text for a switch": (
        lambda: transforms.rigl(0.1, sparsity=0.5, total_steps=900, nesterov="no"),
        "nesterov",
    ),
    "a text for alpha": (lambda: reparam.powerpropagation("2"), "alpha"),
    "a share for a function": (lambda: reparam.straight_through(0.5), "select"),
    "an optimizer for a share": (
        lambda: transforms.prune_gradually(optax.sgd(0.1), end=9),
        "sparsity",
    ),
    "a choice that is none": (
        lambda: surgery.verify(net, PLAN, PARAMS, X, reference="zero"),
        "reference",
    ),
    "a text for paths": (lambda: surgery.groups(net, free_outputs="y"), "free_outputs"),
    "none for parameters": (lambda: surgery.verify(net, PLAN, None, X), "params"),
    "none for a plan's file": (lambda: surgery.load_plan(None), "path"),
    "a number for groups": (lambda: masks.from_groups(PARAMS, 3, {}), "groups"),
    "none for a function": (
        lambda: analysis.trainability(None, PARAMS, jnp.ones((1, 2))),
        "apply",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_argument_is_named(case):
    call, name = WRONG[case]
    with pytest.raises((TypeError, ValueError), match=rf"^\[jprune\] `{name}` must be"):
        call()


def test_what_python_says_of_missing_arguments_stays():
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        transforms.rigl()


def test_an_error_of_the_callers_own_function_stays():
    def select(params):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        transforms.finish(PARAMS, select)


def test_numbers_of_every_kind_pass():
    for rate in (1, 0.5, np.float32(0.5), jnp.float32(0.5), lambda step: 0.5):
        transforms.gsm(rate, weight_decay=0.1, keep=2).init(PARAMS)
    tx = optax.inject_hyperparams(transforms.gsm, static_args=("keep",))
    tx(learning_rate=0.1, weight_decay=0.1, keep=2).init(PARAMS)


PACKAGES = sorted({*jprune.__all__} - {"__version__", "cite"}) + ["frameworks"]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_shows_its_public_names_alone(package):
    module = importlib.import_module(f"jprune.{package}")
    names = dir(module)
    assert names and not any(
        name.startswith("_") or name == "settled" for name in names
    )
    for name in names:
        value = getattr(module, name)
        if inspect.isfunction(value):
            assert value.__module__ == f"jprune.{package}"
            assert pickle.loads(pickle.dumps(value)) is value


def test_help_is_short():
    """Aliases stand under their names, classes without their modules."""
    text = str(inspect.signature(transforms.rigl))
    assert "learning_rate: ScalarOrSchedule," in text
    assert "mask: Mask | Callable[[Params], Mask] | None = None" in text
    assert text.endswith("-> GradientTransformationExtraArgs") and "jaxlib" not in text
    assert "deps: Groups" in str(inspect.signature(surgery.select))


BAD = {"kernel": jnp.array([[1.0, NAN], [2.0, 3.0]]), "out": jnp.ones((2, 2))}


def loss(params, x):
    return jnp.sum(x @ params["kernel"]) ** 2


NOT_FINITE = [
    lambda: at_init.snip(loss, BAD, NAN * np.eye(2)),
    lambda: at_init.grasp(loss, BAD, np.eye(2)),
    lambda: compress.truncate(BAD, energy=0.9),
    lambda: transforms.truncate_rank(0.9).init(BAD),
    lambda: compress.low_rank(loss, BAD, {"kernel": 1}, break_even=False),
]


@pytest.mark.parametrize("call", NOT_FINITE)
def test_values_that_are_not_finite_are_found_by_their_leaf(call):
    message = r"(?s)^\[jprune\] .*finite:.*\n  kernel: \d of 4$"
    with pytest.raises(ValueError, match=message):
        call()


def test_constants_inside_of_jit_are_known():
    params = {"kernel": jnp.eye(2)}
    cut = jax.jit(lambda: compress.truncate(params, energy=0.4).ranks)()
    assert int(cut["kernel"]) == 1
    with pytest.raises(ValueError, match="kernel: 1 of 4"):
        jax.jit(lambda: compress.truncate({"kernel": BAD["kernel"]}, energy=0.9))()


def test_a_plan_that_is_not_there(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match=r"`path` must be a file.*are other\.json"
    ):
        surgery.load_plan(tmp_path / "plan.json")
    with pytest.raises(ValueError, match="is a folder"):
        surgery.load_plan(tmp_path)


def test_what_a_function_raises_says_how_it_was_called():
    fn = lambda p, x: x @ p["w"]  # noqa: E731
    with pytest.raises(TypeError) as error:
        surgery.groups(fn)(jnp.ones((2, 3)), {"w": jnp.ones((3, 4))})
    (note,) = [n for n in error.value.__notes__ if n.startswith("[jprune]")]
    assert "`params` float32[2, 3] and dict of 'w'." in note
    with pytest.raises(TypeError) as error:
        compress.recalibrate(lambda s, x: x @ s, jnp.ones(2), [jnp.ones((3, 5))])
    assert any("on the batch float32[3, 5]." in n for n in error.value.__notes__)


def test_an_object_for_a_tree_is_said():
    class Model:
        """As a Keras model, which has a `dtype`."""

        dtype = np.dtype("float32")

    message = r"^\[jprune\] `params` must be a tree of arrays, got Model: give its "
    with pytest.raises(TypeError, match=message):
        analysis.report(Model())
    message = r"^\[jprune\] `apply` must be a function, got 3\.$"
    with pytest.raises(TypeError, match=message):
        analysis.trainability(3, PARAMS, jnp.ones((1, 2)))


def test_a_long_argument_is_not_printed():
    with pytest.raises(TypeError, match=r"got dict of 'kernel'\.$"):
        transforms.check(PARAMS, optax.sgd(0.1))


def test_a_plan_goes_into_a_folder_that_is_there(tmp_path):
    deps = surgery.groups(lambda p, x: x @ p["kernel"])(PARAMS, jnp.ones((1, 2)))
    plan = surgery.plan_from_keep(deps, {})
    with pytest.raises(FileNotFoundError, match=r"lies in no folder: make '.*gone'"):
        plan.save(tmp_path / "gone" / "plan.json")


def test_an_optimizer_goes_nowhere_but_around():
    adam: Any = optax.adam(0.1)
    for call, name in (
        (lambda: transforms.prune_gradually(adam, end=5), "sparsity"),
        (lambda: transforms.keep_masked(adam), "mask"),
        (lambda: transforms.prune_to_n_of_m(adam, 4, end=5), "n"),
        (lambda: transforms.add_pruned_decay(adam, 2, 4), "strength"),
    ):
        with pytest.raises(TypeError, match=rf"`{name}` must.*got an optimizer.*chain"):
            call()
    transforms.drop_and_grow(adam, 0.5, every=2, end=4)


def test_a_state_of_other_parameters():
    tx = transforms.prune_gradually(0.5, end=5)
    other = tx.init({"w": jnp.ones((3, 3))})
    message = (
        r"^\[jprune\] `state` belongs to other parameters.*tx\.init\(params\).*plan"
    )
    with pytest.raises(ValueError, match=message):
        tx.update(PARAMS, other, PARAMS)
    narrow = tx.init({"kernel": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match=message):
        tx.update(PARAMS, narrow, PARAMS)
    held = transforms.keep_masked({"kernel": jnp.ones((2, 3), bool)})
    with pytest.raises(ValueError, match=r"`mask` must have the shape of each param"):
        held.update(PARAMS, held.init({"kernel": jnp.ones((2, 3))}), PARAMS)
    with pytest.raises(KeyError, match="mine"):  # one of its own is not blamed

        def score(params, grad):
            if isinstance(params["kernel"], jax.ShapeDtypeStruct):
                return params
            raise KeyError("mine")

        own = transforms.prune_gradually(0.5, end=5, score=lambda p, g: p)
        later = transforms.prune_gradually(0.5, end=5, score=score)
        later.update(PARAMS, own.init(PARAMS), PARAMS)


def test_the_arguments_of_another_library():
    with pytest.raises(ValueError, match=r"`scope`='conv' matches no leaf"):
        masks.unstructured(PARAMS, 0.5, scope="conv")
    with pytest.raises(
        ValueError, match=r"got 'local'\. Each leaf by itself is 'leaf'"
    ):
        masks.unstructured(PARAMS, 0.5, ranking="local")  # type: ignore[arg-type]
    deps, _ = two_layers()
    with pytest.raises(ValueError, match=r'Torch-Pruning\'s "local" is "group"'):
        surgery.select(deps, {}, sparsity=0.5, ranking="local")  # type: ignore[arg-type]


def two_layers():
    """Groups and parameters of a network with one hidden layer."""
    params = {"a": jnp.ones((2, 4)), "b": jnp.ones((4, 3))}
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731
    return surgery.groups(fn)(params, jnp.ones((1, 2))), params


def test_another_function_than_that_of_the_plan():
    deps, params = two_layers()
    plan = surgery.plan_from_keep(deps, {"a:1": [0, 1]})
    other = lambda p, x: x @ p["kernel"]  # noqa: E731
    with pytest.raises(KeyError) as error:
        surgery.shrink(other, plan)(plan.pack(params), jnp.ones((1, 2)))
    assert any("`params` dict of 'a', 'b'" in note for note in error.value.__notes__)
    with pytest.raises(ValueError, match=r"plan was made for.*differ:\n  kernel$"):
        surgery.verify(other, plan, PARAMS, jnp.ones((1, 2)))


def test_what_calibration_returns_prints_short():
    deps, params = two_layers()
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731
    batch = jnp.arange(6.0).reshape(3, 2)
    text = repr(compress.wanda(fn, params, [batch], sparsity=0.5))
    assert text.startswith("<Calibrated: 2 layers pruned, largest error 0.")
    assert len(text) < 90


def half(params):
    return masks.unstructured(params, 0.5)


SHARE = {"sparsity": 0.5}
RECIPES: dict[str, tuple[tuple, dict[str, Any]]] = {
    "add_growing_decay": ((0.1,), SHARE),
    "add_masked_l1": ((0.1, half), {}),
    "add_pruned_decay": ((0.1,), {"n": 2, "m": 4}),
    "add_selective_decay": ((0.1, 1.0), SHARE),
    "drop_and_grow": ((optax.sgd(0.1),), {**SHARE, "end": 900}),
    "gap": ((0.1,), {**SHARE, "partitions": 2, "steps": 2, "total_steps": 20}),
    "grow_and_prune": (
        (optax.sgd(0.1),),
        {**SHARE, "partitions": 2, "period": 2, "steps": 2},
    ),
    "gsm": ((0.1,), {**SHARE, "weight_decay": 0.1}),
    "issp": ((0.1,), {**SHARE, "total_steps": 10}),
    "issr": ((0.1,), {**SHARE, "total_steps": 10}),
    "mask_by_saliency": ((), SHARE),
    "network_slimming": ((0.1,), {"strength": 0.1}),
    "prune_by_weight_history": ((0.5,), {"end": 9}),
    "prune_gradually": ((0.5,), {"end": 9}),
    "prune_once": ((half,), {"step": 1}),
    "prune_to_n_of_m": ((2, 4), {"end": 9}),
    "prune_unmoved": ((), {"every": 3, "end": 9}),
    "rigl": ((0.1,), {**SHARE, "total_steps": 900}),
    "shrink_softly": ((), {**SHARE, "end": 9}),
    "sparse_evolutionary": ((0.1,), {**SHARE, "every": 9, "total_steps": 99}),
    "sr_ste": ((0.1,), {"n": 2, "m": 4}),
    "static_sparse": ((0.1,), SHARE),
    "swd": ((0.1,), {**SHARE, "mu": 1e-6, "total_steps": 9}),
    "trp": ((0.1,), {}),
    "truncate_rank": ((), {}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_number_of_a_recipe_is_checked(name):
    """None, a text, NaN and a schedule in the place of each number that there is."""
    fn: Any = getattr(transforms, name)
    args, kwargs = RECIPES[name]
    parameters = inspect.signature(fn.__wrapped__).parameters
    given = inspect.signature(fn).bind(*args, **kwargs).arguments
    assert fn(**given) is not None
    numbers = {n: kinds_of(p.annotation) for n, p in parameters.items()}
    numbers = {n: kinds for n, kinds in numbers.items() if _is_scalar(kinds)}
    assert numbers or not args
    for argument, kinds in numbers.items():
        scheduled = any(get_origin(kind) is Callable for kind in kinds)
        for wrong in ("x", NAN, None, lambda _: 0.1):
            if wrong is None and type(None) in kinds:
                continue
            if callable(wrong) and scheduled:
                continue
            with pytest.raises(
                (TypeError, ValueError), match=rf"`{argument}`"
            ) as error:
                fn(**{**given, argument: wrong})
            assert str(error.value).startswith("[jprune] "), (argument, wrong)


def test_a_warning_is_of_the_line_of_the_user():
    """However many of our own frames lie between."""
    params = {"a": jnp.ones((4, 64)), "b": jnp.ones((64, 2))}
    net = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]  # noqa: E731
    deps = surgery.groups(net)(params, jnp.ones((1, 4)))
    with pytest.warns(UserWarning) as seen:
        transforms.swd(1.0, mu=0.1, sparsity=0.5, total_steps=100)
        surgery.select(deps, deps.scores(params), flops=0.05)
    assert [warning.filename for warning in seen] == [__file__] * 2
