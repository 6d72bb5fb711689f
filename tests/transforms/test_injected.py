"""`optax.inject_hyperparams`: what is injected, what is static; steps are integers.

That injected numbers change no result is row 7 of the contract test.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import masks, transforms

STEPS, SIZE, KEPT = 9, 100, 10


def params():
    return {"w": jax.random.normal(jax.random.key(0), (10, 10))}


STATIC = {
    "swd": ("total_steps", "every", "min_keep"),
    "prune_gradually": ("begin", "end", "every", "min_keep"),
    "rigl": ("end", "every", "begin", "min_keep", "key"),
}
GIVEN = {
    "swd": {"learning_rate": 0.05, "mu": 5e-4, "total_steps": STEPS},
    "prune_gradually": {"end": STEPS - 1},
    "rigl": {"learning_rate": 0.05, "end": STEPS, "every": 2},
}


@pytest.mark.parametrize("name", STATIC)
def test_the_count_is_exact_with_the_static_arguments(name):
    make = optax.inject_hyperparams(getattr(transforms, name), STATIC[name])
    tx = make(sparsity=0.9, **GIVEN[name])
    update, at = jax.jit(tx.update), params()
    state = tx.init(at)
    assert "sparsity" in state.hyperparams and "every" not in state.hyperparams
    for _ in range(STEPS):
        updates, state = update(jax.tree.map(jnp.sin, at), state, at)
        at = optax.apply_updates(at, updates)
    assert int(jnp.sum(at["w"] != 0)) == KEPT


def test_an_injected_strength_acts():
    make = optax.inject_hyperparams(transforms.swd, STATIC["swd"])
    tx = make(sparsity=0.9, a_max=1e3, **GIVEN["swd"])
    state = tx.init(params())
    zero = jax.tree.map(jnp.zeros_like, params())
    update = jax.jit(tx.update)
    one, _ = update(zero, state, params())
    state.hyperparams["a_min"] = 2 * state.hyperparams["a_min"]
    two, _ = update(zero, state, params())
    moved = one["w"] != two["w"]
    assert int(jnp.sum(moved)) == SIZE - KEPT


@pytest.mark.parametrize("name", STATIC)
def test_numbers_that_must_be_static_are_named(name):
    make = optax.inject_hyperparams(getattr(transforms, name))
    steps = [n for n in STATIC[name] if n != "key"]
    named = ", ".join(f"`{n}`" for n in steps)
    with pytest.raises(ValueError, match=f"{named} must be .*`static_args`"):
        make(sparsity=0.9, **GIVEN[name]).init(params())


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda n: transforms.prune_once(lambda p: p, step=n), "step"),
        (lambda n: transforms.gsm(0.1, weight_decay=0.1, keep=5, total_steps=n), None),
        (lambda n: transforms.sr_ste(0.1, 2, 4, total_steps=n), None),
        (lambda n: transforms.truncate_rank(0.5, every=n), "every"),
        (lambda n: transforms.add_growing_decay(0.1, 0.5, every=n), "every"),
        (lambda n: transforms.issr(0.1, sparsity=0.5, end=n), "end"),
        (lambda n: transforms.tpp(0.1, [], {}, weight_decay=0.0, total_steps=n), None),
        (lambda n: transforms.prune_unmoved(0.1, every=n, end=4), "every"),
    ],
)
def test_every_recipe_says_so(make, named):
    with pytest.raises(ValueError, match=f"`{named or 'total_steps'}` must be .*stat"):
        make(jnp.int32(2))


def half(params):
    return masks.unstructured(params, 0.5)


def anything(step):
    """A function of the parameters that takes a step for them without complaint."""
    return {"w": jnp.ones((10, 10), bool)}


STEPS_OF = {"every", "begin", "end", "min_keep", "total_steps", "period", "steps", "n"}
CALLED = {
    "prune_once-select": {"select": half, "step": 3},
    "prune_once-own": {"select": anything, "step": 3},
    "keep_masked-mask": {"mask": masks.from_zeros},
    "mask_updates-mask": {"mask": masks.from_zeros},
    "swd-select": {"mu": 0.1, "select": half, "total_steps": 9, "a_max": 1.0},
    "swd-own": {"mu": 0.1, "select": anything, "total_steps": 9, "a_max": 1.0},
    "swd-scope": {
        "mu": 0.1,
        "sparsity": 0.5,
        "total_steps": 9,
        "a_max": 1.0,
        "scope": masks.prunable,
    },
    "add_selective_decay-select": {"mu": 0.1, "strength": 1.0, "select": half},
    "issp-select": {"select": half, "end": 3},
    "issp-own": {"select": anything, "end": 3},
    "issr-select": {"select": half, "end": 3},
    "issr-own": {"select": anything, "end": 3},
    "issr-optimizer": {"sparsity": 0.5, "end": 3, "optimizer": optax.sgd},
    "shrink_softly-select": {"select": half, "end": 3},
    "add_growing_decay-select": {"increment": 0.1, "select": half},
    "prune_gradually-scope": {"sparsity": 0.5, "end": 3, "scope": masks.prunable},
    "prune_gradually-score": {"sparsity": 0.5, "end": 3, "score": lambda p, g=None: p},
    "prune_by_weight_history-scope": {
        "sparsity": 0.5,
        "end": 3,
        "scope": masks.prunable,
    },
    "prune_unmoved-unit": {"every": 1, "end": 3, "unit": lambda p: p},
    "add_masked_l1-mask": {"strength": 0.1, "mask": half},
    "network_slimming-scope": {"strength": 0.1, "scope": masks.prunable},
    "trp-scope": {"every": 2, "scope": masks.prunable},
    "sr_ste-axis": {"n": 2, "m": 5, "axis": 0},
    "sr_ste-scope": {"n": 2, "m": 5, "scope": masks.prunable},
    "prune_to_n_of_m-axis": {"n": 2, "m": 5, "axis": 0, "end": 3},
    "gsm-scope": {"weight_decay": 0.1, "sparsity": 0.5, "scope": masks.prunable},
    "mask_by_saliency-scope": {"sparsity": 0.5, "scope": masks.prunable},
    "rigl-scope": {"sparsity": 0.5, "end": 9, "every": 2, "scope": masks.prunable},
    "rigl-own": {"sparsity": 0.5, "end": 9, "every": 2, "allocation": lambda p: 0.5},
    "gap-partitions": {"sparsity": 0.5, "partitions": 1, "steps": 1, "period": 2},
    "gap-scope": {
        "sparsity": 0.5,
        "partitions": 1,
        "steps": 1,
        "period": 2,
        "scope": masks.prunable,
    },
}


@pytest.mark.parametrize("name", CALLED)
def test_a_function_that_was_called_as_a_schedule_is_named_as_the_cause(name):
    make = getattr(transforms, name.split("-")[0])
    options = inspect.signature(make).parameters
    given = CALLED[name] | (
        {"learning_rate": 0.1} if "learning_rate" in options else {}
    )
    static = [n for n in options if n in {*STEPS_OF, "m", "step"}]
    if name == "gap-scope":
        static.append("partitions")
    with pytest.raises((ValueError, TypeError)) as caught:
        optax.inject_hyperparams(make, static)(**given).init(params())
    assert "inject_hyperparams" in str(caught.value)
    assert "`static_args`" in str(caught.value)


def test_every_recipe_with_a_function_has_a_row():
    takes = {
        name
        for name in dir(transforms)
        if inspect.isroutine(getattr(transforms, name))
        and not name.startswith("_")
        and "select" in inspect.signature(getattr(transforms, name)).parameters
    }
    assert takes - {"finish"} <= {name.split("-")[0] for name in CALLED}


NO_STEPS = {
    "prune_gradually-end": lambda: transforms.prune_gradually(0.9, end=0.75 * 18),
    "prune_gradually-every": lambda: transforms.prune_gradually(0.9, end=9, every=2.5),
    "weight_history": lambda: transforms.prune_by_weight_history(0.9, end=13.5),
    "prune_once": lambda: transforms.prune_once(lambda p: p, step=3.0),
    "grow_and_prune": lambda: transforms.grow_and_prune(
        optax.sgd(0.1), 0.5, partitions=1, period=4.5, steps=2
    ),
    "drop_and_grow": lambda: transforms.drop_and_grow(optax.sgd(0.1), 0.5, every=2.5),
    "rigl": lambda: transforms.rigl(0.1, sparsity=0.5, end=7.5),
    "truncate_rank": lambda: transforms.truncate_rank(0.8, every=2.5),
    "trp": lambda: transforms.trp(0.1, every=2, total_steps=12.5),
    "add_growing_decay": lambda: transforms.add_growing_decay(0.1, 0.5, every=2.5),
    "issr": lambda: transforms.issr(0.1, sparsity=0.5, end=7.5),
    "shrink_softly": lambda: transforms.shrink_softly(0.5, end=7.5),
    "add_selective_decay": lambda: transforms.add_selective_decay(
        0.1, 1.0, sparsity=0.5, every=1.5
    ),
    "swd": lambda: transforms.swd(0.1, mu=0.1, total_steps=9.5, sparsity=0.5),
    "gsm": lambda: transforms.gsm(0.1, weight_decay=0.1, keep=5, total_steps=9.5),
    "prune_to_n_of_m": lambda: transforms.prune_to_n_of_m(2, 4, end=1.5, begin=0),
    "prune_to_n_of_m-n": lambda: transforms.prune_to_n_of_m(2.0, 4, end=1),
    "add_pruned_decay": lambda: transforms.add_pruned_decay(0.1, True, 4),
    "prune_in_turn": lambda: transforms.prune_in_turn([], {}, begin=7.5),
    "tpp": lambda: transforms.tpp(0.1, [], {}, total_steps=9.5, weight_decay=0.0),
    "tpp-end": lambda: transforms.tpp(
        0.1, [], {}, total_steps=9, end=7.5, weight_decay=0.0
    ),
}


@pytest.mark.parametrize("make", NO_STEPS.values(), ids=NO_STEPS)
def test_a_step_has_a_whole_number(make):
    with pytest.raises(
        ValueError, match=r"` must be a whole number, got .*: use round"
    ):
        make()


def test_integers_of_numpy_are_whole():
    end, every = np.int64(2), np.array(1)
    tx = transforms.prune_gradually(0.9, end=end, every=every)
    at = params()
    state = tx.init(at)
    for _ in range(3):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, at), state, at)
        at = optax.apply_updates(at, updates)
    assert int(jnp.sum(at["w"] != 0)) == KEPT
