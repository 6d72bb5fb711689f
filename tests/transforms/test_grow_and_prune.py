"""GaP against hand-computed numbers (g1 to g9), NumPy twins, partitions, errors."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import masks, scores, transforms
from jprune.transforms._grow_in_parallel import combine_grown
from jprune.transforms._partitions import split_by_path, split_evenly
from tests.transforms.table import gradients, tree

grow_and_prune = transforms.grow_and_prune


def layers(*sizes, dtype=jnp.float32):
    """One kernel for each size, in the order of their names."""
    keys = jax.random.split(jax.random.key(1), len(sizes))
    return {
        f"layer_{i}": {"kernel": jax.random.normal(k, (1, n), dtype)}
        for i, (k, n) in enumerate(zip(keys, sizes, strict=True))
    }


def run(tx, params, steps, grads=gradients, state=None):
    """The masks at first and after each update, the parameters, the last state."""
    state, step = tx.init(params) if state is None else state, jax.jit(tx.update)
    seen, path = [state.mask], []
    for t in range(steps):
        updates, state = step(grads(params, t), state, params)
        params = optax.apply_updates(params, updates)
        seen.append(state.mask)
        path.append(params)
    return seen, path, state


def kept(mask):
    return [int(m.sum()) for m in jax.tree.leaves(mask) if m.ndim]


@functools.cache
def three_layers():
    """Layers of 10, 20 and 30 weights at sparsity 0.8: 7 steps of 2, and 2 more."""
    tx = grow_and_prune(optax.sgd(0.1), 0.8, partitions=3, period=2, steps=7)
    return run(tx, layers(10, 20, 30), 16)


def test_gap_g1_schedule():
    seen, _, _ = three_layers()
    for step, mask in enumerate(seen[2:16:2]):
        want = [2, 4, 6]
        want[[0, 1, 2, 0, 1, 2, 0][step]] *= 5
        assert kept(mask) == want
    assert kept(seen[0]) == [10, 4, 6]
    assert all(kept(mask) == [2, 4, 6] for mask in seen[3::2])  # hand-overs


def test_gap_g2_sizes():
    seen, _, _ = three_layers()
    totals = [sum(kept(mask)) for mask in seen[2::2]]
    assert totals == [20, 28, 36, 20, 28, 36, 20, 12]  # after the last update of each


def test_gap_g7_ends_at_the_target():
    _, path, _ = three_layers()
    nonzero = [sum(int(jnp.sum(p != 0)) for p in jax.tree.leaves(x)) for x in path]
    assert nonzero[13] == 20 and nonzero[14:] == [12, 12] and 12 / 60 == 0.2


def test_gap_g3_hand_over():
    params = {"w": jnp.array([[0.1, -0.5, 0.2, 0.9, -0.05]]), "z": jnp.ones((1, 5))}
    mask = {"w": jnp.ones((1, 5), bool), "z": jnp.array([[True, True, *[False] * 3]])}
    how: dict[str, Any] = {"partitions": ["w", "z"], "period": 2}
    tx = grow_and_prune(optax.identity(), 0.6, **how, steps=2)
    state = tx.init(params)._replace(count=jnp.int32(2), mask=mask)
    zero = lambda p, t: jax.tree.map(jnp.zeros_like, p)  # noqa: E731
    seen, path, _ = run(tx, params, 3, zero, state)
    np.testing.assert_array_equal(seen[1]["w"], [[0, 1, 0, 1, 0]])
    np.testing.assert_array_equal(path[1]["w"], np.float32([[0, -0.5, 0, 0.9, 0]]))
    assert kept(seen[2]) == [2, 5]
    np.testing.assert_array_equal(path[1]["z"], [[1, 1, 0, 0, 0]])
    assert kept(seen[3]) == [2, 2]  # after the last step nothing grows


def test_gap_g4_grown_weights_start_at_zero():
    params = layers(10, 10)
    tx = grow_and_prune(optax.sgd(0.1), 0.5, partitions=2, period=3, steps=2)
    seen, path, state = run(tx, params, 4)
    old, w = seen[3]["layer_1"]["kernel"], path[-1]["layer_1"]["kernel"]
    assert kept(seen[3]) == [10, 5] and kept(seen[4]) == [5, 5]
    np.testing.assert_array_equal(w[~old], 0)
    ones = jax.tree.map(jnp.ones_like, params)
    updates, state = tx.update(ones, state, path[-1])
    assert kept(state.mask) == [5, 10]
    after = optax.apply_updates(path[-1], updates)["layer_1"]["kernel"]
    np.testing.assert_allclose(after[~old], -0.1)


def test_gap_g5_sparse_parts_stay_at_zero():
    params = layers(10, 10, 10)
    inner = optax.adamw(0.1, weight_decay=0.1)
    tx = grow_and_prune(inner, 0.7, partitions=3, period=6, steps=3)
    seen, path, _ = run(tx, params, 12)
    for t in range(7, 12):
        assert kept(seen[t + 1]) == [3, 10, 3]
        for name in ("layer_0", "layer_2"):
            outside = ~seen[t + 1][name]["kernel"]
            np.testing.assert_array_equal(path[t][name]["kernel"][outside], 0.0)


BLOCKS = {
    "block_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "block_1": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "block_2": {"kernel": jnp.ones((2, 2)), "norm": {"scale": jnp.ones(2)}},
    "out": jnp.ones(3),
}


def test_gap_g6_combine():
    partition = split_by_path(BLOCKS, ["block_0/", "block_1/", "block_2/k"])
    workers = [jax.tree.map(lambda p, i=i: p * i, BLOCKS) for i in (1.0, 2.0, 3.0)]
    got = combine_grown(workers, partition)
    for i in range(3):
        assert all(jnp.all(x == i + 1) for x in jax.tree.leaves(got[f"block_{i}"]))
    np.testing.assert_array_equal(got["out"], 1)


def test_a_glob_is_no_path_pattern():
    with pytest.raises(ValueError, match=r"`patterns`='\*/kernel' is not a regular"):
        split_by_path(BLOCKS, ["*/kernel"])


def test_gap_g8_one_part():
    params = {"w": jnp.array([[3.0, 1.0, -2.0, 0.5]])}
    tx = grow_and_prune(optax.identity(), 0.5, partitions=1, period=2, steps=2)
    state = tx.init(params)._replace(count=jnp.int32(2))
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    new = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(new["w"], [[3, 0, -2, 0]])
    np.testing.assert_array_equal(state.mask["w"], [[1, 0, 1, 0]])
    _, state = tx.update(updates, state, new)
    np.testing.assert_array_equal(state.mask["w"], True)


def top(w, keep):
    """The mask of the `keep` largest magnitudes of one layer, ties by position."""
    mask = np.zeros(w.size, bool)
    mask[np.argsort(-np.abs(w).ravel(), kind="stable")[:keep]] = True
    return mask.reshape(w.shape)


@pytest.mark.parametrize("restart", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_gap_twin(restart):
    """C-GaP as the specification has it, heavy ball with decay: 3 parts, 7 steps."""
    sizes, kappa, period, steps, rate = (12, 15, 20), 3, 3, 7, 0.2
    keep = [n - int(np.floor(0.7 * n + 0.5)) for n in sizes]
    schedule = optax.linear_schedule(1.0, 0.5, 2)
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        params = layers(*sizes, dtype=jnp.float64)
        inner = optax.chain(
            optax.add_decayed_weights(0.01),
            optax.trace(0.9),
            optax.scale_by_schedule(lambda t: -schedule(t)),
        )
        tx = grow_and_prune(
            inner,
            0.7,
            partitions=kappa,
            period=period,
            steps=steps,
            restart=restart,
            rate=rate,
        )
        state, update = tx.init(params), jax.jit(tx.update)
        mask = [np.asarray(m["kernel"]) for m in state.mask.values()]
        assert [m.sum() for m in mask] == [sizes[0], *keep[1:]]
        w = [np.where(m, p, 0) for m, p in zip(mask, _kernels(params), strict=True)]
        params = masks.apply(state.mask, params)
        moment, count = [np.zeros_like(x) for x in w], 0
        for t in range(steps * period + 6):
            g = [rng.normal(size=x.shape) for x in w]
            grads = {
                k: {"kernel": jnp.asarray(x)} for k, x in zip(params, g, strict=True)
            }
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
            step, place = divmod(t, period)
            hands_over = place == 0 and 1 <= step <= steps
            if hands_over:
                prev = (step - 1) % kappa
                mask[prev] = mask[prev] & top(w[prev], keep[prev])
            elif place == 1 and 1 <= step < steps:
                mask[step % kappa] = np.ones_like(mask[step % kappa])
            if not hands_over or not restart:
                for i in range(kappa):
                    moment[i] = 0.9 * moment[i] + g[i] * mask[i] + 0.01 * w[i]
            if hands_over:
                w[prev] = w[prev] * mask[prev]
                for i in range(kappa):
                    moment[i] = moment[i] * (0 if restart else mask[i])
                count = 0 if restart else count + 1
            else:
                factor = 1 - 0.25 * min(count, 2)
                for i in range(kappa):
                    w[i] = np.where(mask[i], w[i] - rate * factor * moment[i], 0)
                count += 1
            for m, want in zip(state.mask.values(), mask, strict=True):
                np.testing.assert_array_equal(m["kernel"], want)
        for p, want in zip(_kernels(params), w, strict=True):
            np.testing.assert_allclose(p, want, rtol=1e-9, atol=1e-12)
        assert [m.sum() for m in mask] == keep


def _kernels(params):
    return [np.asarray(layer["kernel"]) for layer in params.values()]


def quadratic(goal: Any, steps: int) -> Any:
    """A worker: gradient descent towards `goal`, at a rate that tells workers apart."""

    def train(params, mask, worker, number):
        rate = 0.1 / (1 + worker + number)
        tx = optax.chain(optax.sgd(1.0, 0.9), transforms.keep_masked(mask))

        def body(carry, _):
            params, state = carry
            grads = jax.tree.map(lambda p, g: rate * (p - g), params, goal)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, tx.init(params)), length=steps)[0][0]

    return train


@pytest.mark.parametrize("workers", ["vmap", "loop"])
def test_gap_parallel_twin(workers):
    """P-GaP as the specification has it: 2 workers, 3 rounds of 8 steps."""
    names, sizes = ("layer_0", "layer_1"), (24, 30)
    keep = [n - int(np.floor(0.75 * n + 0.5)) for n in sizes]
    with jax.enable_x64(True):
        params, rng = layers(*sizes, dtype=jnp.float64), np.random.default_rng(6)
        goal = {
            k: {"kernel": rng.normal(size=(1, n))}
            for k, n in zip(names, sizes, strict=True)
        }
        lots = scores.random(jax.random.key(5), params)
        mask = masks.unstructured(lots, 0.75, ranking="leaf")
        assert kept(mask) == keep
        got, final = transforms.grow_in_parallel(
            quadratic(goal, 8),
            params,
            0.75,
            partitions=["layer_0", "layer_1"],
            rounds=3,
            workers=workers,
            key=5,
        )
        m = [np.asarray(mask[k]["kernel"]) for k in names]
        w = [np.where(m[i], params[k]["kernel"], 0) for i, k in enumerate(names)]
        for number in range(3):
            new = []
            for i, k in enumerate(names):  # worker i: only its own part is taken
                x, v = w[i].copy(), np.zeros_like(w[i])
                for _ in range(8):
                    v = 0.9 * v + 0.1 / (1 + i + number) * (x - goal[k]["kernel"])
                    x = x - v
                new.append(x)
            m = [top(x, n) for x, n in zip(new, keep, strict=True)]
            w = [x * a for x, a in zip(new, m, strict=True)]
        for i, k in enumerate(names):
            np.testing.assert_array_equal(final[k]["kernel"], m[i])
            np.testing.assert_allclose(got[k]["kernel"], w[i], rtol=1e-9, atol=1e-12)


def test_restart_begins_the_inner_optimizer_anew():
    params = layers(8, 8)
    tx = grow_and_prune(optax.adam(0.1), 0.5, partitions=2, period=2, steps=2)
    _, path, state = run(tx, params, 3)
    one = tx.update(gradients(params), state, path[-1])[1]
    fresh = grow_and_prune(optax.adam(0.1), 0.5, partitions=2, period=9, steps=2)
    begun = fresh.init(path[-1])._replace(mask=one.mask)
    want = fresh.update(gradients(params), begun, path[-1])[1]
    jax.tree.map(np.testing.assert_array_equal, one.inner, want.inner)
    assert int(one.inner[0].count) == 1


def test_moments_alone_are_cleared_without_restart():
    params = layers(8, 8) | {"bias": jnp.zeros(3)}
    tx = grow_and_prune(
        optax.adam(0.1), 0.5, partitions=2, period=2, steps=2, restart=False
    )
    seen, path, state = run(tx, params, 3)
    zero = jax.tree.map(jnp.zeros_like, params)
    after = tx.update(zero, state, path[-1])[1].inner[0]
    assert int(after.count) == 4 and bool(jnp.all(after.mu["bias"] != 0))
    for name in ("layer_0", "layer_1"):
        p, mu = path[-1][name]["kernel"], after.mu[name]["kernel"]
        np.testing.assert_array_equal(mu != 0, p != 0)
    assert kept(seen[3]) == [4, 4]


def test_the_first_mask_is_random_but_for_part_0():
    params = tree("dict")
    tx = grow_and_prune(optax.sgd(0.1), 0.5, partitions=2, period=2, steps=1, key=7)
    lots = scores.random(jax.random.key(7), params)
    drawn = masks.unstructured(lots, 0.5, ranking="leaf")
    first = tx.init(params).mask
    assert kept(first) == [32, 24]
    np.testing.assert_array_equal(first["two"]["kernel"], drawn["two"]["kernel"])


def test_the_recipe_s_length():
    """28 of 33 parts of the run grow and prune, the rest is fine-tuning."""
    params = layers(8, 8)
    tx = transforms.gap(0.1, 0.5, partitions=2, steps=4, total_steps=33)
    seen, _, _ = run(tx, params, 33)
    assert kept(seen[28]) == [8, 4] or kept(seen[28]) == [4, 8]
    assert kept(seen[29]) == [4, 4] == kept(seen[33])
    for bad in ({}, {"period": 3, "total_steps": 11}):
        with pytest.raises(ValueError, match="Give `total_steps`.* or a `period`"):
            transforms.gap(0.1, 0.5, partitions=2, steps=4, **bad)


def test_recipe_follows_its_schedule_through_restarts():
    """Hand-over at update 3 moves nothing; momentum starts again behind it."""
    params = {"w": jnp.ones((1, 4))}
    joined = optax.join_schedules([lambda t: 1.0 - 0.5 * t] * 2, [3])
    tx = transforms.gap(
        joined, 0.0, partitions=1, period=3, steps=2, weight_decay=0.0, momentum=0.5
    )
    _, path, _ = run(tx, params, 5, lambda p, t: {"w": jnp.full((1, 4), 0.1)})
    moved = np.diff([1, *[float(p["w"][0, 0]) for p in path]])
    np.testing.assert_allclose(moved, [-0.1, -0.075, 0, 0, -0.05], atol=1e-6)


def test_check_knows_the_wrapper():
    def wrapped(partitions=2):
        return grow_and_prune(
            optax.adam(0.1), 0.5, partitions=partitions, period=2, steps=2
        )

    transforms.check(wrapped(), tree("dict"))
    with pytest.raises(ValueError, match="A projection must come last"):
        transforms.check(optax.chain(wrapped(), optax.scale(0.5)), tree("dict"))


def test_erk_targets_and_a_traced_sparsity():
    params = tree("dict")
    tx = grow_and_prune(
        optax.sgd(0.1),
        lambda p: masks.erk(p, 0.5),
        partitions=2,
        period=2,
        steps=1,
    )
    seen, _, _ = run(tx, params, 3)
    assert sum(kept(seen[-1])) == 40

    @jax.jit
    def first(sparsity):
        return grow_and_prune(
            optax.sgd(0.1), sparsity, partitions=1, period=2, steps=1
        ).init(params)

    assert kept(first(0.75).mask) == [32, 48]


def test_split_evenly_is_contiguous_and_natural():
    sizes = [3, 1, 2, 4, 5, 1, 2, 3, 3, 2, 9]
    params = {f"c{i}": {"kernel": jnp.ones((1, n))} for i, n in enumerate(sizes)}
    found = split_evenly(params, 3)
    parts = [found[f"c{i}"]["kernel"] for i in range(11)]
    assert parts == sorted(parts) and set(parts) == {0, 1, 2}
    sums = [
        sum(n for n, p in zip(sizes, parts, strict=True) if p == k) for k in (0, 1, 2)
    ]
    assert max(sums) == min(
        max(sum(sizes[:i]), sum(sizes[i:j]), sum(sizes[j:]))
        for i in range(1, 10)
        for j in range(i + 1, 11)
    )


def test_leaves_that_are_not_pruned_go_with_their_module():
    found = split_evenly(BLOCKS, 3)
    for i in range(3):
        assert set(jax.tree.leaves(found[f"block_{i}"])) == {i}
    assert found["out"] == 0
    assert split_evenly(BLOCKS, np.int64(3)) == found
    nested = {"net": BLOCKS}  # a module around all of them is none of theirs
    assert split_evenly(nested, 3)["net"]["out"] == 0


@pytest.mark.parametrize(
    "partitions, message",
    [
        (["block_0", "block_1"], "must cover every leaf.*\n  block_2/kernel"),
        (["block", "block_2"], r"no leaf that is pruned falls to part \[1\]"),
        (0, "must be from 1 to the number of pruned leaves, 3; got 0"),
        (4, "must be from 1 to the number of pruned leaves, 3; got 4"),
        ("block", "a sequence of patterns, got the single 'block'"),
        ({"block_0": 0}, "`partitions` must have exactly the structure of the param"),
        (2.0, "`partitions` must have exactly the structure.*, got a single float"),
        (lambda p: jax.tree.map(lambda _: jnp.int32(0), p), "must hold Python ints"),
        (
            lambda p: split_evenly(p, 3) | {"out": 7},
            "must give each leaf the number of some pruned leaf; got .*7",
        ),
        (lambda p: jax.tree.map(lambda _: 1, p), "must count from 0 up, got"),
        (lambda p: jax.tree.map(lambda _: 0.5, p), "must hold Python ints"),
    ],
)
def test_bad_partitions(partitions, message):
    with pytest.raises(ValueError, match=message):
        grow_and_prune(
            optax.sgd(0.1), 0.5, partitions=partitions, period=2, steps=1
        ).init(BLOCKS)


def test_bad_settings():
    with pytest.raises(ValueError, match="`period` must be at least 2.*got 1, 1"):
        grow_and_prune(optax.sgd(0.1), 0.5, partitions=1, period=1, steps=1)
    with pytest.raises(ValueError, match="`steps` at least 1; got 2, 0"):
        grow_and_prune(optax.sgd(0.1), 0.5, partitions=1, period=2, steps=0)
    with pytest.raises(ValueError, match=r"`sparsity` must be in \[0, 1\)"):
        grow_and_prune(optax.sgd(0.1), 1.0, partitions=1, period=2, steps=1)
    driver = transforms.grow_in_parallel
    settings: dict[str, Any] = {"partitions": 1, "rounds": 1}
    with pytest.raises(ValueError, match="`rounds` must be at least 1, got 0"):
        driver(lambda *a: a[0], BLOCKS, 0.5, **{**settings, "rounds": 0})
    with pytest.raises(ValueError, match="`workers` must be 'vmap' or 'loop', got 'x'"):
        driver(lambda *a: a[0], BLOCKS, 0.5, workers="x", **settings)
    with pytest.raises(ValueError, match="`trained` must have .* 2 workers.*got 1"):
        combine_grown([{"a": 0, "b": 0}], {"a": 0, "b": 1})
