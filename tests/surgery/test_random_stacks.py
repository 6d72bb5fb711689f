"""Random residual stacks: the scan without some rounds, and a loop over those left."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jprune import surgery

Branch = Callable[[Any, Any], Any]
ACTS = (jnp.tanh, jax.nn.relu, jax.nn.silu, jax.nn.gelu, lambda h: jnp.cos(h) - 1)


class Stack:
    """A drawn residual block, its stacked parameters, and how its rounds are run."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.rounds = int(self.rng.integers(2, 7))
        self.width = int(self.rng.choice([4, 6]))
        self.params: dict[str, Any] = {}
        self.branches = [self.draw() for _ in range(self.rng.integers(1, 4))]
        self.parallel = bool(self.rng.integers(2))
        self.reverse = bool(self.rng.integers(2))
        self.unroll = int(self.rng.integers(1, 4))
        self.wrap = self.pick(lambda f: f, jax.checkpoint, jax.jit)
        self.params["in"] = jnp.asarray(self.rng.standard_normal((5, self.width)))
        self.params["out"] = jnp.asarray(self.rng.standard_normal((self.width, 2)))

    def pick(self, *options: Any) -> Any:
        return options[self.rng.integers(len(options))]

    def param(self, *shape: int) -> str:
        name = f"p{len(self.params):02d}"
        draw = 0.5 * self.rng.standard_normal((self.rounds, *shape))
        self.params[name] = jnp.asarray(draw)
        return name

    def draw(self) -> Branch:
        """A norm (or none), what works on the stream, a layer scale (or none)."""
        before, inner = self.norm(), self.pick(self.mlp, self.mixer)()
        scale = self.param(1, 1, self.width) if self.rng.integers(2) else ""
        bias = self.param(1, 1, self.width) if self.rng.integers(2) else ""

        def branch(p: Any, h: Any) -> Any:
            y = inner(p, before(p, h))
            y = y + p[bias] if bias else y
            return y * p[scale] if scale else y

        return branch

    def norm(self) -> Branch:
        kind = self.rng.integers(4)
        if kind == 3:  # a parameter that nothing reads would keep its rounds
            return lambda p, h: h
        g = self.param(1, 1, self.width)

        def rms(p: Any, h: Any) -> Any:
            mean = jnp.mean(h * h, -1, keepdims=True)
            return h * lax.rsqrt(mean + 1e-5) * (p[g] if kind else 1 + p[g])

        def layer(p: Any, h: Any) -> Any:
            h = h - jnp.mean(h, -1, keepdims=True)
            return h / jnp.sqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-5) * p[g]

        return (rms, rms, layer)[kind]

    def mlp(self) -> Branch:
        act, inner = self.pick(*ACTS), int(self.rng.integers(2, 6))
        up, down = self.param(self.width, inner), self.param(inner, self.width)
        gate = self.param(self.width, inner) if self.rng.integers(2) else ""

        def branch(p: Any, h: Any) -> Any:
            y = act(h @ p[up])
            return (y * (h @ p[gate]) if gate else y) @ p[down]

        return branch

    def mixer(self) -> Branch:
        q, k, v = (self.param(self.width, 2, 3) for _ in range(3))
        o = self.param(2, 3, self.width)

        def branch(p: Any, h: Any) -> Any:
            a, b, c = (jnp.einsum("btd,dhk->bhtk", h, p[n]) for n in (q, k, v))
            scores = jnp.einsum("bhtk,bhsk->bhts", a, b)
            causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None]
            scores = jax.nn.softmax(jnp.where(causal, scores, -1e9))
            return jnp.einsum("bhts,bhsk,hkd->btd", scores, c, p[o])

        return branch

    def block(self, h: Any, p: Any) -> Any:
        if self.parallel:
            ys = [branch(p, h) for branch in self.branches]
            return h + sum(ys), sum(jnp.mean(y * y) for y in ys)
        loss = jnp.zeros(())
        for branch in self.branches:
            y = branch(p, h)
            h, loss = h + y, loss + jnp.mean(y * y)
        return h, loss

    def layers(self, p: Any) -> Any:
        return {n: leaf for n, leaf in p.items() if n not in ("in", "out")}

    def scanned(self, p: Any, x: Any) -> Any:
        options = {"reverse": self.reverse, "unroll": self.unroll}
        body = self.wrap(self.block)
        h, losses = lax.scan(body, x @ p["in"], self.layers(p), **options)
        return h @ p["out"], losses.sum()

    def looped(self, p: Any, x: Any) -> Any:
        h, total, stacks = x @ p["in"], jnp.zeros(()), self.layers(p)
        rounds = range(len(next(iter(stacks.values()))))
        for i in reversed(rounds) if self.reverse else rounds:
            h, loss = self.block(h, {n: leaf[i] for n, leaf in stacks.items()})
            total = total + loss
        return h @ p["out"], total


def value_and_gradient(fn: Any, p: Any, x: Any) -> Any:
    def loss(p: Any) -> Any:
        y, total = fn(p, x)
        return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum() + total, y

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(p)


def close(a: Any, b: Any) -> None:
    for s, t in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(s, t, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "seed", [3, *(pytest.param(s, marks=pytest.mark.slow) for s in range(20, 50))]
)
def test_random_stacks(seed: int):
    """Depth alone against the loop, depth and width against the zeroed scan."""
    with jax.enable_x64(True):
        net = Stack(seed)
        p, x = net.params, jnp.asarray(net.rng.standard_normal((2, 3, 5)))
        deps = surgery.groups(net.scanned)(p, x)
        (rounds,) = [g for g in deps if g.kind == "depth"]
        assert rounds.size == net.rounds and deps.exactness[rounds.id].exact
        keep = net.rng.permutation(net.rounds) < net.rng.integers(1, net.rounds)
        plan = surgery.plan_from_keep(deps, {rounds.id: keep})
        packed = plan.pack(p)
        by_hand = {
            n: leaf if n in ("in", "out") else leaf[np.flatnonzero(keep)]
            for n, leaf in p.items()
        }
        close(packed, by_hand)
        small = surgery.shrink(net.scanned, plan)
        got = value_and_gradient(small, packed, x)
        close(got, value_and_gradient(net.looped, by_hand, x))

        def random_keep(size: int) -> np.ndarray:
            return net.rng.permutation(size) < net.rng.integers(1, size + 1)

        widths = {g.id: random_keep(g.size) for g in deps if g.kind == "coupled"}
        both = surgery.plan_from_keep(deps, {rounds.id: keep, **widths})
        want, gradient = value_and_gradient(net.scanned, both.zero(p), x)
        small = surgery.shrink(net.scanned, both)
        close(value_and_gradient(small, both.pack(p), x), (want, both.pack(gradient)))
