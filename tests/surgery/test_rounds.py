"""Rounds of a scan: which may go, by proof, and that the compact scan is exact."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jprune import analysis, masks, surgery

LAYERS, WIDTH, INNER = 5, 6, 8
Body = Callable[[Any, Any], Any]


def stack(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(0.3 * rng.standard_normal((LAYERS, *shape)))


def parameters(seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {
        "up": stack(rng, WIDTH, INNER),
        "down": stack(rng, INNER, WIDTH),
        "scale": stack(rng, 1, WIDTH),
        "bias": stack(rng, 1, WIDTH),
    }


def batch(seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal((3, WIDTH)))


def norm(h: Any, scale: Any) -> Any:
    return h * lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-6) * scale


def branch(h: Any, p: Any) -> Any:
    return jnp.tanh(norm(h, p["scale"]) @ p["up"]) @ p["down"] + p["bias"]


def block(h: Any, p: Any) -> Any:
    return h + branch(h, p)


def scanned(body: Body = block, **options: Any) -> Callable[..., Any]:
    step = lambda h, p: (body(h, p), None)  # noqa: E731
    return lambda p, x: lax.scan(step, x, p, **options)[0]


def unrolled(p: Any, x: Any, reverse: bool = False) -> Any:
    order = range(len(p["up"]))
    for i in reversed(order) if reverse else order:
        x = block(x, {name: leaf[i] for name, leaf in p.items()})
    return x


def depth(deps: surgery.Groups) -> list[Any]:
    return [g for g in deps if g.kind == "depth"]


@jax.custom_vjp
def reverse_gradient(h: Any) -> Any:
    return h


reverse_gradient.defvjp(lambda h: (h, None), lambda _, g: (-g,))


def half(h: Any, p: Any) -> Any:
    """The residual stream in a narrow type: what is added is rounded away."""
    return (h.astype(jnp.bfloat16) + branch(h, p).astype(jnp.bfloat16)).astype(h.dtype)


def wide(h: Any, p: Any) -> Any:
    """The sum in a wider type, and back."""
    low = h.astype(jnp.float32)
    return (low.astype(h.dtype) * 0 + h) + branch(h, p)


def one_of(h: Any, p: Any) -> Any:
    one = lambda: block(h, p)  # noqa: E731
    return lax.cond(h.sum() > 0, one, lambda: h * 1.0 + p["bias"])


BLOCKS: dict[str, tuple[Body, str]] = {
    "residual": (block, ""),
    "remat": (jax.checkpoint(block), ""),
    "jit": (jax.jit(block), ""),
    "custom activation": (lambda h, p: h + jax.nn.silu(branch(h, p)), ""),
    "gated": (lambda h, p: h + jax.nn.sigmoid(branch(h, p)) * p["bias"], ""),
    "scale around 1": (
        lambda h, p: h + norm(h, 1 + p["scale"]) @ p["up"] @ p["down"],
        "",
    ),
    "one of two branches": (one_of, ""),
    "kept where positive": (lambda h, p: jnp.where(h > 0, h, block(h, p)), ""),
    "twice": (lambda h, p: block(block(h, p), p), ""),
    "post norm": (lambda h, p: norm(block(h, p), 1.0), "mul"),
    "not residual": (lambda h, p: branch(h, p), "add"),
    "halved": (lambda h, p: 0.5 * h + branch(h, p), "add"),
    "a constant": (lambda h, p: h + jax.nn.sigmoid(branch(h, p)), "add"),
    "narrow sum": (half, "convert_element_type"),
    "gradient reversed": (lambda h, p: reverse_gradient(h) + branch(h, p), "add"),
    "gradient stopped": (lambda h, p: lax.stop_gradient(h) + branch(h, p), "add"),
    "not finite": (lambda h, p: h + branch(h, p) / p["bias"], "add"),
}
"""Bodies, and the primitive that changes the carry, or "" where the round may go."""


LONG = (
    "custom activation",
    "gated",
    "one of two branches",
    "kept where positive",
    "twice",
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in BLOCKS],
)
def test_a_round_may_go_where_it_hands_its_carry_on(name: str):
    body, culprit = BLOCKS[name]
    with jax.enable_x64(True):
        p, x = parameters(), batch()
        fn = scanned(body)
        deps = surgery.groups(fn)(p, x)
        if culprit:
            why = {f.why for f in deps.frozen() if f.axis == 0 and f.path == ("up",)}
            assert not depth(deps)
            assert why == {
                "a round whose parameters are zero changes the carry (it comes out of "
                f"`{culprit}`)"
            }
            return
        (rounds,) = depth(deps)
        assert rounds.size == LAYERS and deps.exactness[rounds.id].way == "zero"
        plan = surgery.plan_from_keep(deps, {rounds.id: [0, 3, 4]})
        report = surgery.verify(fn, plan, p, x, gradient=True)
        assert report.ok and report.error < 1e-12, report


def loss_and_gradient(fn: Any, p: Any, x: Any) -> Any:
    weight = jnp.cos(jnp.arange(x.size)).reshape(x.shape)
    return jax.jit(jax.value_and_grad(lambda p: (fn(p, x) * weight).sum()))(p)


def close(a: Any, b: Any) -> None:
    for s, t in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(s, t, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 8))]
)
def test_the_compact_scan_equals_the_unrolled_blocks_that_stay(seed: int):
    """Against a loop in Python over the kept slices, forward and gradient."""
    rng = np.random.default_rng(seed)
    reverse = bool(rng.integers(2))
    keep = rng.permutation(LAYERS) < rng.integers(1, LAYERS)
    with jax.enable_x64(True):
        p, x = parameters(seed), batch(seed)
        fn = scanned(reverse=reverse, unroll=int(rng.integers(1, 4)))
        deps = surgery.groups(fn)(p, x)
        plan = surgery.plan_from_keep(deps, {depth(deps)[0].id: keep})
        by_hand = {name: leaf[np.flatnonzero(keep)] for name, leaf in p.items()}
        want = loss_and_gradient(lambda p, x: unrolled(p, x, reverse), by_hand, x)
        packed = plan.pack(p)
        close(packed, by_hand)
        close(loss_and_gradient(surgery.shrink(fn, plan), packed, x), want)
        value, gradient = loss_and_gradient(fn, plan.zero(p), x)
        close((value, plan.pack(gradient)), want)


def test_the_compact_scan_is_shorter_and_costs_what_is_said():
    p, x = jax.tree.map(jnp.float32, (parameters(), batch()))
    fn = scanned()
    deps = surgery.groups(fn)(p, x)
    name = depth(deps)[0].id
    plan = surgery.plan_from_keep(deps, {name: [1, 2]})
    small, packed = surgery.shrink(fn, plan), plan.pack(p)
    jaxpr = jax.make_jaxpr(small)(packed, x)
    (loop,) = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "scan"]
    assert loop.params["length"] == 2
    assert [v.aval.shape[0] for v in loop.invars[1:]] == [2] * 4
    assert deps.flops({name: 2}) == deps.flops() * 2 // LAYERS
    assert analysis.flops(small)(packed, x) == deps.flops({name: 2})
    assert deps.parameters({name: 2}) * LAYERS == deps.parameters() * 2


# -- masks ----------------------------------------------------------------------------


def masked(p: Any, *entries: tuple[str, int]) -> Any:
    full = masks.full(p)
    for name, i in entries:
        full[name] = full[name].at[i].set(False)
    return full


def test_masks_remove_rounds_that_have_no_effect():
    """All of a round, or what its branch ends with; a bias that stays is an effect."""
    p, x = parameters(), batch()
    deps = surgery.groups(scanned())(p, x)
    name = depth(deps)[0].id
    whole = [(leaf, 0) for leaf in p]
    ends = [("down", 2), ("bias", 2)]
    early = [("up", 3), ("bias", 3)]  # tanh(0) is 0
    plan = surgery.plan_from_masks(deps, masked(p, *whole, *ends, *early, ("down", 4)))
    assert plan.groups[name] == (2, LAYERS)
    np.testing.assert_array_equal(
        plan.keep["up",][0], [False, True, False, False, True]
    )
    z = masks.apply(masked(p, *whole, *ends, *early), p)
    np.testing.assert_allclose(
        surgery.shrink(scanned(), plan)(plan.pack(z), x), scanned()(z, x), rtol=1e-5
    )


def test_a_round_whose_bias_stays_is_not_removed():
    p, x = parameters(), batch()
    deps = surgery.groups(scanned())(p, x)
    with pytest.raises(ValueError, match="no coordinate of any group"):
        surgery.plan_from_masks(deps, masked(p, ("down", 2), ("up", 2)))


def test_all_rounds_may_go():
    p, x = jax.tree.map(jnp.float32, (parameters(), batch()))
    deps = surgery.groups(scanned())(p, x)
    everything = jax.tree.map(jnp.zeros_like, p)
    gone = jax.tree.map(lambda leaf: leaf != 0, everything)
    with pytest.raises(ValueError, match="allow_empty"):
        surgery.plan_from_masks(deps, gone)
    plan = surgery.plan_from_keep(deps, {depth(deps)[0].id: np.zeros(LAYERS, bool)})
    np.testing.assert_array_equal(surgery.shrink(scanned(), plan)(plan.pack(p), x), x)


# -- selection ------------------------------------------------------------------------


def test_rounds_go_only_when_asked_for():
    p, x = jax.tree.map(jnp.float32, (parameters(), batch()))
    deps = surgery.groups(scanned())(p, x)
    name = depth(deps)[0].id
    scores = deps.scores(p) | {name: np.array([5.0, 1.0, 3.0, 0.0, 4.0])}
    widths = surgery.select(deps, scores, sparsity=0.5)
    assert widths.keep["up",][0].all() and not widths.keep["up",][2].all()
    layers = surgery.select(deps, scores, sparsity=0.4, kinds=("depth",))
    assert layers.keep["up",][2].all()
    np.testing.assert_array_equal(layers.keep["up",][0], [1, 0, 1, 0, 1])
    both = surgery.select(deps, scores, params=0.5, kinds=("coupled", "depth"))
    assert not both.keep["up",][0].all() and not both.keep["up",][2].all()
    budget = surgery.select(deps, scores, flops=0.6, kinds=("depth",))
    np.testing.assert_array_equal(budget.keep["up",][0], [1, 0, 1, 0, 1])
    with pytest.raises(ValueError, match="`kinds` must be a tuple"):
        surgery.select(deps, scores, sparsity=0.5, kinds="depth")  # type: ignore[arg-type]


def test_magnitude_of_a_round_is_the_norm_of_all_its_slices():
    p, x = jax.tree.map(jnp.float32, (parameters(), batch()))
    deps = surgery.groups(scanned())(p, x)
    name = depth(deps)[0].id
    want = [
        np.sqrt(sum(float((np.asarray(leaf[i]) ** 2).sum()) for leaf in p.values()))
        for i in range(LAYERS)
    ]
    found = deps.scores(p, raw=True)[name]
    np.testing.assert_allclose(found, want, rtol=1e-6)


# -- what is stacked ------------------------------------------------------------------


def with_outputs(out: Callable[..., Any]) -> Callable[..., Any]:
    def fn(p: Any, x: Any) -> Any:
        def step(h: Any, q: Any) -> Any:
            y = branch(h, q)
            return h + y, out(h, y)

        return lax.scan(step, x, p)

    return fn


def test_an_auxiliary_loss_of_zero_is_summed_over_the_rounds_that_stay():
    with jax.enable_x64(True):
        p, x = parameters(), batch()
        aux = with_outputs(lambda h, y: (y * y).mean())

        def fn(p: Any, x: Any) -> Any:
            h, losses = aux(p, x)
            return h, losses.mean()  # over all rounds, removed ones too

        deps = surgery.groups(fn)(p, x)
        (rounds,) = depth(deps)
        assert deps.exactness[rounds.id].way == "zero"
        plan = surgery.plan_from_keep(deps, {rounds.id: [0, 2]})
        report = surgery.verify(fn, plan, p, x, gradient=True)
        assert report.ok and report.error < 1e-12


def test_what_removed_rounds_stack_is_not_summed_unnoticed():
    fn = with_outputs(lambda h, y: h)
    p, x = parameters(), batch()
    total = lambda p, x: fn(p, x)[1].sum(0)  # noqa: E731
    deps = surgery.groups(total)(p, x)
    (rounds,) = depth(deps)
    assert not deps.exactness[rounds.id].exact
    assert "removed rounds of a scan" in deps.exactness[rounds.id].why
    with pytest.raises(ValueError, match="nothing can be removed"):
        surgery.select(deps, deps.scores(p), sparsity=0.4, kinds=("depth",))


def test_stacked_outputs_of_the_caller_shrink_only_when_freed():
    fn = with_outputs(lambda h, y: h)
    p, x = jax.tree.map(jnp.float32, (parameters(), batch()))
    deps = surgery.groups(fn)(p, x)
    assert not depth(deps)
    assert {f.why for f in deps.frozen() if f.axis == 0} == {"model output"}
    deps = surgery.groups(fn, free_outputs=[(1,)])(p, x)
    plan = surgery.plan_from_keep(deps, {depth(deps)[0].id: [0, 3]})
    last, states = surgery.shrink(fn, plan)(plan.pack(p), x)
    want_last, want = fn(plan.zero(p), x)
    np.testing.assert_allclose(last, want_last, rtol=1e-6)
    np.testing.assert_allclose(states, want[jnp.array([0, 3])], rtol=1e-6)


def test_stacked_inputs_of_the_caller_are_indexed():
    """Keys and caches, one for each layer: they keep their length."""

    def fn(p: Any, x: Any, cache: Any, key: Any) -> Any:
        def step(h: Any, q: Any) -> Any:
            q, c, k = q
            noise = jax.random.normal(k, h.shape, h.dtype)
            return h + branch(h + c + noise, q), None

        return lax.scan(step, x, (p, cache, jax.random.split(key, LAYERS)))[0]

    with jax.enable_x64(True):
        p, x, key = parameters(), batch(), jax.random.key(3)
        cache = jnp.asarray(
            np.random.default_rng(2).standard_normal((LAYERS, 3, WIDTH))
        )
        deps = surgery.groups(fn)(p, x, cache, key)
        plan = surgery.plan_from_keep(deps, {depth(deps)[0].id: [1, 2, 4]})
        report = surgery.verify(fn, plan, p, x, cache, key, gradient=True)
        assert report.ok and report.error < 1e-12


# -- where the scan is ----------------------------------------------------------------


def test_scans_of_scans_have_two_depths():
    with jax.enable_x64(True):
        stages = [parameters(seed) for seed in range(3)]
        p = jax.tree.map(lambda *leaves: jnp.stack(leaves), *stages)
        step = lambda h, q: (scanned()(q, h), None)  # noqa: E731
        fn = lambda p, x: lax.scan(step, x, p)[0]  # noqa: E731
        x = batch()
        deps = surgery.groups(fn)(p, x)
        outer, inner = sorted(depth(deps), key=lambda g: g.size)
        assert (outer.size, inner.size) == (3, LAYERS)
        keep = {outer.id: [0, 2], inner.id: [1, 2, 4]}
        plan = surgery.plan_from_keep(deps, keep)
        assert plan.compact_shapes["up",] == (2, 3, WIDTH, INNER)
        report = surgery.verify(fn, plan, p, x, gradient=True)
        assert report.ok and report.error < 1e-12


def test_a_first_layer_outside_the_scan_stays():
    """`block(x, p[0])`, then a scan over `p[1:]`."""
    with jax.enable_x64(True):
        p, x = parameters(), batch()

        def fn(p: Any, x: Any) -> Any:
            x = block(x, jax.tree.map(lambda leaf: leaf[0], p))
            return scanned()(jax.tree.map(lambda leaf: leaf[1:], p), x)

        deps = surgery.groups(fn)(p, x)
        (rounds,) = depth(deps)
        assert rounds.size == LAYERS - 1
        plan = surgery.plan_from_keep(deps, {rounds.id: [0, 3]})
        np.testing.assert_array_equal(plan.keep["up",][0], [1, 1, 0, 0, 1])
        report = surgery.verify(fn, plan, p, x, gradient=True)
        assert report.ok and report.error < 1e-12


@pytest.mark.slow
def test_depth_and_width_go_together():
    with jax.enable_x64(True):
        p, x = parameters(), batch()
        p["in"], p["out"] = jnp.eye(WIDTH) + 0.1, jnp.ones((WIDTH, 2))

        def fn(p: Any, x: Any) -> Any:
            layers = {n: p[n] for n in ("up", "down", "scale", "bias")}
            return scanned()(layers, x @ p["in"]) @ p["out"]

        deps = surgery.groups(fn)(p, x)
        keep = {depth(deps)[0].id: [0, 2, 3]}
        keep |= {g.id: np.arange(g.size - 2) for g in deps if g.kind == "coupled"}
        assert len(keep) == 3
        plan = surgery.plan_from_keep(deps, keep)
        report = surgery.verify(fn, plan, p, x, gradient=True)
        assert report.ok and report.error < 1e-12


def test_a_plan_of_another_function_is_refused():
    p, x = jax.tree.map(jnp.float32, (parameters(), batch()))
    deps = surgery.groups(scanned())(p, x)
    plan = surgery.plan_from_keep(deps, {depth(deps)[0].id: [0, 1]})
    other = scanned(lambda h, q: norm(block(h, q), 1.0))
    with pytest.raises(ValueError, match="removes rounds of a scan, but a round"):
        surgery.shrink(other, plan)(plan.pack(p), x)


def cached(p: Any, x: Any, cache: Any, start: Any) -> Any:
    """Attention over a cache for each layer, stacked beside the layers."""

    def layer(h: Any, given: Any) -> Any:
        q, cache = given
        keys = lax.dynamic_update_slice(cache, h @ q["up"], (0, start, 0))
        late = (
            jnp.arange(cache.shape[1])[None] > start + jnp.arange(h.shape[1])[:, None]
        )
        a = jnp.einsum("btk,bsk->bts", h @ q["up"], keys)
        a = jax.nn.softmax(jnp.where(late[None], -1e9, a))
        return h + jnp.einsum("bts,bsk->btk", a, keys) @ q["down"] + q["bias"][
            None
        ], keys

    return lax.scan(layer, x, (p, cache))


def test_caches_declared_as_state_lose_the_layers_too():
    """Prefill and decode, against the zeroed dense model."""
    with jax.enable_x64(True):
        p, rng = parameters(), np.random.default_rng(4)
        x = jnp.asarray(rng.standard_normal((2, 5, WIDTH)))
        cache = jnp.zeros((LAYERS, 2, 7, INNER))
        deps = surgery.groups(cached, state={2: 1})(p, x[:, :3], cache, 0)
        (rounds,) = depth(deps)
        assert deps.exactness[rounds.id].exact
        plan = surgery.plan_from_keep(deps, {rounds.id: [0, 2, 3]})
        small, packed, zeroed = surgery.shrink(cached, plan), plan.pack(p), plan.zero(p)
        state = plan.pack(cache, argument=2)
        assert state.shape == (3, 2, 7, INNER)
        for start, stop in ((0, 3), (3, 4), (4, 5)):
            y, state = small(packed, x[:, start:stop], state, start)
            want, cache = cached(zeroed, x[:, start:stop], cache, start)
            close((y, state), (want, plan.pack(cache, argument=2)))
