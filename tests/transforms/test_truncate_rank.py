"""TRP against hand-computed numbers (g1 to g5, g9, g10), a NumPy twin, properties.

The numbers of factorisation (g6 to g8) are in tests/compress/test_low_rank.py.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import compress, transforms
from jprune.compress import Unfolding

M = np.array([[4.0, 0.0], [3.0, -5.0]])


def cut(matrix, **rule):
    found = compress.truncate({"kernel": jnp.asarray(matrix)}, **rule)
    return (
        np.asarray(found.params["kernel"]),
        np.asarray(found.directions["kernel"]),
        int(found.ranks["kernel"]),
    )


def test_trp_g1_ranks_by_energy():
    matrix = np.diag([3.0, 1.0, 0.5])
    assert [cut(matrix, energy=e)[2] for e in (0.85, 0.9, 0.99)] == [1, 2, 3]


def test_trp_g2_two_by_two():
    with jax.enable_x64(True):
        kernel, direction, rank = cut(M, energy=0.75)
        assert rank == 1
        np.testing.assert_allclose(kernel, [[2, -2], [4, -4]], atol=1e-12)
        np.testing.assert_allclose(((M - kernel) ** 2).sum(), 10.0)
        want = [[0.316228, -0.316228], [0.632456, -0.632456]]
        np.testing.assert_allclose(direction, want, atol=1e-6)
        kernel, _, rank = cut(M, energy=0.9)
        assert rank == 2
        np.testing.assert_array_equal(kernel, M)  # bit for bit: nothing was lost


def test_trp_g3_a_step_along_the_direction():
    matrix = np.diag([3.0, 1.0, 0.5])
    kernel, direction, _ = cut(matrix, energy=1.0)
    np.testing.assert_allclose(
        kernel - 0.05 * direction, np.diag([2.95, 0.95, 0.45]), atol=1e-6
    )
    _, direction, rank = cut(matrix, energy=0.9)
    assert rank == 2
    np.testing.assert_allclose(direction, np.diag([1.0, 1.0, 0.0]), atol=1e-6)


def test_trp_g4_nearest():
    with jax.enable_x64(True):
        matrix = np.random.default_rng(0).normal(size=(6, 5))
        s = np.linalg.svd(matrix, compute_uv=False)
        for rank in range(1, 6):
            ranks = {"kernel": jnp.int32(rank)}
            kernel, _, _ = cut(matrix, ranks=ranks)
            error = ((matrix - kernel) ** 2).sum()
            np.testing.assert_allclose(error, (s[rank:] ** 2).sum(), atol=1e-12)


def test_trp_g5_a_rank_is_idempotent_an_energy_is_not():
    with jax.enable_x64(True):
        matrix = np.random.default_rng(1).normal(size=(6, 5))
        ranks = {"kernel": jnp.int32(3)}
        once, *_ = cut(matrix, ranks=ranks)
        np.testing.assert_allclose(cut(once, ranks=ranks)[0], once, atol=1e-12)
    ratchet = np.diag(np.sqrt([89.0, 6.0, 5.0]))
    once, _, first = cut(ratchet, energy=0.9)
    assert (first, cut(once, energy=0.9)[2]) == (2, 1)


def path_of(tx, params, steps, gradient):
    """The parameters at which each gradient is taken."""
    state, update = tx.init(params), jax.jit(tx.update)
    seen, states = [], []
    for t in range(steps):
        seen.append(params)
        states.append(state)
        updates, state = update(gradient(params, t), state, params)
        params = optax.apply_updates(params, updates)
    return [*seen, params], [*states, state]


def numerical_rank(w):
    s = np.linalg.svd(np.asarray(w), compute_uv=False)
    return int((s > 1e-5 * s[0]).sum())


def test_trp_g9_gradients_are_taken_at_truncated_kernels_of_steps_0_5_10_only():
    rng = np.random.default_rng(2)
    noise = [jnp.asarray(rng.normal(size=(8, 6)), jnp.float32) for _ in range(12)]
    params = {"kernel": jnp.asarray(rng.normal(size=(8, 6)), jnp.float32)}
    target = jnp.asarray(rng.normal(size=(8, 6)), jnp.float32)

    def loss(p):
        return jnp.mean((p["kernel"] - target) ** 2)

    tx = transforms.trp(0.1, energy=0.8, every=5, nuclear=3e-4)
    start = compress.truncate(params, energy=0.8).params
    seen, states = path_of(
        tx, start, 12, lambda p, t: {"kernel": jax.grad(loss)(p)["kernel"] + noise[t]}
    )
    low = [numerical_rank(p["kernel"]) < 6 for p in seen[:12]]
    assert low == [t % 5 == 0 for t in range(12)]
    for t in (5, 10):
        # the same step without truncation, then the cut: the loss is the loss of it
        free = transforms.trp(0.1, energy=1.0, every=5, nuclear=3e-4)
        previous = states[t - 1]
        updates, _ = free.update(
            {"kernel": jax.grad(loss)(seen[t - 1])["kernel"] + noise[t - 1]},
            previous,
            seen[t - 1],
        )
        whole = optax.apply_updates(seen[t - 1], updates)
        want = compress.truncate(whole, energy=0.8)
        np.testing.assert_allclose(loss(seen[t]), loss(want.params), rtol=1e-5)
        assert int(states[t].ranks["kernel"]) == int(want.ranks["kernel"])
        assert int(states[t].ranks["kernel"]) == numerical_rank(seen[t]["kernel"])


def test_trp_g10_the_direction_is_the_gradient_of_the_nuclear_norm():
    with jax.enable_x64(True):
        matrix = np.random.default_rng(3).normal(size=(5, 4))
        _, direction, _ = cut(matrix, energy=1.0)
        want = jax.grad(lambda m: jnp.linalg.svd(m, compute_uv=False).sum())(
            jnp.asarray(matrix)
        )
        np.testing.assert_allclose(direction, want, atol=5e-7)


def test_energy_one_leaves_the_nuclear_term_alone():
    """Against NumPy's SVD: a step along -U V^T at steps 0, 2, 4, none between."""
    params = {"kernel": np.random.default_rng(0).normal(size=(6, 4)).astype("f")}
    tx = transforms.truncate_rank(1.0, every=2, nuclear=0.1, inner=optax.sgd(1.0))
    state, zero = tx.init(params), jax.tree.map(jnp.zeros_like, params)
    for t in range(5):
        updates, state = tx.update(zero, state, params)
        u, _, vt = np.linalg.svd(params["kernel"], full_matrices=False)
        want = -0.1 * u @ vt if t % 2 == 0 else np.zeros((6, 4))
        np.testing.assert_allclose(updates["kernel"], want, atol=1e-6)
        params = optax.apply_updates(params, updates)


# -- the twin: written from the specification, in float64 ------------------------------


def to_matrix(kernel, kind):
    """The matrices of a kernel, [count, rows, columns], and the way back."""
    if kernel.ndim == 2:
        return kernel[None], lambda m: m[0]
    h, w, i, o = kernel.shape
    if kind == "channel":
        return kernel.reshape(1, -1, o), lambda m: m.reshape(kernel.shape)
    if kind == "spatial":
        matrix = kernel.transpose(0, 2, 1, 3).reshape(1, h * i, w * o)
        return matrix, lambda m: m.reshape(h, i, w, o).transpose(0, 2, 1, 3)
    matrix = kernel.transpose(3, 2, 0, 1).reshape(o, i, h * w)
    return matrix, lambda m: m.reshape(o, i, h, w).transpose(2, 3, 1, 0)


def numpy_cut(kernel, kind, energy=None, ranks=()):
    """Truncated kernel, direction, ranks."""
    matrices, back = to_matrix(kernel, kind)
    kernels, directions, found = [], [], []
    for j, matrix in enumerate(matrices):
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        if energy is None:
            k = ranks[j]
        else:
            share = np.cumsum(s**2) / np.sum(s**2)
            k = int(np.argmax(share >= energy)) + 1
        kernels.append((u[:, :k] * s[:k]) @ vt[:k])
        directions.append(u[:, :k] @ vt[:k])
        found.append(k)
    return back(np.stack(kernels)), back(np.stack(directions)), found


def twin(start, gradients, kind, *, lr, mu, eta, lam, energy, every, total):
    """The parameters before every step, and the ranks of every cut."""
    params = {n: w.copy() for n, w in start.items()}
    velocity = {n: np.zeros_like(w) for n, w in start.items()}
    directions, ranks, seen, cuts = {}, {}, [], []
    for n, w in params.items():
        if w.ndim > 1:
            params[n], directions[n], _ = numpy_cut(w, kind, energy)
    for t in range(total):
        seen.append({n: w.copy() for n, w in params.items()})
        for n, w in params.items():
            d = gradients[t][n] + eta * w
            if t % every == 0 and n in directions:
                d = d + lam * directions[n]
            velocity[n] = mu * velocity[n] + d
            params[n] = w - lr * velocity[n]
        if (t + 1) % every == 0 or t == total - 1:
            for n in directions:
                held = ranks.get(n) if t == total - 1 else None
                rule = {"energy": energy} if held is None else {"ranks": held}
                params[n], directions[n], ranks[n] = numpy_cut(params[n], kind, **rule)
            cuts.append({n: list(k) for n, k in ranks.items()})
    return [*seen, params], cuts


@pytest.mark.parametrize(
    "kind",
    ["channel", pytest.param("spatial", marks=pytest.mark.slow), "decoupled"],
)
def test_twin(kind):
    settings: dict[str, Any] = {
        "lr": 0.05, "mu": 0.9, "eta": 1e-2, "lam": 0.3, "energy": 0.85, "every": 4,
        "total": 23,
    }  # fmt: skip
    rng = np.random.default_rng(4)
    shapes = {"bias": (6,), "head": (8, 5), "kernel": (3, 2, 5, 6)}
    start = {n: rng.normal(size=s) for n, s in shapes.items()}
    gradients = [
        {n: 3 * rng.normal(size=s) for n, s in shapes.items()} for _ in range(23)
    ]
    want, cuts = twin(start, gradients, kind, **settings)
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, start)
        params = compress.truncate(params, energy=0.85, kind=kind).params
        tx = transforms.trp(
            0.05, energy=0.85, every=4, nuclear=0.3, kind=kind, total_steps=23,
            weight_decay=1e-2,
        )  # fmt: skip
        seen, states = path_of(
            tx, params, 23, lambda p, t: jax.tree.map(jnp.asarray, gradients[t])
        )
        chex.assert_trees_all_close(seen, want, rtol=1e-9, atol=1e-11)
        reached = iter(cuts)
        now: Any = None
        for t in range(23):
            if (t + 1) % 4 == 0 or t == 22:
                now = next(reached)
            for name in ("head", "kernel"):
                got = np.atleast_1d(states[t + 1].ranks[name]).tolist()
                assert got == ([0] * len(got) if now is None else now[name])
        # the ranks move, and the run ends at those of the cut before
        assert len({str(k) for k in cuts}) > 1 and cuts[-1] == cuts[-2]


# -- rules, properties -----------------------------------------------------------------


def test_value_and_rate():
    matrix = np.diag([3.0, 1.0, 0.5, 0.04])
    assert [cut(matrix, value=v)[2] for v in (0.05, 0.01, 9.0)] == [3, 4, 1]
    assert [cut(matrix, rate=r)[2] for r in (0.5, 0.74, 0.1, 1.0)] == [2, 2, 1, 4]
    wide = np.random.default_rng(0).normal(size=(100, 120))
    assert cut(wide, rate=0.57)[2] == 57  # int(100 * 0.57) is 56
    assert cut(matrix, energy=0.5, min_rank=3)[2] == 3
    traced = jax.jit(lambda r: compress.truncate({"w": jnp.eye(4)}, rate=r).ranks)
    assert int(traced(0.5)["w"]) == 2


def test_zero_kernels_and_scope():
    params = {"a": {"kernel": jnp.zeros((4, 3)), "bias": jnp.ones(3)}}
    found = compress.truncate(params, energy=0.5)
    assert int(found.ranks["a"]["kernel"]) == 1
    assert int(found.ranks["a"]["bias"]) == 0
    chex.assert_trees_all_equal(found.params, params)
    assert found.directions["a"]["bias"].ndim == 0
    chex.assert_tree_all_finite(found)


def test_a_kernel_without_values_stays_as_it_is():
    """What surgery leaves of an emptied branch."""
    params = {"a": {"kernel": jnp.eye(4)}, "empty": {"kernel": jnp.zeros((0, 4))}}
    found = compress.truncate(params, energy=0.5)
    assert [int(k["kernel"]) for k in found.ranks.values()] == [2, 0]
    tx = transforms.trp(0.1, every=1, total_steps=2)
    updates, state = tx.update(params, tx.init(params), params)
    assert optax.apply_updates(params, updates)["empty"]["kernel"].shape == (0, 4)
    assert int(state.ranks["empty"]["kernel"]) == 0


def test_finish_uses_the_ranks_reached():
    rng = np.random.default_rng(5)
    params = {"kernel": jnp.asarray(rng.normal(size=(8, 6)), jnp.float32)}
    tx = transforms.truncate_rank(0.7, every=2, inner=optax.sgd(0.1))

    def gradient(p, t):
        return jax.tree.map(lambda w: w * 0 + rng.normal(size=w.shape), p)

    seen, states = path_of(tx, params, 5, gradient)
    k = int(states[-1].ranks["kernel"])
    assert numerical_rank(seen[-1]["kernel"]) == 6 and 1 <= k < 6
    done = compress.truncate(seen[-1], ranks=states[-1].ranks)
    assert numerical_rank(done.params["kernel"]) == k == int(done.ranks["kernel"])
    # from the end on, every step lands on them
    held = transforms.truncate_rank(0.7, every=2, end=4, inner=optax.sgd(0.1))
    seen, states = path_of(held, params, 8, gradient)
    for t in (5, 6, 7, 8):
        rank = int(states[t].ranks["kernel"])
        assert rank == int(states[4].ranks["kernel"])
        assert numerical_rank(seen[t]["kernel"]) == rank


def test_last_in_a_chain_it_is_the_wrapper():
    params = {"kernel": jnp.asarray(np.random.default_rng(6).normal(size=(8, 6)))}
    gradient = lambda p, t: jax.tree.map(lambda w: jnp.sin(w + t), p)  # noqa: E731
    around = transforms.truncate_rank(0.8, every=2, inner=optax.adam(0.1))
    last = optax.chain(optax.adam(0.1), transforms.truncate_rank(0.8, every=2))
    a, _ = path_of(around, params, 5, gradient)
    b, _ = path_of(last, params, 5, gradient)
    chex.assert_trees_all_equal(a, b)


def test_truncated_by_the_loop_it_is_the_same_run():
    with jax.enable_x64(True):
        params = {"kernel": jnp.asarray(np.random.default_rng(6).normal(size=(8, 6)))}
        gradient = lambda p, t: jax.tree.map(lambda w: jnp.sin(w + t), p)  # noqa: E731
        start = compress.truncate(params, energy=0.8).params
        chained = transforms.trp(0.1, energy=0.8, every=3, nuclear=0.1)
        want, states = path_of(chained, start, 8, gradient)
        tx = transforms.trp(0.1, energy=0.8, every=3, nuclear=0.1, by_loop=True)
        state, update = tx.init(params), jax.jit(tx.update)
        for t in range(8):
            if t % 3 == 0:
                cut = compress.truncate(params, energy=0.8)
                params = cut.params
                state = optax.tree.set(
                    state, ranks=cut.ranks, directions=cut.directions
                )
            chex.assert_trees_all_close(params, want[t], rtol=1e-9, atol=1e-11)
            updates, state = update(gradient(params, t), state, params)
            params = optax.apply_updates(params, updates)
        assert int(state.ranks["kernel"]) == int(states[-1].ranks["kernel"])


def test_the_first_direction_ignores_rounding_noise():
    """From truncated parameters the direction is that of their rank, not U V^T."""
    params = {"kernel": jnp.asarray(np.random.default_rng(7).normal(size=(9, 7)))}
    found = compress.truncate(params, energy=0.8)
    tx = transforms.truncate_rank(0.8, nuclear=1.0, inner=optax.identity())
    state: Any = jax.jit(tx.init)(found.params)
    chex.assert_trees_all_close(state.directions, found.directions, atol=1e-5)


def test_attention_kernels_by_a_function():
    params = {
        "q": {"kernel": jnp.asarray(np.random.default_rng(8).normal(size=(8, 2, 3)))}
    }
    kind = lambda path, leaf: Unfolding((0,), (1, 2))  # noqa: E731
    found = compress.truncate(params, rate=0.5, kind=kind)
    kernel = found.params["q"]["kernel"].reshape(8, 6)
    assert int(found.ranks["q"]["kernel"]) == 3 == numerical_rank(kernel)


def test_an_unfolding_of_lists():
    axes: Any = ([0], [1, 2])
    params = {"q": jnp.arange(12.0).reshape(2, 3, 2)}
    listed = compress.truncate(params, ranks={"q": 1}, kind=Unfolding(*axes))
    want = compress.truncate(params, ranks={"q": 1}, kind=Unfolding((0,), (1, 2)))
    chex.assert_trees_all_equal(listed, want)


def test_errors():
    params = {"a": {"kernel": jnp.ones((3, 3, 2, 4))}}
    for rules in ({}, {"energy": 0.5, "rate": 0.5}):
        with pytest.raises(ValueError, match="exactly one of `energy`, `value`"):
            compress.truncate(params, **rules)
    for name in ("energy", "rate"):
        with pytest.raises(ValueError, match=rf"`{name}` must be .* in \(0, 1\], got"):
            compress.truncate(params, **{name: 1.5})
    with pytest.raises(ValueError, match="`min_rank` must be at least 1, got 0"):
        compress.truncate(params, energy=0.5, min_rank=0)
    with pytest.raises(ValueError, match="`ranks` must have exactly the structure"):
        compress.truncate(params, ranks={"b": 1})
    with pytest.raises(ValueError, match="(?s)`ranks` must not be neg.*a/kernel: -1"):
        compress.truncate(params, ranks={"a": {"kernel": -1}})
    with pytest.raises(ValueError, match="`ranks` must be integers:\n  a/kernel: 1.5"):
        compress.truncate(params, ranks={"a": {"kernel": 1.5}})
    with pytest.raises(ValueError, match="`ranks` are 0 .* nothing has been truncated"):
        compress.truncate(params, ranks=transforms.truncate_rank().init(params).ranks)
    kind: Any = "rows"
    with pytest.raises(ValueError, match="`kind` must be one of channel, .*'rows'"):
        compress.truncate(params, energy=0.5, kind=kind)
    with pytest.raises(ValueError, match="name every axis once.*got Unfolding"):
        compress.truncate(params, energy=0.5, kind=Unfolding((0, 1), (2,)))
    with pytest.raises(ValueError, match=r"No default unfolding for q of shape \(2, 2"):
        compress.truncate({"q": jnp.ones((2, 2, 2))}, energy=0.5)
    with pytest.raises(ValueError, match="No default unfolding for q"):
        transforms.truncate_rank(0.5).init({"q": jnp.ones((2, 2, 2))})
    with pytest.raises(ValueError, match="`every` must be at least 1, got 0"):
        transforms.truncate_rank(0.5, every=0)
    with pytest.raises(ValueError, match="`end` 8 comes before the first"):
        transforms.truncate_rank(0.5, every=10, end=8)
    with pytest.raises(ValueError, match="give the optimizer as `inner`"):
        transforms.truncate_rank(0.5, nuclear=0.1)
    with pytest.raises(ValueError, match=r"no `end` \(got 8\)"):
        transforms.trp(0.1, every=3, total_steps=9, by_loop=True)
    with pytest.raises(ValueError, match="nothing left to do"):
        transforms.trp(0.1, nuclear=None, by_loop=True)
    with pytest.raises(ValueError, match="`nuclear` must be finite and >= 0"):
        transforms.trp(0.1, nuclear=-1.0)
