"""RigL, SET and static sparse training: hand numbers, twins, moments, exact counts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import masks, transforms
from tests.jaxprs import jaxprs_in_params
from tests.transforms.table import gradients

W = [0.5, -0.1, 0.3, 0.2, 0.0, 0.0, 0.0, 0.0]
G = [0.1, 0.9, 0.0, 0.4, 0.3, 0.8, 0.05, 0.2]
M = [1, 1, 1, 1, 0, 0, 0, 0]


def row(values, dtype=None):
    return {"w": jnp.array([values], dtype)}


def stepper(tx):
    @jax.jit
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def one_move(params, grads, inner, **how):
    """One step that moves the mask, from moments already at 1."""
    tx = transforms.drop_and_grow(
        inner, mask=row(M, bool), drop_fraction=0.5, begin=0, every=1, **how
    )
    state = tx.init(params)
    ones = optax.tree.map_params(inner, jnp.ones_like, state.inner)
    return stepper(tx)(grads, state._replace(inner=ones), params)


def test_rigl_g8():
    """Keep {0, 2}, grow {1, 5}; weight 1 stays -.1, 5 starts at 0, 3 becomes 0."""
    params, state = one_move(row(W), row(G), optax.sgd(0.1, momentum=0.9))
    np.testing.assert_array_equal(state.mask["w"], row([1, 1, 1, 0, 0, 1, 0, 0])["w"])
    np.testing.assert_array_equal(params["w"], row([0.5, -0.1, 0.3] + [0] * 5)["w"])
    # Weight 1 was dropped and grown at once: its momentum goes on, 5 begins at 0.
    trace = np.asarray(state.inner[0].trace["w"][0])
    np.testing.assert_allclose(trace, [1.0, 1.8, 0.9, 0, 0, 0, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(state.grown["w"][0], np.arange(8) == 5)


def test_rigl_g8_set():
    """SET keeps the same two and ends with four, wherever the others came."""
    tx = transforms.drop_and_grow(
        optax.sgd(0.0),
        mask=row(M, bool),
        drop_fraction=0.5,
        grow="random",
        also_step=True,
        begin=0,
        every=1,
    )
    first, step, seen = tx.init(row(W)), stepper(tx), set()
    for t in range(8):
        state = first._replace(count=jnp.int32(t))
        params, state = step(row(G), state, row(W))
        kept = np.asarray(state.mask["w"][0])
        assert kept.sum() == 4 and kept[0] and kept[2]
        stayed = np.where(kept & np.array(M, bool), np.float32(W), 0)
        np.testing.assert_array_equal(params["w"][0], stayed)
        seen.add(tuple(kept))
    assert len(seen) > 2


def test_rigl_g9():
    """alpha .3, T_end 100: .3 of the kept move at t = 0, .15 at 50, none from 100."""
    params = {"w": jax.random.normal(jax.random.key(0), (40, 50))}
    tx = transforms.rigl(
        0.0, sparsity=0.5, end=100, every=1, begin=0, allocation=masks.uniform
    )
    first, step = tx.init(params), stepper(tx)
    outside = jax.tree.map(lambda m: jnp.where(m, 0.0, 1.0), first.mask)
    for t, moved in [(0, 300), (50, 150), (100, 0), (101, 0)]:
        _, state = step(outside, first._replace(count=jnp.int32(t)), params)
        came = int(masks.count(state.mask) - jnp.sum(state.mask["w"] & first.mask["w"]))
        assert (came, int(masks.count(state.mask))) == (moved, 1000)


@pytest.mark.parametrize("n, f, moved", [(155, 0.3, 47), (50, 0.15, 8), (25, 0.1, 3)])
def test_dropped_round_half_up(n, f, moved):
    """Where the authors truncate (46, 7, 2), jprune's counting rule rounds half up."""
    keep = jnp.arange(400).reshape(20, 20) < n
    params = {"w": jnp.where(keep, 1.0, 0.0)}
    tx = transforms.drop_and_grow(
        optax.sgd(0.1), mask={"w": keep}, drop_fraction=f, begin=0
    )
    _, state = stepper(tx)({"w": jnp.where(keep, 0.0, 1.0)}, tx.init(params), params)
    assert int(jnp.sum(state.mask["w"] & ~keep)) == moved
    assert int(masks.count(state.mask)) == n


class Twin:
    """Algorithm 1 and SET in NumPy, float64: SGD with momentum and decay, by leaf."""

    def __init__(self, params, keep, lr=0.1, beta=0.9, decay=0.01):
        self.w = {k: np.where(keep[k], v, 0) for k, v in params.items()}
        self.m, self.z = dict(keep), {k: np.zeros_like(v) for k, v in params.items()}
        self.lr, self.beta, self.decay = lr, beta, decay

    def step(self, grads, weights=True):
        for k, g in grads.items():
            g = np.where(self.m[k], g, 0) + self.decay * self.w[k]
            self.z[k] = self.beta * self.z[k] + g
            if weights:
                self.w[k] = self.w[k] - self.lr * self.z[k]

    def move(self, scores, f):
        for k, old in self.m.items():
            n = int(old.sum())
            drop = int(np.floor(f * n + 0.5))
            stays = top(np.where(old, np.abs(self.w[k]), -1), n - drop)
            grows = top(np.where(stays, -1, np.abs(scores[k])), drop)
            self.m[k] = stays | grows
            for tree in (self.w, self.z):
                tree[k] = np.where(self.m[k] & old, tree[k], 0)


def top(score, k):
    keep = np.zeros(score.size, bool)
    keep[np.argsort(-score.ravel(), kind="stable")[:k]] = True
    return keep.reshape(score.shape)


def follow(tx, twin, params, moves, steps=30):
    """Steps both; equal masks and weights after each."""
    now = jax.tree.map(jnp.asarray, twin.w)
    state, step = tx.init(now), stepper(tx)
    rng = np.random.default_rng(4)
    for t in range(steps):
        g = {k: rng.normal(size=v.shape) for k, v in params.items()}
        moves(twin, t, g, state)
        now, state = step(jax.tree.map(jnp.asarray, g), state, now)
        for k in params:
            np.testing.assert_array_equal(state.mask[k], twin.m[k])
            np.testing.assert_allclose(now[k], twin.w[k], rtol=1e-9, atol=1e-12)
            trace = state.inner[1][0].trace[k]
            np.testing.assert_allclose(trace, twin.z[k], rtol=1e-9, atol=1e-12)
    return state


def drawn():
    rng = np.random.default_rng(3)
    params = {"a": rng.normal(size=(7, 9)), "b": rng.normal(size=(9, 5))}
    keep = {k: rng.random(v.shape) < 0.4 for k, v in params.items()}
    return params, keep


def sgd():
    return optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, 0.9))


def test_rigl_twin():
    """30 steps, a move every 4 until 24, the share along the cosine."""
    with jax.enable_x64(True):
        params, keep = drawn()
        tx = transforms.drop_and_grow(
            sgd(),
            mask=jax.tree.map(jnp.asarray, keep),
            drop_fraction=optax.cosine_decay_schedule(0.4, 24),
            every=4,
            end=24,
        )

        def moves(twin, t, g, state):
            due = 1 <= t < 24 and t % 4 == 0
            if due:
                twin.move(g, 0.4 / 2 * (1 + np.cos(np.pi * t / 24)))
            survivors = {k: g[k] * ~np.asarray(state.mask[k] ^ twin.m[k]) for k in g}
            twin.step(survivors if due else g, weights=not due)

        follow(tx, Twin(params, keep), params, moves)


def lots(data, t, i, shape):
    """Two numbers from each hash: the two words of the key that folding gives."""
    key = jax.random.wrap_key_data(data, impl="threefry2x32")
    own = jax.random.fold_in(jax.random.fold_in(key, t), i)
    n = int(np.prod(shape))
    keys = [jax.random.fold_in(own, j) for j in range(-(-n // 2))]
    words = np.concatenate([np.asarray(jax.random.key_data(k)) for k in keys])[:n]
    return ((words >> 9) / 2.0**23).reshape(shape)


def test_set_twin():
    """30 steps, a move after every third, places drawn by lot."""
    with jax.enable_x64(True):
        params, keep = drawn()
        tx = transforms.drop_and_grow(
            sgd(),
            mask=jax.tree.map(jnp.asarray, keep),
            drop_fraction=0.3,
            grow="random",
            also_step=True,
            every=3,
            key=7,
        )

        def moves(twin, t, g, state):
            twin.step(g)
            if t >= 1 and t % 3 == 0:
                names = enumerate(sorted(g))
                scores = {k: lots(state.key, t, i, g[k].shape) for i, k in names}
                twin.move(scores, 0.3)

        follow(tx, Twin(params, keep), params, moves)


def test_lots_are_spread_evenly():
    """A thousand of 10,000 places: each tenth gets about a tenth; steps differ."""
    keep = {"w": jnp.zeros((100, 100), bool).at[:10].set(True)}
    tx = transforms.drop_and_grow(
        optax.sgd(0.1), mask=keep, drop_fraction=1.0, grow="random", begin=0, every=1
    )
    params = {"w": jnp.ones((100, 100))}
    state, step = tx.init(params), stepper(tx)
    _, one = step(params, state, params)
    _, two = step(params, state._replace(count=jnp.int32(1)), params)
    for axis, found in [(0, one), (1, one), (0, two), (1, two)]:
        grown = np.asarray(found.mask["w"])
        assert grown.sum() == 1000
        tenths = grown.reshape(10, 10, 10, 10).sum(
            (1 - axis, 2, 3) if axis else (1, 2, 3)
        )
        assert tenths.min() > 65 and tenths.max() < 135
    both = int(jnp.sum(one.mask["w"] & two.mask["w"]))
    assert 60 < both < 140


def shaped():
    """Two kernels and a bias, and the labels of a partition."""
    shapes = {"one": {"kernel": (12, 10), "bias": (10,)}, "two": {"kernel": (10, 6)}}
    ones = jax.tree.map(jnp.ones, shapes, is_leaf=lambda x: isinstance(x, tuple))
    return gradients(ones, 99)


def split(params):
    return jax.tree.map(lambda p: "a" if p.shape[0] > 10 else "b", params)


INNERS = {
    "clip, injected adamw": lambda: optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.inject_hyperparams(optax.adamw)(0.1, weight_decay=0.1),
    ),
    "masked, partition": lambda: optax.chain(
        optax.masked(optax.trace(0.9), masks.prunable),
        optax.partition({"a": optax.adam(0.1), "b": optax.rmsprop(0.1)}, split),
    ),
    "adagrad": lambda: optax.adagrad(0.1),
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=8),
}


def moments(inner, state, mask):
    """Each moment of a masked leaf and of its shape, with that mask."""
    found = []

    def note(s, m):
        if not isinstance(s, optax.MaskedNode) and m.ndim and s.shape == m.shape:
            found.append((np.asarray(s), np.asarray(m)))
        return s

    is_masked = lambda s: isinstance(s, optax.MaskedNode)  # noqa: E731
    optax.tree.map_params(inner, note, state, mask, is_leaf=is_masked)
    return found


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n == "adagrad")) for n in INNERS],
)
def test_moments_of_grown_weights_begin_anew(name):
    """Whatever the optimizer; and everything outside the mask stays as at first."""
    inner, also_step = INNERS[name](), name in ("adagrad", "masked, partition")
    tx = transforms.drop_and_grow(
        inner,
        0.6,
        allocation=masks.uniform,
        drop_fraction=0.5,
        every=2,
        also_step=also_step,
    )
    params = shaped()
    state, step = tx.init(params), stepper(tx)
    first = moments(inner, inner.init(params), state.mask)
    assert len(first) > 0
    for t in range(5):
        before = state.mask
        params, state = step(gradients(params, t), state, params)
        goes_on = jax.tree.map(jnp.logical_and, before, state.mask)
        for (now, on), (begun, _) in zip(
            moments(inner, state.inner, goes_on), first, strict=True
        ):
            np.testing.assert_allclose(now[~on], begun[~on], rtol=1e-6, atol=1e-25)
            assert np.any(now[on] != begun[on])
        for k, count in (("one", 48), ("two", 24)):
            p, on = np.asarray(params[k]["kernel"]), np.asarray(goes_on[k]["kernel"])
            assert int(jnp.sum(state.mask[k]["kernel"])) == count
            assert np.all(p[~on] == 0)
            assert (np.sum(on) < count) == (t in (2, 4))


def test_moments_of_many_weights_are_kept():
    """SM3: a list of rows and columns in the place of each parameter."""
    tx = transforms.drop_and_grow(optax.sm3(0.1), 0.6, drop_fraction=0.5, every=2)
    params = shaped()
    state, step = tx.init(params), stepper(tx)
    for t in range(4):
        before = state
        params, state = step(gradients(params, t), state, params)
        was, now = before.inner[0], state.inner[0]
        for x, y in zip(*map(jax.tree.leaves, (was.mu, now.mu)), strict=True):
            assert np.all(y >= x) and np.any(y > x)
        for k in ("one", "two"):
            on = np.asarray(before.mask[k]["kernel"] & state.mask[k]["kernel"])
            assert np.all(np.asarray(params[k]["kernel"])[~on] == 0)
            assert np.all(np.asarray(now.nu[k]["kernel"])[~on] == 0)
            assert np.all(np.asarray(now.nu[k]["kernel"])[on] != 0)


def test_a_move_of_rigl_is_no_step():
    params = shaped()
    tx = transforms.drop_and_grow(
        optax.adam(0.1), 0.5, allocation=masks.uniform, every=2
    )
    state, step = tx.init(params), stepper(tx)
    for t in range(3):
        old, params = params, step(gradients(params, t), state, params)[0]
        state = step(gradients(params, t), state, old)[1]
    np.testing.assert_array_equal(params["one"]["bias"], old["one"]["bias"])
    stayed = np.asarray(params["two"]["kernel"] != 0)
    kernels = [np.asarray(p["two"]["kernel"]) for p in (params, old)]
    np.testing.assert_array_equal(kernels[0][stayed], kernels[1][stayed])
    assert 0 < np.sum(stayed) < 30


def test_counts_are_exact_with_ties_only():
    """And leaves that are dense, by ERK (`z`) or out of scope, take every step."""
    params = {"w": jnp.ones((40, 40)), "z": jnp.ones((2, 2)), "b": jnp.ones(2)}
    grads = {"w": jnp.zeros((40, 40)), "z": jnp.ones((2, 2)), "b": jnp.ones(2)}
    tx = transforms.drop_and_grow(
        optax.sgd(1.0), lambda p: masks.erk(p, 0.7), every=2, drop_fraction=0.5
    )
    state, step = tx.init(params), stepper(tx)
    for _ in range(4):
        params, state = step(grads, state, params)
        counts = [int(state.mask[k].sum()) for k in "wz"]
        assert counts == [masks.kept_count(1604, 0.7) - 4, 4]
    assert bool(jnp.all(params["z"] == -2)) and bool(jnp.all(params["b"] == -2))


def test_static_holds_its_mask():
    params = shaped()
    tx = transforms.static_sparse(0.1, sparsity=0.8, key=3)
    first = state = tx.init(params)
    step = stepper(tx)
    for t in range(3):
        params, state = step(gradients(params, t), state, params)
    jax.tree.map(np.testing.assert_array_equal, state.mask, first.mask)
    jax.tree.map(np.testing.assert_array_equal, masks.from_zeros(params), first.mask)
    assert "while" not in str(jax.make_jaxpr(tx.update)(params, state, params))


def test_keys():
    """A seed, its key and the data of that key draw one mask, another seed another."""
    key = jax.random.key(5)
    keys = [5, key, jax.random.key_data(key), 6, jax.random.key(5, impl="rbg")]
    masks_ = [
        np.asarray(
            transforms.drop_and_grow(optax.sgd(0.1), 0.5, key=k)
            .init(shaped())
            .mask["one"]["kernel"]
        )
        for k in keys
    ]
    same = [bool(np.all(m == masks_[0])) for m in masks_]
    assert same == [True, True, True, False, False]


def test_check():
    make = transforms.drop_and_grow(optax.adam(0.1), 0.5, every=64)
    transforms.check(make, shaped())
    with pytest.raises(ValueError, match="one/kernel: .* not zero"):
        transforms.check(optax.chain(make, optax.scale(0.5)), shaped())


def test_no_large_sort_or_concatenation():
    big = {"a": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
    for how in ({}, {"grow": "random", "also_step": True}):
        tx = transforms.drop_and_grow(optax.adam(0.1), 0.9, **how)
        state = jax.eval_shape(tx.init, big)
        jaxpr = jax.make_jaxpr(tx.update)(big, state, big).jaxpr
        names = set()
        for eqn in equations(jaxpr):
            names.add(eqn.primitive.name)
            if eqn.primitive.name in ("sort", "top_k", "concatenate"):
                assert max(v.aval.size for v in eqn.outvars) <= 65_536, eqn
        assert "while" in names


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize(
    "how, message",
    [
        ({}, "exactly one of `sparsity` and `mask`; got sparsity=None, mask=None"),
        ({"sparsity": 0.5, "mask": {}}, "exactly one of `sparsity` and `mask`"),
        ({"sparsity": 0.5, "grow": "gradients"}, "`grow` must be 'gradient' or"),
        ({"sparsity": 0.5, "drop_fraction": 1.5}, r"in \[0, 1\], .* got 1.5"),
        ({"sparsity": 0.5, "every": 0}, "every >= 1; got 1, None, 0"),
        ({"sparsity": 0.5, "begin": 5, "end": 4}, "begin <= end .* got 5, 4, 100"),
    ],
)
def test_bad_settings(how, message):
    with pytest.raises(ValueError, match=message):
        transforms.drop_and_grow(optax.sgd(0.1), **how)


def test_a_number_is_spread_as_the_recipe_spreads_it():
    """By Erdos-Renyi-kernel, for the wrapper as for RigL; and from a given mask."""
    params = {"conv": jnp.ones((3, 3, 1, 32)), "dense": jnp.ones((3136, 256))}
    wrapped = transforms.drop_and_grow(optax.adam(1e-3), 0.95).init(params).mask
    recipe = transforms.rigl(0.1, sparsity=0.95, total_steps=100).init(params).mask
    jax.tree.map(np.testing.assert_array_equal, wrapped, recipe)
    assert int(wrapped["conv"].sum()) == 288 and int(wrapped["dense"].sum()) == 39_867
    even = transforms.drop_and_grow(
        optax.adam(1e-3), 0.95, allocation=masks.uniform
    ).init(params)
    assert int(even.mask["conv"].sum()) == 14
    given = transforms.sparse_evolutionary(0.1, mask=wrapped, every=3).init(params)
    jax.tree.map(np.testing.assert_array_equal, given.mask, wrapped)


def test_the_mask_stands_still_in_the_last_quarter():
    params = {"w": jax.random.normal(jax.random.key(0), (10, 10))}
    tx = transforms.rigl(
        0.1, sparsity=0.5, total_steps=8, every=1, drop_fraction=0.5, scope="w"
    )
    state, step = tx.init(params), stepper(tx)
    moved = []
    for t in range(8):
        before = state.mask["w"]
        params, state = step(gradients(params, t), state, params)
        moved.append(bool(jnp.any(before != state.mask["w"])))
    assert moved == [False, *[True] * 5, False, False]
    for how in ({}, {"end": 9, "total_steps": 8}):
        with pytest.raises(ValueError, match="`total_steps`"):
            transforms.rigl(0.1, sparsity=0.5, **how)


def test_bad_targets():
    params = {"w": jnp.ones((4, 4)), "b": jnp.ones(4)}
    make = transforms.drop_and_grow
    with pytest.raises(ValueError, match=r"`sparsity` must be in \[0, 1\)"):
        make(optax.sgd(0.1), 1.0).init(params)
    with pytest.raises(ValueError, match="`mask` holds a 0-d True for every leaf"):
        make(optax.sgd(0.1), mask={"w": True, "b": True}).init(params)
    with pytest.raises(
        ValueError, match="`mask` must have the shape of each parameter"
    ):
        make(optax.sgd(0.1), mask={"w": jnp.ones(3, bool), "b": True}).init(params)
    with pytest.raises(ValueError, match="No leaf is prunable"):
        make(optax.sgd(0.1), 0.5).init({"b": jnp.ones(4)})
    with pytest.raises(ValueError, match="`end` must be at least 1, got 0"):
        transforms.rigl(0.1, sparsity=0.5, end=0)
    with pytest.raises(ValueError, match="must not be traced"):
        jax.eval_shape(
            lambda s: transforms.rigl(0.1, sparsity=s, end=9).init(params), 0.5
        )
