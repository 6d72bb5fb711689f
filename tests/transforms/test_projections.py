"""Projections: fixed masks, the gradual schedule, one removal, and the order check."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jprune import masks, transforms
from tests.transforms.table import gradients, tree


def train(tx, params, steps, first=0, state=None):
    state = tx.init(params) if state is None else state

    @jax.jit
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    path = []
    for t in range(first, first + steps):
        params, state = step(gradients(params, t), state, params)
        path.append(params)
    return path, state


def zeros_in_scope(params):
    scope = masks.prunable(params)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(scope), strict=True)
    return sum(int(jnp.sum(p == 0)) for p, taken in pairs if taken)


def test_keep_masked_passes_kept_updates_bit_for_bit():
    params = tree("dict")
    mask = masks.unstructured(params, 0.5)
    tx = transforms.keep_masked(mask)
    grads = gradients(params)
    updates, _ = tx.update(grads, tx.init(params), params)
    new = optax.apply_updates(params, updates)
    chex.assert_trees_all_equal(
        new, masks.apply(mask, optax.apply_updates(params, grads))
    )
    kept = jax.tree.map(
        lambda u, g, m: bool(jnp.all((u == g) | ~m)), updates, grads, mask
    )
    assert all(jax.tree.leaves(kept))


@pytest.mark.parametrize("p_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("u_dtype", [jnp.float32, jnp.bfloat16])
def test_no_residue_in_any_dtype(p_dtype, u_dtype):
    params = {"w": jnp.array([[1.2345678, 3.1415927]], p_dtype)}
    mask = {"w": jnp.array([[False, True]])}
    tx = transforms.keep_masked(mask)
    small = {"w": jnp.array([[1e-3, 2e-3]], u_dtype)}
    updates, _ = tx.update(small, tx.init(params), params)
    new = optax.apply_updates(params, updates)
    plain = optax.apply_updates(params, small)
    assert float(new["w"][0, 0]) == 0.0
    assert new["w"][0, 1] == plain["w"][0, 1]


def test_keep_masked_from_the_parameters():
    params = {"w": jnp.array([[0.0, 2.0, 0.0, 1.0]])}
    tx = optax.chain(optax.adam(0.1), transforms.keep_masked(masks.from_zeros))
    path, _ = train(tx, params, 5)
    np.testing.assert_array_equal(path[-1]["w"] == 0, params["w"] == 0)


@pytest.mark.parametrize("make", [transforms.keep_masked, transforms.mask_updates])
def test_mask_of_another_structure(make):
    params = {"w": jnp.ones((2, 2)), "v": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="exactly the structure.*\n  missing: v"):
        make({"w": jnp.ones((2, 2), bool)}).init(params)
    with pytest.raises(
        ValueError, match=r"(?s)`mask` must have the shape.*v: \(2,\) against"
    ):
        make({"w": jnp.ones((2, 2), bool), "v": jnp.ones(2, bool)}).init(params)
    with pytest.raises(ValueError, match="exactly the structure"):
        make({"w": jnp.ones((2, 2), bool), "v": None}).init(params)


def test_schedules_g1_cubic_every_five_steps():
    """s 0 -> 0.8 from step 10 to 30 every 5: .4625, .7, .7875, .8 (Zhu and Gupta)."""
    params = {"w": jax.random.normal(jax.random.key(0), (20, 40))}
    tx = optax.chain(
        optax.sgd(0.01), transforms.prune_gradually(0.8, begin=10, end=30, every=5)
    )
    path, _ = train(tx, params, 40)
    counts = [int(jnp.sum(p["w"] == 0)) for p in path]
    want = {9: 0, 10: 0, 14: 0, 15: 370, 19: 370, 20: 560, 25: 630, 30: 640, 39: 640}
    assert {t: counts[t] for t in want} == want


def test_schedules_g2_cosine_and_iterative():
    """Cosine to 80 % in ten steps; to 90 % in four rounds of one equal share."""
    falling = optax.cosine_decay_schedule(0.8, 10)
    tx = transforms.prune_gradually(lambda t: 0.8 - falling(t), end=10)
    path, _ = train(tx, {"w": jax.random.normal(jax.random.key(0), (10, 10))}, 12)
    zeros = [int(jnp.sum(p["w"] == 0)) for p in path]
    assert [zeros[t] for t in (0, 5, 10, 11)] == [0, 40, 80, 80]
    masks_of = []
    transforms.prune_iteratively(
        lambda p, mask: masks_of.append(mask) or p,
        {"w": jax.random.normal(jax.random.key(0), (100, 200))},
        0.9,
        rounds=4,
    )
    densities = [1 - masks.sparsity(mask) for mask in masks_of]
    np.testing.assert_allclose(densities, [1, 0.5623, 0.3162, 0.1778, 0.1], atol=8e-5)


def test_last_update_at_end_whatever_the_period():
    params = {"w": jax.random.normal(jax.random.key(0), (10, 10))}
    tx = transforms.prune_gradually(0.9, end=7, every=5)
    path, _ = train(tx, params, 9)
    assert [int(jnp.sum(p["w"] == 0)) for p in path][6:] == [88, 90, 90]


def test_schedules_g11_g12_exact_zeros_and_nested_masks_under_adam_and_decay():
    params = tree("dict")
    tx = optax.chain(
        optax.adamw(0.05, weight_decay=0.1), transforms.prune_gradually(0.7, end=20)
    )
    path, _ = train(tx, params, 50)
    n = masks.size(params)
    previous = masks.full(params)["one"]["kernel"]
    for t, p in enumerate(path):
        tau = min(t / 20, 1)
        s = 0.7 - 0.7 * (1 - tau) ** 3
        if t >= 20 or abs(s * n + 0.5 - round(s * n + 0.5)) > 1e-3:
            assert zeros_in_scope(p) == n - masks.kept_count(n, s)
        kept = p["one"]["kernel"] != 0
        assert not jnp.any(kept & ~previous)
        previous = kept
    assert zeros_in_scope(path[-1]) == n - masks.kept_count(n, 0.7)


def test_gradual_twin():
    """Against NumPy in float64: the same mask at each of 25 steps."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(2)
        w, v = rng.normal(size=(9, 11)), rng.normal(size=(11, 5))
        keep = np.ones(w.size + v.size, bool)
        params = {"v": jnp.asarray(v), "w": jnp.asarray(w)}
        tx = optax.chain(
            optax.sgd(0.05), transforms.prune_gradually(0.6, end=19, every=3)
        )
        state, step = tx.init(params), jax.jit(tx.update)
        for t in range(25):
            g = {"v": rng.normal(size=v.shape), "w": rng.normal(size=w.shape)}
            updates, state = step(jax.tree.map(jnp.asarray, g), state, params)
            params = optax.apply_updates(params, updates)
            flat = np.concatenate([v.ravel(), w.ravel()])
            if t <= 19 and (t % 3 == 0 or t == 19):
                s = 0.6 - 0.6 * (1 - t / 19) ** 3
                size = np.where(keep, np.abs(flat), -1)
                kept = keep.size - int(np.floor(s * keep.size + 0.5))
                keep = np.zeros_like(keep)
                keep[np.argsort(-size, kind="stable")[:kept]] = True
            move = 0.05 * np.concatenate([g["v"].ravel(), g["w"].ravel()])
            flat = np.where(keep, flat - move, 0)
            v, w = flat[: v.size].reshape(v.shape), flat[v.size :].reshape(w.shape)
            np.testing.assert_array_equal(params["v"] != 0, v != 0)
            np.testing.assert_array_equal(params["w"] != 0, w != 0)
        np.testing.assert_allclose(params["w"], w, rtol=1e-12)


def test_schedule_ends_at_the_decimal_it_means():
    """0.57 of 10,000 is 5,700, though float32 and int() say 5,699."""
    params = {"w": jax.random.normal(jax.random.key(0), (100, 100))}
    tx = transforms.prune_gradually(optax.linear_schedule(0.0, 0.57, 2), end=2)
    path, _ = train(tx, params, 3)
    assert int(jnp.sum(path[-1]["w"] == 0)) == 5700


def test_gradual_per_leaf_tree():
    params = tree("dict")
    target = masks.erk(params, 0.5)
    path, _ = train(transforms.prune_gradually(target, end=2), params, 3)
    for key in ("one", "two"):
        kernel = path[-1][key]["kernel"]
        wanted = kernel.size - masks.kept_count(kernel.size, target[key]["kernel"])
        assert int(jnp.sum(kernel == 0)) == wanted


def test_zero_initialized_weight_is_not_taken_for_removed():
    params = {"w": jnp.zeros((4, 4))}
    tx = optax.chain(optax.sgd(1.0), transforms.prune_gradually(0.5, end=5, begin=3))
    path, _ = train(tx, params, 3)
    assert int(jnp.sum(path[-1]["w"] != 0)) == 16


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"sparsity": 0.5, "begin": 3, "end": 2}, "0 <= begin <= end"),
        ({"sparsity": 0.5, "end": 2, "every": 0}, "every >= 1"),
    ],
)
def test_gradual_bad_steps(kwargs, message):
    with pytest.raises(ValueError, match=message):
        transforms.prune_gradually(**kwargs)


@pytest.mark.parametrize("sparsity", [1.0, -0.2, optax.constant_schedule(1.2)])
def test_gradual_bad_sparsity(sparsity):
    with pytest.raises(ValueError, match=r"`sparsity` must be in \[0, 1\)"):
        transforms.prune_gradually(sparsity, end=2).init(tree("dict"))


def test_budget_smaller_than_the_floors():
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2)), "c": jnp.ones((10, 10))}
    with pytest.raises(ValueError, match="`min_keep` guarantees 3 over 3 leaves"):
        transforms.prune_gradually(0.98, end=1).init(params)


def test_prune_once_removes_at_its_step_and_holds():
    params = tree("dict")
    select = lambda p: masks.unstructured(p, 0.5)  # noqa: E731
    tx = optax.chain(
        optax.sgd(0.1, momentum=0.9), transforms.prune_once(select, step=3)
    )
    path, _ = train(tx, params, 8)
    counts = [zeros_in_scope(p) for p in path]
    removed = masks.size(params) - masks.kept_count(masks.size(params), 0.5)
    assert counts == [0, 0, 0] + [removed] * 5
    chex.assert_trees_all_equal(masks.from_zeros(path[3]), masks.from_zeros(path[-1]))


def test_prune_once_leaves_zero_biases_alone():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
    select = lambda p: masks.unstructured(p, 0.5)  # noqa: E731
    tx = optax.chain(optax.sgd(0.1), transforms.prune_once(select, step=0))
    path, _ = train(tx, params, 3)
    assert jnp.all(path[-1]["bias"] != 0)


def test_two_projections_intersect():
    params = {"w": jnp.arange(1.0, 9.0).reshape(2, 4)}
    even = {"w": jnp.array([[True, False] * 2] * 2)}
    tx = optax.chain(
        optax.sgd(0.0),
        transforms.prune_gradually(0.5, end=0),
        transforms.keep_masked(even),
    )
    path, _ = train(tx, params, 1)
    np.testing.assert_array_equal(path[-1]["w"], [[0, 0, 0, 0], [5, 0, 7, 0]])


def test_finish_masks_an_average():
    params = {"w": jax.random.normal(jax.random.key(1), (8, 8))}
    tx = optax.chain(optax.sgd(0.1), transforms.prune_gradually(0.75, end=10))
    path, _ = train(tx, params, 12)
    average = jax.tree.map(lambda *x: sum(x) / len(x), *path)
    assert int(jnp.sum(average["w"] != 0)) > 16
    final, mask = transforms.finish(average, lambda p: masks.unstructured(p, 0.75))
    assert int(jnp.sum(final["w"] != 0)) == 16 == int(masks.count(mask))


def test_scores_in_place_of_a_mask_are_refused():
    """They would keep nearly everything, and nothing would tell."""
    params = {"w": jnp.ones((2, 2))}
    for call in (
        lambda: transforms.finish(params, lambda p: p),
        lambda: transforms.prune_once(lambda p: p, step=0).init(params),
        lambda: transforms.keep_masked(params).init(params),
        lambda: transforms.mask_updates(lambda p: p).init(params),
        lambda: transforms.diagnostics(params, params),
    ):
        with pytest.raises(ValueError, match=r"`mask` must hold bools.*\n  w: float32"):
            call()
    with pytest.raises(ValueError, match="missing: w"):
        transforms.diagnostics(params, {"a": jnp.ones((2, 2), bool)})


@pytest.mark.parametrize("select", [0.9, {"w": np.ones((2, 2), bool)}])
def test_a_number_or_a_mask_is_no_select(select):
    message = r"`select` must be a function .* got (float|dict)\. .*`masks\.apply`"
    with pytest.raises(TypeError, match=message):
        transforms.finish({"w": jnp.ones((2, 2))}, select)
    with pytest.raises(TypeError, match=message):
        transforms.prune_once(select, step=0)


def gradual():
    return transforms.prune_gradually(0.5, end=5)


def once():
    return transforms.prune_once(lambda p: masks.unstructured(p, 0.5), step=5)


@pytest.mark.parametrize("projection", [gradual, once])
def test_check_accepts_the_right_order(projection):
    params = tree("dict")
    transforms.check(optax.chain(optax.adam(0.1), projection()), params)
    transforms.check(optax.MultiSteps(projection(), 2), params, steps=4)
    labels = {"one": {"kernel": "a", "bias": "b"}, "two": {"kernel": "a"}}
    inner = {"a": optax.chain(optax.sgd(0.1), projection()), "b": optax.sgd(0.1)}
    transforms.check(optax.partition(inner, labels), params)


@pytest.mark.parametrize("projection", [gradual, once])
def test_check_refuses_a_projection_before_the_learning_rate(projection):
    wrong = optax.chain(projection(), optax.sgd(0.1, momentum=0.9))
    with pytest.raises(ValueError, match="A projection must come last"):
        transforms.check(wrong, tree("dict"))


def test_check_is_not_fooled_by_weights_that_start_at_zero():
    params = {"kernel": jnp.zeros((8, 4)), "bias": jnp.zeros(4)}
    transforms.check(optax.chain(optax.sgd(0.1), once()), params)
    with pytest.raises(ValueError, match="of them kept by every stored mask"):
        transforms.check(optax.chain(once(), optax.sgd(0.1)), params)


@pytest.mark.parametrize(
    "recipe",
    [
        transforms.swd(0.05, mu=5e-4, a_max=10.0, total_steps=20, sparsity=0.9),
        transforms.gsm(0.05, sparsity=0.9, weight_decay=5e-4, total_steps=20),
        transforms.prune_once(lambda p: masks.unstructured(p, 0.5), step=5),
    ],
    ids=["swd", "gsm", "prune_once"],
)
def test_check_refuses_clipping_after_a_single_removal(recipe):
    """Small weights reach zero through the clip, so that some zero is no proof."""
    params, tx = {"w": jax.random.normal(jax.random.key(0), (40, 40))}, recipe
    transforms.check(tx, params)
    with pytest.raises(ValueError, match="weights: [1-9][0-9]* became 0"):
        transforms.check(optax.chain(tx, optax.clip(0.01)), params)


def test_prune_once_counts_what_it_removed():
    params = {"kernel": jnp.arange(8.0).reshape(2, 4), "bias": jnp.zeros(2)}
    tx = optax.chain(optax.sgd(0.0), once())
    assert int(train(tx, params, 5)[1][1].removed) == 0
    assert int(train(tx, params, 8)[1][1].removed) == 3  # of four, one was 0 before


def test_check_of_a_chain_that_ends_within_its_dry_steps():
    """At rest such a chain removes too; that must not hide what the probe does."""

    def select(p):
        return masks.unstructured(p, 0.5)

    soon = transforms.prune_once(select, step=1)
    transforms.check(optax.chain(optax.sgd(0.1), soon), tree("dict"))
    held = transforms.keep_masked(select)
    labels = {"one": "a", "two": "b"}
    both = optax.partition({"a": held, "b": optax.chain(soon, optax.sgd(0.1))}, labels)
    with pytest.raises(ValueError, match="of them kept by every stored mask"):
        transforms.check(both, tree("dict"))


def test_check_refuses_an_averaging_wrapper():
    averaged = optax.chain(optax.sgd(0.1), gradual(), optax.ema(0.9))
    with pytest.raises(ValueError, match="one/kernel: 16 not zero"):
        transforms.check(averaged, tree("dict"))


@pytest.mark.parametrize("tx, params", [
    (optax.masked(transforms.keep_masked(masks.full), {"w": False}), (4, 4)),
    (transforms.keep_masked({"w": jnp.array(True)}), (4, 4)),
    (optax.chain(transforms.keep_masked(masks.full), optax.sgd(0.1)), (1, 1)),
])  # fmt: skip
def test_check_refuses_to_pass_on_nothing(tx, params):
    with pytest.raises(ValueError, match="no weight that a projection .* could remove"):
        transforms.check(tx, {"w": jnp.ones(params)})


def test_check_beside_integer_leaves():
    tx = optax.chain(optax.sgd(0.1), transforms.prune_gradually(0.5, end=3))
    params = {"n": jnp.int32(3), "w": jnp.ones((4, 4))}
    transforms.check(tx, params)
    wrong = optax.chain(transforms.prune_gradually(0.5, end=3), optax.sgd(0.1))
    with pytest.raises(ValueError, match="do not end at exactly 0"):
        transforms.check(wrong, params)


def test_check_refuses_a_chain_without_projection():
    penalty = transforms.add_selective_decay(0.1, 1.0, sparsity=0.5)
    with pytest.raises(ValueError, match="found no projection"):
        transforms.check(optax.chain(penalty, optax.sgd(0.1)), tree("dict"))


def test_diagnostics():
    params = {"w": jnp.array([[4.0, -3.0, 0.5, 0.1]]), "b": jnp.ones(3)}
    mask = masks.unstructured(params, 0.5)
    before = {"w": jnp.array([[True, False, True, False]]), "b": jnp.array(True)}
    tx = transforms.mask_by_saliency(sparsity=0.5)
    _, state = tx.update(params, tx.init(params), params)
    out = jax.jit(transforms.diagnostics)(params, mask, previous=before, state=state)
    assert float(out["targeted_fraction"]) == 0.5
    assert float(out["largest_targeted"]) == 0.5
    assert float(out["mask_churn"]) == 0.5
    assert int(out["threshold_passes"]) >= 1


def test_state_sharding_needs_named_shardings():
    with pytest.raises(ValueError, match="NamedSharding"):
        transforms.state_sharding(gradual(), tree("dict"), {"one": None})


@pytest.mark.parametrize(
    "optimizer",
    [lambda: optax.adafactor(0.1, min_dim_size_to_factor=2), lambda: optax.sm3(0.1)],
    ids=["adafactor", "sm3"],
)
def test_state_of_another_shape_is_replicated(optimizer):
    mesh = jax.make_mesh((4,), ("x",))
    rows, whole = NamedSharding(mesh, P("x")), NamedSharding(mesh, P())
    params = {"w": jnp.ones((8, 12)), "b": jnp.ones(16)}
    tx = optax.chain(optimizer(), transforms.keep_masked(masks.full))
    where = transforms.state_sharding(tx, params, {"w": rows, "b": rows})
    state = jax.jit(tx.init, out_shardings=where)(params)
    for x, sharding in zip(*map(jax.tree.leaves, (state, where)), strict=True):
        like = rows if x.shape in ((8, 12), (16,)) else whole
        assert sharding.is_equivalent_to(like, x.ndim)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_placed_state_comes_back_in_the_same_form(kind):
    """Another form of the same sharding would compile the step a second time."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,))
    rows = NamedSharding(mesh, P("x", None))
    tx = transforms.drop_and_grow(optax.sgd(0.1), 0.5)
    with jax.set_mesh(mesh):
        params = jax.device_put({"w": jnp.ones((8, 4))}, rows)
        where = transforms.state_sharding(tx, params, {"w": rows})
        state = jax.device_put(tx.init(params), where)
        passed = jax.jit(lambda s: jax.tree.map(jnp.copy, s))(state)
    for x, y in zip(*map(jax.tree.leaves, (state, passed)), strict=True):
        assert x.sharding == y.sharding


def quadratic_training(goal):
    """A run of the recipe: gradient descent on a quadratic, masked."""

    def run(params, mask):
        tx = optax.chain(optax.sgd(0.2), transforms.keep_masked(mask))
        state, step = tx.init(params), jax.jit(tx.update)
        for _ in range(30):
            grads = jax.tree.map(lambda p, g: p - g, params, goal)
            updates, state = step(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params

    return run


@pytest.mark.parametrize("rewind", ["weights", "learning_rate"])
def test_iterative_magnitude_pruning(rewind):
    goal = {"w": jnp.array([[8.0, 7, 6, 5, 4, 3, 2, 1]])}
    start = {"w": jnp.full((1, 8), 0.1)}
    seen = []

    def train_and_note(params, mask):
        seen.append((params, mask))
        return quadratic_training(goal)(params, mask)

    params, mask = transforms.prune_iteratively(
        train_and_note, start, 0.75, rounds=2, rewind=rewind
    )
    np.testing.assert_array_equal(mask["w"], [[True] * 2 + [False] * 6])
    np.testing.assert_allclose(params["w"], [[8, 7, 0, 0, 0, 0, 0, 0]], rtol=1e-2)
    second = seen[1][0]["w"][0, :4]
    expected = 0.1 if rewind == "weights" else jnp.array([8.0, 7, 6, 5])
    np.testing.assert_allclose(second, expected * jnp.ones(4), rtol=1e-2)
    assert len(seen) == 3 and bool(jnp.all(seen[1][0]["w"][0, 4:] == 0))


def test_training_that_lets_removed_weights_grow_is_an_error():
    params = {"w": jnp.arange(1.0, 9).reshape(2, 4)}
    free = lambda p, mask: jax.tree.map(lambda x: x + 0.1, p)  # noqa: E731
    with pytest.raises(ValueError, match=r"must hold the mask(.|\n)*w: 4 not zero"):
        transforms.prune_iteratively(free, params, [0.5])


def test_iterative_errors():
    run = quadratic_training({"w": jnp.ones((1, 2))})
    with pytest.raises(ValueError, match="`sparsity` must increase"):
        transforms.prune_iteratively(run, {"w": jnp.ones((1, 2))}, [0.5, 0.2])
    with pytest.raises(ValueError, match="`rewind` must be"):
        transforms.prune_iteratively(
            run, {"w": jnp.ones((1, 2))}, [0.5], rewind="nothing"
        )
    for rounds, sparsity in ((None, 0.5), (2, [0.2, 0.5])):
        with pytest.raises(ValueError, match="Give `rounds` with one number"):
            transforms.prune_iteratively(
                run, {"w": jnp.ones((1, 2))}, sparsity, rounds=rounds
            )
    with pytest.raises(ValueError, match="`rounds` must be at least 1"):
        transforms.prune_iteratively(run, {"w": jnp.ones((1, 2))}, 0.5, rounds=0)
