"""Caches and recurrent states as arguments that shrink with the parameters.

The reference is the dense model with the removed parts zeroed, whose own cache is
filled by a prefill and read by a decoding step for each token. All in float64.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import surgery
from tests.surgery.language_nets import (
    VOCABULARY,
    Form,
    decoder,
    empty_cache,
    empty_state,
    mamba,
    mamba_parameters,
    parameters,
)
from tests.surgery.nets import tokens
from tests.surgery.proof import coupled, random_plan

LENGTH, PREFIX = 9, 4
FORMS = {
    "grouped queries, RoPE by halves": Form(kv=2, rotary="halves", mlp="gated"),
    "one key head, RoPE in pairs": Form(kv=1, rotary="pairs", tied=True),
    "ALiBi in a sliding window": Form(bias="alibi", window=5),
    "T5 biases, experts": Form(kv=2, bias="t5", mlp="soft"),
}
SLOW = ("one key head", "ALiBi", "T5")


pytestmark = pytest.mark.usefixtures("double")


def largest(tree: Any, other: Any) -> float:
    """The largest difference; shapes must agree."""
    gaps = jax.tree.map(
        lambda a, b: np.abs(np.asarray(a) - b).max(initial=0.0), tree, other
    )
    shapes = [jax.tree.map(np.shape, t) for t in (tree, other)]
    assert shapes[0] == shapes[1]
    return max(jax.tree.leaves(gaps))


def generated(fn: Any, params: Any, cache: Any, text: Any, positions: bool) -> list:
    """Prefill, then a step for each further token: the logits, the cache at the end."""
    step, out, start = jax.jit(fn), [], 0
    for part in (text[:, :PREFIX], *np.split(text[:, PREFIX:], LENGTH - PREFIX, 1)):
        logits, cache = step(params, part, cache, *([start] if positions else []))
        out.append(logits)
        start += part.shape[1]
    return [np.concatenate(out, 1), cache]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * n.startswith(SLOW)) for n in FORMS],
)
def test_generation_with_a_cache(name: str):
    form = FORMS[name]
    fn, params = partial(decoder, form=form), parameters(form)
    cache, text = empty_cache(form, 2, LENGTH), tokens(2, LENGTH, VOCABULARY)
    deps = surgery.groups(fn, state={2: 1})(params, text[:, :PREFIX], cache, 0)
    plain = surgery.groups(fn)(params, text[:, :PREFIX])
    assert [(g.id, g.size) for g in deps] == [(g.id, g.size) for g in plain]
    assert all(deps.exactness[g.id].exact for g in deps)
    plan = surgery.Plan.from_json(random_plan(deps).to_json())
    packed = plan.pack(cache, argument=2)
    assert packed["layers"][0]["key"].size < cache["layers"][0]["key"].size
    zeroed, kept = plan.zero(params), plan.pack(params)
    dense = generated(fn, zeroed, cache, text, True)
    small = generated(surgery.shrink(fn, plan), kept, packed, text, True)
    assert np.abs(dense[0]).max() > 0.1
    assert largest(small[0], dense[0]) <= 1e-10
    assert largest(small[1], plan.pack(dense[1], argument=2)) <= 1e-10
    # The same weights without a cache, in one pass: the cache changed nothing.
    whole = surgery.shrink(fn, plan)(kept, text)
    assert largest(small[0], whole) <= 1e-10


def test_generation_with_a_recurrent_state():
    params, text, state = (
        mamba_parameters(),
        tokens(2, LENGTH, VOCABULARY),
        empty_state(2),
    )
    deps = surgery.groups(mamba, state={2: 1})(params, text[:, :PREFIX], state)
    plan = random_plan(deps)
    packed = plan.pack(state, argument=2)
    assert packed[0]["ssm"].shape[1] < 10 and packed[0]["conv"].shape[2] < 10
    dense = generated(mamba, plan.zero(params), state, text, False)
    small = generated(
        surgery.shrink(mamba, plan), plan.pack(params), packed, text, False
    )
    assert largest(small[0], dense[0]) <= 1e-10
    assert largest(small[1], plan.pack(dense[1], argument=2)) <= 1e-10


def stacked(p: Any, x: Any, cache: Any, start: Any) -> Any:
    """Layers in a scan, their caches stacked as well."""

    def layer(x: Any, given: Any) -> Any:
        p, cache = given
        k = jax.lax.dynamic_update_slice(cache, x @ p["k"], (0, start, 0))
        seen = jnp.arange(k.shape[1])[None] <= start + jnp.arange(x.shape[1])[:, None]
        a = jnp.einsum("btk,bsk->bts", x @ p["q"], k)
        a = jax.nn.softmax(jnp.where(seen, a, -1e9), -1)
        return x + jnp.einsum("bts,bsk->btk", a, k) @ p["o"], k

    x, cache = jax.lax.scan(layer, x @ p["in"], (p["layers"], cache))
    return {"out": x @ p["out"], "cache": cache}


def stacked_case() -> Any:
    rng = np.random.default_rng(3)
    array = lambda *s: rng.standard_normal(s) / np.sqrt(s[-2])  # noqa: E731
    layers = {"q": array(3, 6, 8), "k": array(3, 6, 8), "o": array(3, 8, 6)}
    params = {"in": array(4, 6), "layers": layers, "out": array(6, 5)}
    return params, array(2, 3, 4), np.zeros((3, 2, 7, 8))


def test_stacked_caches_in_a_scan_and_verify():
    params, x, cache = stacked_case()
    deps = surgery.groups(stacked, state={"cache": "cache"})(
        params, x, cache=cache, start=0
    )
    (inner,) = deps.find("layers/k:2")
    assert inner.size == 8
    assert f"  cache:3 with {inner.id}" in deps.table().splitlines()
    plan = random_plan(deps)
    report = surgery.verify(
        stacked, plan, params, x, cache=0.1 + cache, start=2, gradient=True
    )
    assert report.ok and report.error < 1e-10, report
    small = surgery.shrink(stacked, plan)
    packed = plan.pack(cache, argument="cache")
    assert packed.shape == (3, 2, 7, plan.compact_shapes["layers", "k"][2])
    out = small(plan.pack(params), x, cache=packed, start=0)
    assert out["cache"].shape == packed.shape
    back = plan.unpack(out["cache"], argument="cache")
    want = stacked(plan.zero(params), x, plan.zero(cache, argument="cache"), 0)
    assert largest(back, want["cache"]) <= 1e-10
    # Another batch and a longer cache: only the axes that lose something are fixed.
    other = small(plan.pack(params), x[:1], cache=np.zeros((3, 1, 11, 5)), start=0)
    assert other["cache"].shape == (3, 1, 11, 5)


def test_without_the_declaration_the_cache_freezes():
    params, x, cache = stacked_case()
    deps = surgery.groups(stacked)(params, x, cache, 0)
    assert not deps.find("layers/k:2")
    whys = {f.why for f in deps.frozen() if f.path == ("layers", "k") and f.axis == 2}
    assert whys == {"model input"}
    # An output that does not come back as the argument is still the caller's.
    read = surgery.groups(stacked, state={2: None})(params, x, cache, 0)
    whys = {f.why for f in read.frozen() if f.path == ("layers", "k") and f.axis == 2}
    assert whys == {"model output"}


def test_a_function_that_takes_the_state_elsewhere():
    """A prefill that makes the cache, a step with its arguments in another order."""
    params, x, cache = stacked_case()
    deps = surgery.groups(stacked, state={2: "cache"})(params, x, cache, 0)
    plan = random_plan(deps)
    kept, zeroed = plan.pack(params), plan.zero(params)

    def prefill(p: Any, x: Any) -> Any:
        return stacked(p, x, jnp.zeros(cache.shape), 0)

    def step(p: Any, start: Any, held: Any, x: Any) -> Any:
        out = stacked(p, x, held["kv"], start)
        return {"kv": out["cache"]}, out["out"]

    with pytest.raises(ValueError, match="model output"):
        surgery.shrink(prefill, plan)(kept, x)
    first = surgery.shrink(prefill, plan, free_outputs=[("cache",)])(kept, x)
    want = prefill(zeroed, x)
    assert largest(first["cache"], plan.pack(want["cache"], argument=2)) <= 1e-10
    small = surgery.shrink(step, plan, state={(2, "kv"): (0, "kv")})
    held, y = small(kept, 3, {"kv": first["cache"]}, x[:, :1])
    dense, expected = step(zeroed, 3, {"kv": want["cache"]}, x[:, :1])
    assert largest(y, expected) <= 1e-10
    assert largest(held["kv"], plan.pack(dense["kv"], argument=2)) <= 1e-10
    # A training function has no cache: the plan fits it as it is.
    loss = lambda p, x: (prefill(p, x)["out"] ** 2).sum()  # noqa: E731
    got = surgery.shrink(loss, plan)(kept, x)
    np.testing.assert_allclose(got, loss(zeroed, x), rtol=1e-12)


def test_one_plan_after_another():
    params, x, cache = stacked_case()
    deps = surgery.groups(stacked, state={2: "cache"})(params, x, cache, 0)
    first = random_plan(deps)
    small, kept = surgery.shrink(stacked, first), first.pack(params)
    held = first.pack(cache, argument=2)
    with pytest.raises(ValueError, match="declare it again"):
        once = surgery.groups(lambda p, x: small(p, x, held, 0)["out"])(kept, x)
        first.then(surgery.plan_from_keep(once, {}))
    again = surgery.groups(small, state={2: "cache"})(kept, x, held, 0)
    second = random_plan(again, seed=1)
    both = first.then(second)
    got = surgery.shrink(stacked, both)(
        both.pack(params), x, both.pack(cache, argument=2), 0
    )
    want = stacked(both.zero(params), x, cache, 0)
    assert largest(got["out"], want["out"]) <= 1e-10
    np.testing.assert_array_equal(
        both.pack(cache, argument=2), second.pack(held, argument=2)
    )


def test_state_that_comes_back_other_than_zero_and_is_summed_is_not_exact():
    def leaky(p: Any, x: Any, h: Any) -> Any:
        h = jax.nn.sigmoid(x @ p["w"] + h)
        return h @ p["v"] + h.mean(-1, keepdims=True), h

    params = {"w": np.ones((4, 6)), "v": np.ones((6, 2))}
    deps = surgery.groups(leaky, state={2: 1})(
        params, np.ones((3, 4)), np.zeros((3, 6))
    )
    (group,) = deps
    assert group.size == 6 and not deps.exactness[group.id].exact
    assert "comes back other than 0" in deps.exactness[group.id].why
    fine = lambda p, x, h: leaky(p, x, h)[0]  # noqa: E731
    deps = surgery.groups(fine, state={2: None})(
        params, np.ones((3, 4)), np.zeros((3, 6))
    )
    assert deps.exactness["w:1"].exact


def counted(p: Any, x: Any, state: Any) -> Any:
    """A counter for each layer, as Flax has; a gate that zeros leave at 0.5."""

    def layer(x: Any, given: Any) -> Any:
        p, at, gate = given
        gate = jax.nn.sigmoid(x @ p["q"] + gate)
        y = jnp.tanh(x @ p["k"]) * gate * jnp.cos(at)
        return x + y @ p["o"], (at + 1, gate)

    x, state = jax.lax.scan(layer, x @ p["in"], (p["layers"], *state))
    return x @ p["out"], state


def test_state_that_counts_for_nothing_may_come_back_other_than_zero():
    params, x, _ = stacked_case()
    state = (np.zeros(3, int), np.zeros((3, 2, 8)))
    deps = surgery.groups(counted, state={2: 1})(params, x[:, 0], state)
    assert sorted((g.kind, g.size) for g in deps if g.size in (3, 8)) == [
        ("coupled", 8),
        ("depth", 3),
    ]
    assert all(deps.exactness[g.id].exact for g in deps)
    (depth,) = [g for g in deps if g.kind == "depth"]
    keep = {g.id: np.arange(g.size) % 3 > 0 for g in coupled(deps)}
    plan = surgery.plan_from_keep(deps, {**keep, depth.id: [0, 2]})
    small, kept = jax.jit(surgery.shrink(counted, plan)), plan.pack(params)
    held, zeroed, dense = plan.pack(state, argument=2), plan.zero(params), state
    for t in range(3):
        want, dense = jax.jit(counted)(zeroed, x[:, t], dense)
        got, held = small(kept, x[:, t], held)
        assert largest(got, want) <= 1e-10
    assert dense[0].tolist() == [3, 3, 3] and held[0].tolist() == [3, 3]
    assert np.abs(dense[1][1]).min() > 0.1  # a removed layer's
    assert largest(held, plan.pack(dense, argument=2)) <= 1e-10


def test_errors_of_declared_state():
    params, x, cache = stacked_case()
    args = (params, x, cache, 0)
    with pytest.raises(ValueError, match="other than the parameters"):
        surgery.groups(stacked, state={0: "cache"})(*args)
    with pytest.raises(ValueError, match="argument 'memory', which the call does not"):
        surgery.groups(stacked, state={"memory": "cache"})(*args)
    with pytest.raises(ValueError, match="must have its leaves"):
        surgery.groups(stacked, state={2: ()})(*args)
    deps = surgery.groups(stacked, state={2: "cache"})(*args)
    plan = random_plan(deps)
    with pytest.raises(ValueError, match=r"pack\(state, argument=2\)"):
        surgery.shrink(stacked, plan)(plan.pack(params), x, cache, 0)
    with pytest.raises(ValueError, match="must be the argument 3"):
        plan.pack(cache, argument=3)
    with pytest.raises(ValueError, match="0 leaves of the plan's"):
        surgery.shrink(stacked, plan, state={1: "cache"})(
            plan.pack(params), x, cache, 0
        )


@pytest.mark.slow
def test_every_sequence_at_a_position_of_its_own():
    """`vmap` writes into a cache by a scatter that covers the widths whole."""
    params, x, cache = stacked_case()

    def decode(p: Any, x: Any, cache: Any, starts: Any) -> Any:
        def one(x: Any, cache: Any, start: Any) -> Any:
            out = stacked(p, x[None], cache[:, None], start)
            return out["out"][0], out["cache"][:, 0]

        return jax.vmap(one, (0, 1, 0), (0, 1))(x, cache, starts)

    starts = np.asarray([1, 9])  # the second is clamped
    deps = surgery.groups(decode, state={2: 1})(params, x, cache, starts)
    (inner,) = deps.find("layers/k:2")
    assert inner.size == 8 and deps.exactness[inner.id].exact
    plan, cache = random_plan(deps), 0.1 + cache
    report = surgery.verify(decode, plan, params, x, cache, starts, gradient=True)
    assert report.ok and report.error < 1e-10, report
    held = plan.pack(cache, argument=2)
    got = surgery.shrink(decode, plan)(plan.pack(params), x, held, starts)
    cache = plan.zero(cache, argument=2)
    want = decode(plan.zero(params), x, cache, starts)
    assert largest(got[0], want[0]) <= 1e-10
    assert largest(got[1], plan.pack(want[1], argument=2)) <= 1e-10
