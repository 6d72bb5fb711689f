"""Whole experts that go: routers that weight all, and routers that rank."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import surgery
from tests.surgery.proof import QUICK

EXPERTS, WIDTH, HIDDEN = 6, 4, 5
KEPT = [0, 2, 5]


pytestmark = pytest.mark.usefixtures("double")


def case(seed: int = 0) -> tuple:
    rng = np.random.default_rng(seed)
    array = lambda *s: jnp.asarray(rng.standard_normal(s))  # noqa: E731
    params = {
        "router": array(WIDTH, EXPERTS),
        "up": array(EXPERTS, WIDTH, HIDDEN),
        "down": array(EXPERTS, HIDDEN, WIDTH),
    }
    return params, array(40, WIDTH)


def experts(p: Any, x: Any, gates: Any) -> Any:
    h = jnp.tanh(jnp.einsum("bd,edf->bef", x, p["up"]))
    return jnp.einsum("bef,efd,be->bd", h, p["down"], gates)


def masked(p: Any, x: Any, logits: Any = None) -> Any:
    """The best two by a mask; the logits may be given."""
    logits = x @ p["router"] if logits is None else logits
    best, which = jax.lax.top_k(logits, 2)
    gates = jnp.einsum(
        "bk,bke->be", jax.nn.softmax(best), jax.nn.one_hot(which, logits.shape[-1])
    )
    return experts(p, x, gates)


def gathered(p: Any, x: Any) -> Any:
    """The best two, their weights looked up."""
    best, which = jax.lax.top_k(jax.nn.softmax(x @ p["router"]), 2)
    h = jnp.tanh(jnp.einsum("bd,bkdf->bkf", x, p["up"][which]))
    return jnp.einsum("bkf,bkfd,bk->bd", h, p["down"][which], best)


def switched(p: Any, x: Any) -> Any:
    """The best one, by an arg-max."""
    probs = jax.nn.softmax(x @ p["router"])
    which = jnp.argmax(probs, -1)
    h = jnp.tanh(jnp.einsum("bd,bdf->bf", x, p["up"][which]))
    y = jnp.einsum("bf,bfd->bd", h, p["down"][which])
    return y * jnp.take_along_axis(probs, which[:, None], -1)


def capped(p: Any, x: Any) -> Any:
    """The best two, as long as an expert has room; dispatched by products."""
    best, which = jax.lax.top_k(jax.nn.softmax(x @ p["router"]), 2)
    chosen = jax.nn.one_hot(which, EXPERTS).sum(1)  # [tokens, experts]
    place = (jnp.cumsum(chosen, 0) * chosen - 1).astype(int)
    send = jax.nn.one_hot(place, 9)  # [tokens, experts, room]
    gates = jnp.einsum("bk,bke->be", best, jax.nn.one_hot(which, EXPERTS))
    h = jnp.tanh(jnp.einsum("bec,bd,edf->ecf", send, x, p["up"]))
    return jnp.einsum("ecf,efd,bec,be->bd", h, p["down"], send, gates)


ROUTED = (masked, gathered, switched, capped)


def plan_of(fn: Any, params: Any, x: Any) -> tuple:
    deps = surgery.groups(fn, lookups=[("router:1", "up:0", "down:0")])(params, x)
    (group,) = deps.find("router:1")
    assert group.size == EXPERTS and deps.exactness[group.id].exact
    assert {m.path[0] for m in group.members} == {"router", "up", "down"}
    return deps, surgery.plan_from_keep(deps, {group.id: KEPT})


@pytest.mark.parametrize(
    "fn",
    [pytest.param(f, marks=[pytest.mark.slow] * (f is masked)) for f in ROUTED],
    ids=lambda f: f.__name__,
)
def test_equals_the_zeroed_mixture(fn: Any):
    """Where a removed expert still has the logit 0 and is often chosen."""
    params, x = case()
    frozen = surgery.groups(fn)(params, x).frozen()
    assert {f.why for f in frozen if f.path == ("router",) and f.axis == 1} == {
        "the position matters"
    }
    deps, plan = plan_of(fn, params, x)
    chosen = jax.lax.top_k(x @ plan.zero(params)["router"], 2)[1]
    assert 5 < np.isin(chosen, KEPT).sum() < chosen.size - 5
    report = surgery.verify(fn, plan, params, x, gradient=True, limit=1.0)
    assert report.ok and report.error <= 1e-10 and report.way != "no", report
    assert report.gradient_error is not None and report.gradient_error <= 1e-10
    assert plan.numbering("router:1").old.tolist() == KEPT
    assert list(deps)


def test_never_there_is_a_logit_of_minus_infinity():
    params, x = case()
    _, plan = plan_of(masked, params, x)
    small = jax.jit(
        surgery.shrink(masked, plan, mean="compact"), compiler_options=QUICK
    )
    logits = np.where(np.isin(np.arange(EXPERTS), KEPT), x @ params["router"], -np.inf)
    want = masked(params, x, logits)
    np.testing.assert_allclose(small(plan.pack(params), x), want, atol=1e-12)
    deps, _ = plan_of(masked, params, x)
    one = surgery.plan_from_keep(deps, {"router:1": [3]})
    with pytest.raises(ValueError, match="of which 1 are kept: keep 2 or more"):
        surgery.shrink(masked, one, mean="compact")(one.pack(params), x)
    assert surgery.verify(masked, one, params, x).ok  # the zeroed one has its zeros


def test_equal_entries_are_ranked_by_their_dense_position():
    """Ties between kept and removed entries, before and behind each other."""
    rng = np.random.default_rng(1)
    params = {"router": rng.integers(-1, 2, (3, 9)).astype(float)}
    x = rng.integers(-1, 2, (50, 3)).astype(float)

    def fn(p: Any, x: Any) -> Any:
        logits = x @ p["router"]
        return jax.lax.top_k(logits, 4), jnp.argmax(logits, -1), jnp.argmin(logits, -1)

    deps = surgery.groups(fn, lookups=["router:1"])(params, x)
    for kept in ([1, 4, 5, 7], [0, 8]):
        plan = surgery.plan_from_keep(deps, {"router:1": kept})
        got = surgery.shrink(fn, plan)(plan.pack(params), x)
        want = fn(plan.zero(params), x)
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_loss_on_the_counts_of_all_experts_is_not_exact():
    """How often a removed expert is chosen is not known without it."""

    def fn(p: Any, x: Any) -> Any:
        probs = jax.nn.softmax(x @ p["router"])
        chosen = jax.nn.one_hot(jax.lax.top_k(probs, 2)[1], EXPERTS).sum(1)
        return masked(p, x), (chosen.mean(0) * probs.mean(0)).sum()

    params, x = case()
    deps = surgery.groups(fn, lookups=["router:1"])(params, x)
    exactness = deps.exactness["router:1"]
    assert not exactness.exact and exactness.why


def test_dispatch_by_sorting_keeps_the_experts():
    def fn(p: Any, x: Any) -> Any:
        which = jnp.argmax(x @ p["router"], -1)
        order = jnp.argsort(which)
        sizes = jnp.bincount(which, length=EXPERTS).astype(jnp.int32)
        h = jnp.tanh(jax.lax.ragged_dot(x[order], p["up"], sizes))
        return jax.lax.ragged_dot(h, p["down"], sizes)[jnp.argsort(order)]

    params, x = case()
    deps = surgery.groups(fn, lookups=["router:1"])(params, x)
    whys = {f.why for f in deps.frozen() if f.path == ("up",) and f.axis == 0}
    assert not deps.find("up:0") and whys and "" not in whys


def test_greedy_text_in_one_program():
    """An arg-max over a vocabulary that lost tokens feeds the next look-up."""
    rng = np.random.default_rng(2)
    params = {"table": rng.standard_normal((8, 5)), "w": rng.standard_normal((5, 5))}
    params = jax.tree.map(jnp.asarray, params)

    def fn(p: Any, first: Any) -> Any:
        def step(token: Any, _: Any) -> Any:
            token = jnp.argmax(jnp.tanh(p["table"][token] @ p["w"]) @ p["table"].T, -1)
            return token, token

        return jax.lax.scan(step, first, length=12)[1]

    deps = surgery.groups(fn, lookups=["table:0"])(params, jnp.array([2, 3, 6]))
    plan = surgery.plan_from_keep(deps, {"table:0": [0, 2, 3, 6, 7]})
    got = surgery.shrink(fn, plan)(plan.pack(params), jnp.array([2, 3, 6]))
    want = fn(plan.zero(params), jnp.array([2, 3, 6]))
    np.testing.assert_array_equal(got, want)
    assert len(np.unique(want)) > 3
