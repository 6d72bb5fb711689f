"""Kinds of faults: buffers that are shared, numbers that are not finite, bad schedules.

What holds when one entry of a gradient is NaN or infinite, for every transformation:

    outside, `optax.apply_if_finite(tx)`: nothing moves, neither parameters nor state
    inside, a penalty or gradient map before `apply_if_finite(sgd)`: the optimizer sees
        the entry and refuses the step; the next step is an ordinary one
    inside, a projection behind `apply_if_finite(sgd)`: parameters stay finite; averages
        skip the entry
    inside, `drop_and_grow` around it: no mask moves with such a gradient

A weight that is not finite ranks last. Removed, it is NaN until it is masked.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jprune import masks, scores, transforms
from jprune.surgery import AxisRef, Group
from tests.transforms.table import GROUPS, TABLE, gradients, half, tree

QUICK = {
    "prune_gradually",
    "mask_by_saliency",
    "prune_by_weight_history",
    "keep_masked",
}
CASES = pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, marks=[pytest.mark.slow] * (c.name not in QUICK), id=c.name)
        for c in TABLE
    ],
)
FIRST = ("add_", "mask_", "merge_")
LAST = ("keep_", "prune_", "shrink_", "truncate_rank")


def pointers(tree: Any) -> list[int]:
    arrays = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    return [x.unsafe_buffer_pointer() for x in arrays]


@pytest.mark.parametrize("case", TABLE, ids=lambda c: c.name)
def test_a_fresh_state_holds_no_buffer_twice(case):
    params = jax.tree.map(jnp.copy, tree("dict"))
    found = pointers((params, case.make().init(params)))
    assert len(found) == len(set(found))


@pytest.mark.parametrize("inner", [optax.contrib.prodigy, optax.contrib.dadapt_adamw])
def test_an_inner_optimizer_that_keeps_the_parameters(inner):
    """Prodigy and D-Adaptation remember where they started: not in the same buffer."""
    for tx in (
        transforms.drop_and_grow(inner(), 0.5),
        transforms.grow_and_prune(inner(), 0.5, partitions=1, period=2, steps=1),
    ):
        params = jax.tree.map(jnp.copy, tree("dict"))
        found = pointers((params, tx.init(params)))
        assert len(found) == len(set(found))


def test_an_optimizer_whose_moments_cannot_be_told_is_named():
    """A line search looks at the first parameter, and the stand-in has none."""
    params = tree("dict")
    tx = transforms.drop_and_grow(optax.lbfgs(), 0.5)
    with pytest.raises(TypeError, match=r"line search, such as `optax.lbfgs`.*adam"):
        tx.update(params, tx.init(params), params)


@CASES
def test_parameters_and_state_are_donated(case):
    tx = case.make()
    params = jax.tree.map(jnp.copy, tree("dict"))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for t in range(3):
        params, state = step(params, state, gradients(tree("dict"), t))
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
    "make",
    [
        transforms.keep_masked,
        transforms.mask_updates,
        lambda m: transforms.add_masked_l1(0.1, m),
        lambda m: transforms.drop_and_grow(optax.sgd(0.1), mask=m),
        lambda m: transforms.static_sparse(0.1, mask=m),
        lambda m: transforms.grow_and_prune(
            optax.sgd(0.1), 0.5, partitions=1, period=2, steps=1, mask=m
        ),
    ],
    ids=["keep", "updates", "l1", "drop_and_grow", "static", "grow_and_prune"],
)
def test_the_callers_mask_outlives_the_state(make):
    params = tree("dict")
    mask = half(params)
    for x in jax.tree.leaves(make(mask).init(params)):
        x.delete()
    assert int(masks.count(mask)) == 40


def spoiled(grads: Any, bad: float) -> Any:
    """One entry of the first kernel replaced."""
    kernel = grads["one"]["kernel"].at[1, 2].set(bad)
    return {**grads, "one": {**grads["one"], "kernel": kernel}}


def stepper(tx):
    def step(grads, state, params):
        extra = {"grad": grads}
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return jax.jit(step)


@CASES
def test_outside_nothing_moves(case):
    tx = optax.apply_if_finite(case.make(), 9)
    params, step = tree("dict"), stepper(tx)
    state = tx.init(params)
    params, state = step(gradients(params), state, params)
    for bad in (np.nan, np.inf):
        now, after = step(spoiled(gradients(params, 1), bad), state, params)
        same = (now, after.inner_state), (params, state.inner_state)
        jax.tree.map(np.testing.assert_array_equal, *same)


@CASES
def test_inside_the_parameters_stay_finite(case):
    guarded = optax.apply_if_finite(optax.sgd(0.1), 9)
    if case.name.startswith(FIRST):
        tx = optax.chain(case.make(), guarded)
    elif case.name.startswith(LAST):
        tx = optax.chain(guarded, case.make())
    else:
        pytest.skip("holds its own optimizer: see outside")
    step = stepper(tx)
    for bad in (np.nan, -np.inf):
        params = tree("dict")
        state = tx.init(params)
        for t in range(4):
            grads = gradients(params, t)
            params, state = step(
                spoiled(grads, bad) if t == 1 else grads, state, params
            )
        for x in jax.tree.leaves((params, state)):
            assert not jnp.issubdtype(x.dtype, jnp.floating) or np.isfinite(x).all()


@pytest.mark.parametrize("grow", ["gradient", "random"])
def test_a_refused_gradient_moves_no_mask(grow):
    inner = optax.apply_if_finite(optax.sgd(0.1, 0.9), 10)
    tx = transforms.drop_and_grow(
        inner, mask=half, drop_fraction=0.5, every=2, begin=1, grow=grow,
        also_step=grow == "random",
    )  # fmt: skip
    params, step = tree("dict"), stepper(tx)
    state = tx.init(params)
    for t in range(5):
        before = state.mask
        grads = gradients(params, t)
        params, state = step(spoiled(grads, np.nan) if t == 2 else grads, state, params)
        moved = [
            bool(jnp.any(a != b))
            for a, b in zip(*map(jax.tree.leaves, (before, state.mask)), strict=True)
        ]
        assert any(moved) == (t == 4)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


@pytest.mark.parametrize("signal", ["grad_momentum", "product"])
def test_an_average_skips_what_is_not_finite(signal):
    """The largest gradients keep their weights, with a NaN among them or not."""
    params = {"w": jnp.ones((4, 8))}
    grads = {"w": jnp.arange(32.0).reshape(4, 8)}
    tx = transforms.prune_by_weight_history(0.5, end=6, every=3, signal=signal)
    update = jax.jit(tx.update)
    for bad in (0.0, np.nan, np.inf):
        state = tx.init(params)
        for t in range(7):
            g = {"w": grads["w"].at[3, 7].set(bad)} if t == 2 and bad else grads
            _, state = update(
                jax.tree.map(jnp.zeros_like, params), state, params, grad=g
            )
        assert state.mask["w"].tolist() == [[False] * 8] * 2 + [[True] * 8] * 2


def test_a_saliency_that_is_not_finite_takes_no_place():
    params = {"w": jnp.ones((1, 6))}
    grads = {"w": jnp.array([[1.0, np.nan, 3.0, np.inf, 5.0, 6.0]])}
    tx = transforms.mask_by_saliency(keep=2)
    got, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    np.testing.assert_array_equal(got["w"], [[0, np.nan, 0, np.inf, 5, 6]])


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_weight_that_is_not_finite_ranks_last_and_is_seen(bad):
    """The count holds; nothing that is added to an infinity makes it 0."""
    params = {"w": jnp.arange(1.0, 9.0).reshape(2, 4).at[0, 0].set(bad)}
    zero = jax.tree.map(jnp.zeros_like, params)
    for last in (
        transforms.prune_gradually(0.5, end=0),
        transforms.prune_once(lambda p: masks.unstructured(p, 0.5), step=0),
    ):
        updates, _ = last.update(zero, last.init(params), params)
        got = np.asarray(optax.apply_updates(params, updates)["w"])
        np.testing.assert_array_equal(got, [[np.nan, 0, 0, 0], [5, 6, 7, 8]])


def test_removed_infinities_are_zero_after_finish():
    """No update lands them: what is added to an infinity is never 0."""
    params = {"w": jnp.array([[jnp.inf, jnp.nan, 1.0, 2.0]])}
    mask = {"w": jnp.array([[False, False, True, True]])}
    done, _ = transforms.finish(params, lambda _: mask)
    np.testing.assert_array_equal(done["w"], [[0, 0, 1, 2]])


def test_a_schedule_that_comes_down_is_refused():
    falls = optax.piecewise_constant_schedule(0.8, {3: 0.3125})
    for make in (transforms.prune_gradually, transforms.prune_by_weight_history):
        with pytest.raises(
            ValueError, match="must not decrease.*0.8 at step 2 and 0.25"
        ):
            make(falls, end=6, every=1)
    late = optax.piecewise_constant_schedule(0.5, {1_900_000: 0.5})
    with pytest.raises(ValueError, match="must not decrease"):
        transforms.prune_gradually(late, end=2_000_000)
    transforms.prune_gradually(falls, end=2)  # it comes down after the end
    transforms.prune_gradually(optax.cosine_decay_schedule(0.9, 10, 1.0), end=20)


NEGATIVE = {
    "mu": lambda x: transforms.add_selective_decay(x, 10.0, sparsity=0.5),
    "strength": lambda x: transforms.add_selective_decay(1e-3, x, sparsity=0.5),
    "a_max": lambda x: transforms.swd(
        0.1, mu=1e-3, a_min=1.0, a_max=abs(x) * np.inf, total_steps=5, sparsity=0.5
    ),
    "increment": lambda x: transforms.add_growing_decay(x, 0.5),
    "limit": lambda x: transforms.issr(0.1, sparsity=0.5, limit=x, total_steps=9),
    "strength ": lambda x: transforms.sr_ste(0.1, 2, 4, strength=x),
    " strength": lambda x: transforms.add_masked_l1(x, half),
    "weight_decay": lambda x: transforms.merge_clusters(
        GROUPS, {"hidden": [0, 1, 0, 1]}, strength=0.1, weight_decay=x
    ),
}


@pytest.mark.parametrize("name", NEGATIVE)
def test_a_penalty_that_pushes_away_is_refused(name):
    for bad in (-1.0, np.nan):
        with pytest.raises(ValueError, match=rf"`{name.strip()}`.*(>= 0|<= a_max)"):
            NEGATIVE[name](bad)


def test_a_share_hidden_in_a_schedule_is_checked():
    for bad in (1.5, -0.5):
        with pytest.raises(ValueError, match="`drop_fraction` must be in"):
            transforms.rigl(0.1, sparsity=0.5, total_steps=400, drop_fraction=bad)
    with pytest.raises(ValueError, match="`total_steps` must be at least 1, got 0"):
        transforms.swd(0.1, mu=1e-3, total_steps=0, sparsity=0.5)


@pytest.mark.parametrize(
    "make",
    [
        transforms.mask_by_saliency,
        lambda sparsity: transforms.add_selective_decay(0.1, 1.0, sparsity=sparsity),
        lambda sparsity: transforms.shrink_softly(sparsity, end=2),
        lambda sparsity: transforms.add_growing_decay(0.1, sparsity),
    ],
)
def test_a_schedule_of_a_sparsity_that_takes_none(make):
    with pytest.raises(TypeError, match="`sparsity` must be .* got a function.*inject"):
        make(sparsity=lambda step: 0.5)


def test_check_waits_for_the_first_update():
    chain = optax.chain(optax.adam(1e-2), transforms.prune_gradually(0.5, end=4))
    params = {"w": jnp.arange(1.0, 17.0).reshape(4, 4)}
    transforms.check(optax.MultiSteps(chain, 4), params)
    with pytest.raises(ValueError, match="saw no update in 256 dry.*pass more `steps`"):
        transforms.check(optax.MultiSteps(chain, 300), params)


SCORES = {
    "saliency": scores.saliency,
    "random": lambda p, g: scores.random(jax.random.key(0), p),
    "normalized": lambda p, g: jax.tree.map(lambda w: w / jnp.linalg.norm(w), p),
}


@pytest.mark.parametrize("name", SCORES)
def test_other_scores_of_gradual_pruning(name):
    params = {"a": jnp.array([[1.0, 2, 3, 4]]), "b": jnp.array([[10.0, 20, 30, 41]])}
    grads = {"a": jnp.array([[9.0, 9, 9, np.nan]]), "b": jnp.array([[0.1, 0.1, 2, 2]])}
    tx = transforms.prune_gradually(0.5, end=0, score=SCORES[name])
    state = tx.init(params)
    zero = jax.tree.map(jnp.zeros_like, params)
    _, state = jax.jit(tx.update)(zero, state, params, grad=grads)
    want = {
        "saliency": ([0, 1, 1, 0], [0, 0, 1, 1]),  # 9 18 27 nan, 1 2 60 82
        "normalized": ([0, 0, 1, 1], [0, 0, 1, 1]),
    }
    assert int(masks.count(state.mask)) == 4
    if name in want:
        np.testing.assert_array_equal(state.mask["a"][0], want[name][0])
        np.testing.assert_array_equal(state.mask["b"][0], want[name][1])


def test_a_score_that_fails_says_what_it_was_called_with():
    params = {"w": jnp.ones((2, 2))}
    tx = transforms.prune_gradually(0.5, end=0, score=scores.saliency)
    state = tx.init(params)
    with pytest.raises(ValueError, match="`grads`") as error:
        tx.update(params, state, params)  # no `grad=`
    notes = "".join(error.value.__notes__)
    assert "`grad` is None: hand the gradient over" in notes and "grad=grads" in notes
    with pytest.raises(TypeError, match="`key`") as error:
        transforms.prune_gradually(0.5, end=0, score=scores.random).init(params)
    notes = "".join(error.value.__notes__)
    assert "`score(params, grad)`" in notes and "None" not in notes


@pytest.mark.parametrize(
    ("params", "got"),
    [
        ({"w": jnp.ones((4, 4)), "act": jax.nn.relu}, "got .* at act"),
        ({"w": jnp.ones((4, 4)), "rngs": jax.random.key(0)}, r"got key<fry>.* at rngs"),
        (object(), "got object: give its"),
    ],
)
def test_check_of_a_whole_model_says_what_to_give(params, got):
    chain = optax.chain(optax.adam(1e-2), transforms.prune_gradually(0.5, end=4))
    with pytest.raises(TypeError, match=rf"\[jprune\] `params` must be .*{got}"):
        transforms.check(chain, params)


def test_issr_with_sgd_and_a_later_first_growth():
    """By hand: r grows at steps 2, 3; w loses 0.1 * r w under SGD of rate 0.1."""
    params = {"w": jnp.array([[2.0, -1.0]])}
    tx = transforms.issr(
        0.1,
        sparsity=0.5,
        end=9,
        every=1,
        begin=2,
        increment=1.0,
        limit=9.0,
        optimizer=optax.sgd,
    )
    state, zero = tx.init(params), jax.tree.map(jnp.zeros_like, params)
    seen = []
    for _ in range(4):
        updates, state = tx.update(zero, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(float(params["w"][0, 1]))
    np.testing.assert_allclose(seen, [-1, -1, -0.9, -0.72], rtol=1e-6)


def test_groups_are_named_by_id_or_by_path():
    one = Group("g1", 2, (AxisRef(("a", "kernel"), 1, "out"), AxisRef(("b",), 0, "in")))
    two = Group("g2", 2, (AxisRef(("b",), 1, "out"),))
    how = {"strength": 0.1, "weight_decay": 0.0}
    with pytest.raises(ValueError, match="names group 'g1' twice"):
        transforms.merge_clusters([one], {"a/kernel": [0, 0], "g1": [0, 0]}, **how)
    both = Group("g3", 2, (AxisRef(("b",), 0, "out"),))
    with pytest.raises(ValueError, match=r"'b', which belongs to \['g2', 'g3'\]"):
        transforms.merge_clusters([two, both], {"b": [0, 0]}, **how)
    tx = transforms.csgd(
        0.1, [one], {"a/kernel": [0, 0]}, strength=0.1, weight_decay=0.0
    )
    params = {"a": {"kernel": jnp.array([[1.0, 3.0]])}, "b": jnp.ones((2, 2))}
    updates, _ = tx.update(
        jax.tree.map(jnp.zeros_like, params), tx.init(params), params
    )
    assert float(updates["a"]["kernel"][0, 0]) > 0 > float(updates["a"]["kernel"][0, 1])


def test_a_penalty_keeps_the_dtype_of_the_update():
    params = {"w": jnp.ones((2, 4))}
    half_precision = {"w": jnp.zeros((2, 4), jnp.bfloat16)}
    for tx in (
        transforms.add_selective_decay(0.1, 1.0, sparsity=0.5),
        transforms.add_masked_l1(0.1, half),
        transforms.add_pruned_decay(0.1, 2, 4, axis=1),
        transforms.add_growing_decay(0.1, 0.5, every=1),
    ):
        updates, _ = tx.update(half_precision, tx.init(params), params)
        assert updates["w"].dtype == jnp.bfloat16


ON_A_MESH = {
    "add_decorrelation": lambda: transforms.add_decorrelation(
        GROUPS, {"hidden": jnp.array([True, False, True, True])}, 0.1
    ),
    "truncate_rank": lambda: transforms.truncate_rank(0.8, every=1),
    "prune_to_n_of_m": lambda: transforms.prune_to_n_of_m(2, 4, axis=0, begin=0, end=1),
}


@pytest.mark.parametrize("name", ON_A_MESH)
def test_a_mesh_of_explicit_axes_that_is_not_set(name):
    """Arrays may lie on a mesh that no `jax.set_mesh` has named."""
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    params, tx = tree("dict"), ON_A_MESH[name]()

    def put(x):
        spec = PartitionSpec(*("x", "y")[: x.ndim])
        return jax.device_put(x, NamedSharding(mesh, spec))

    placed, grads = jax.tree.map(put, (params, gradients(params)))
    got, _ = jax.jit(tx.update)(grads, tx.init(placed), placed)
    want, _ = tx.update(gradients(params), tx.init(params), params)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
