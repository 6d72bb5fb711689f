"""Random networks: a list of layers drawn from everything that surgery knows.

`draw(rng)` gives a function of a dict of parameters and an input [3, 4]. Every layer
maps features to features, so layers compose in any order; the kinds are those of the
trial that found the mistakes of an earlier prototype.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.surgery.structures import two_pass

Layer = Callable[[Any, Any], Any]
ACTS = (jnp.tanh, jax.nn.sigmoid, jax.nn.relu, lambda h: jnp.cos(h) - 1.0, jax.nn.silu)


class Maker:
    """Draws layers and the parameters that they need."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.params: dict[str, Any] = {}

    def param(self, *shape: int) -> str:
        name = f"p{len(self.params):02d}"
        self.params[name] = 0.5 * self.rng.standard_normal(shape)
        return name

    def pick(self, *options: Any) -> Any:
        return options[self.rng.integers(len(options))]

    def layer(self, width: int) -> tuple[Layer, int]:
        kinds = [k for k in dir(self) if k.startswith("make_")]
        made = None
        while made is None:
            made = getattr(self, self.pick(*kinds))(width)
        return made

    def make_dense(self, width: int) -> Any:
        new = self.pick(4, 6, 8, 12)
        w, b = self.param(width, new), self.param(new)
        act = self.pick(*ACTS)
        return lambda p, h: act(h @ p[w] + p[b]), new

    make_dense_again = make_dense

    def make_residual(self, width: int) -> Any:
        inner, size = self.layer(width)
        w = self.param(size, width)
        return lambda p, h: h + inner(p, h) @ p[w], width

    def make_norm(self, width: int) -> Any:
        g = self.param(width)
        return lambda p, h: two_pass(h) * p[g], width

    def make_group_norm(self, width: int) -> Any:
        groups = self.pick(2, 4)
        if width % groups:
            return None

        def run(p: Any, h: Any) -> Any:
            return two_pass(h.reshape(3, groups, -1)).reshape(3, width)

        return run, width

    def make_concat(self, width: int) -> Any:
        other, size = self.layer(width)
        if width + size > 30:
            return None
        return lambda p, h: jnp.concatenate([h, other(p, h)], -1), width + size

    def make_gate(self, width: int) -> Any:
        if width % 2:
            return None

        def run(p: Any, h: Any) -> Any:
            a, b = jnp.split(h, 2, -1)
            return a * jax.nn.sigmoid(b)

        return run, width // 2

    def make_slice(self, width: int) -> Any:
        start = int(self.rng.integers(0, 2))
        stop = width - int(self.rng.integers(0, 2))
        return lambda p, h: h[:, start:stop], stop - start

    def make_strided(self, width: int) -> Any:
        if width % 2:
            return None
        both = self.pick(True, False)

        def run(p: Any, h: Any) -> Any:
            even, odd = h[:, ::2], h[:, 1::2]
            if not both:
                return even
            return jnp.stack([even - odd, jnp.sin(even + odd)], -1).reshape(3, width)

        return run, width if both else width // 2

    def make_pad(self, width: int) -> Any:
        low, high, value = self.pick(0, 2), self.pick(1, 3), self.pick(0.0, 1.5)
        pads = ((0, 0), (low, high))
        return (
            lambda p, h: jnp.pad(h, pads, constant_values=value),
            width + low + high,
        )

    def make_heads(self, width: int) -> Any:
        heads = self.pick(2, 3)
        if width % heads:
            return None
        w = self.param(heads, width // heads, 4)
        return (
            lambda p, h: jnp.einsum("bhd,hdo->bo", h.reshape(3, heads, -1), p[w]),
            4,
        )

    def make_attention(self, width: int) -> Any:
        if width % 2:
            return None
        q, k = self.param(width, 6), self.param(width, 6)

        def run(p: Any, h: Any) -> Any:
            qs, ks = ((h @ p[n]).reshape(3, 2, 3) for n in (q, k))
            a = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", qs, ks), -1)
            v = h.reshape(3, 2, -1)
            return jnp.einsum("hqk,khd->qhd", a, v).reshape(3, width)

        return run, width

    def make_pool(self, width: int) -> Any:
        act = self.pick(*ACTS)
        return lambda p, h: h * act(h).mean(-1, keepdims=True) + h, width

    def make_softmax(self, width: int) -> Any:
        return lambda p, h: jax.nn.softmax(h, -1) * h, width

    def make_max(self, width: int) -> Any:
        return lambda p, h: h - 0.5 * jnp.abs(h).max(-1, keepdims=True), width

    def make_gram(self, width: int) -> Any:
        def run(p: Any, h: Any) -> Any:
            pair = jnp.tanh(h[:, :, None] + 0.5 * h[:, None, :])
            return h + pair.sum(2)

        return run, width

    def make_tokens(self, width: int) -> Any:
        m, b = self.param(3, 3), self.param(3, 1)
        return lambda p, h: h + jnp.tanh(p[m] @ h + p[b]), width

    def make_constant(self, width: int) -> Any:
        table = np.cos(np.arange(3.0 * width).reshape(3, width))
        add = self.pick(True, False)
        return lambda p, h: h + table if add else h * table, width

    def make_permuted(self, width: int) -> Any:
        order = self.rng.permutation(width)
        return lambda p, h: h[:, order] + h, width

    def make_rolled(self, width: int) -> Any:
        step = self.pick(1, 2, max(width // 2, 1))
        return lambda p, h: jnp.roll(h, step, -1) + 0.5 * h, width

    def make_frozen(self, width: int) -> Any:
        op = self.pick(jnp.cumsum, jnp.sort, jnp.flip)
        return lambda p, h: op(h, axis=-1) + h, width

    def make_scan(self, width: int) -> Any:
        w, v = self.param(2, width, 5), self.param(2, 5, width)
        norm = self.pick(two_pass, jnp.tanh)

        def run(p: Any, h: Any) -> Any:
            def body(c: Any, layer: Any) -> Any:
                c = c + jax.nn.sigmoid(norm(c) @ layer[0]) @ layer[1]
                return c, c.mean(-1)

            h, means = lax.scan(body, h, (p[w], p[v]))
            return h * means[0][:, None]

        return run, width

    def make_cond(self, width: int) -> Any:
        one, two = self.pick(*ACTS), self.pick(*ACTS)
        # Of squares: a sum that is 0 but for rounding would decide by rounding.
        sign = lambda h: jnp.cos(jnp.sum(h * h)) > 0  # noqa: E731
        return (
            lambda p, h: lax.cond(sign(h), one, lambda a: two(a) - a.mean(), h),
            width,
        )

    def make_while(self, width: int) -> Any:
        act = self.pick(*ACTS)

        def run(p: Any, h: Any) -> Any:
            def body(c: Any, _: Any) -> Any:
                return act(c) - 0.1 * c.mean(-1, keepdims=True), None

            return lax.scan(body, h, None, length=2)[0]

        return run, width

    def make_segments(self, width: int) -> Any:
        ids = jnp.asarray([0, 1, 0])

        def run(p: Any, h: Any) -> Any:
            return jax.ops.segment_sum(jnp.tanh(h), ids, 2)[ids] + h

        return run, width

    def make_depthwise(self, width: int) -> Any:
        k = self.param(2, 1, width)

        def run(p: Any, h: Any) -> Any:
            return lax.conv_general_dilated(
                h[None],
                p[k],
                (1,),
                "SAME",
                dimension_numbers=("NWC", "WIO", "NWC"),
                feature_group_count=width,
            )[0]

        return run, width

    def make_grouped(self, width: int) -> Any:
        if width % 2:
            return None
        k = self.param(2, width // 2, 8)

        def run(p: Any, h: Any) -> Any:
            return lax.conv_general_dilated(
                h[None],
                p[k],
                (1,),
                "SAME",
                dimension_numbers=("NWC", "WIO", "NWC"),
                feature_group_count=2,
            )[0]

        return run, 8

    def make_standardized(self, width: int) -> Any:
        w = self.param(width, 6)
        return lambda p, h: jnp.tanh(h @ (p[w] - p[w].mean(0, keepdims=True))), 6

    def make_repeat(self, width: int) -> Any:
        if width > 12:
            return None
        how = self.pick(lambda h: jnp.repeat(h, 2, 1), lambda h: jnp.tile(h, (1, 2)))
        return lambda p, h: how(h), 2 * width


def draw(seed: int, depth: int = 4) -> tuple[Callable[..., Any], Any, Any]:
    """A random network with its parameters and input, in float64."""
    maker = Maker(np.random.default_rng(seed))
    layers = [maker.make_dense(4)]
    for _ in range(depth):
        layers.append(maker.layer(layers[-1][1]))
    out = maker.param(layers[-1][1], 2)

    def fn(p: Any, x: Any) -> Any:
        h = x
        for layer, _ in layers:
            h = layer(p, h)
        return h @ p[out]

    return fn, maker.params, maker.rng.standard_normal((3, 4))
