"""Small functions, one for each structure that surgery has to get right.

A `Structure` is a plain function of a dict of parameters, with what is expected of it
by hand: the sizes of its removable groups and the way the certificate proves them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def mlp(act: Callable[[Any], Any]) -> Callable[..., Any]:
    """x -> act(x w + b) v."""
    return lambda p, x: act(x @ p["w"] + p["b"]) @ p["v"]


def two_pass(h: Any) -> Any:
    """A norm by mean and variance of deviations, without scale."""
    m = h.mean(-1, keepdims=True)
    return (h - m) / jnp.sqrt(((h - m) ** 2).mean(-1, keepdims=True) + 1e-3)


def two_pass_norm(p: Any, x: Any) -> Any:
    h = x @ p["w"] + p["b"]
    return (two_pass(h) * p["g"] + p["beta"]) @ p["v"]


def sigmoid_pool(p: Any, x: Any) -> Any:
    h = x @ p["w"] + p["b"]
    return (h * jax.nn.sigmoid(h).mean(-1, keepdims=True)) @ p["v"]


def softmax_units(p: Any, x: Any) -> Any:
    h = x @ p["w"] + p["b"]
    return (h * jax.nn.softmax(h, -1)) @ p["v"]


def logsumexp_units(p: Any, x: Any) -> Any:
    h = x @ p["w"] + p["b"]
    return h @ p["v"] + jax.nn.logsumexp(h, -1, keepdims=True)


def product_units(p: Any, x: Any) -> Any:
    h = x @ p["w"] + p["b"]
    return h @ p["v"] + jnp.prod(jnp.cos(h), -1, keepdims=True)


def max_abs_scale(p: Any, x: Any) -> Any:
    h = x @ p["w"] + p["b"]
    return (h / (jnp.abs(h).max(-1, keepdims=True) + 0.1)) @ p["v"]


def linear_attention(p: Any, x: Any) -> Any:
    q, k, v = (x @ p[n] for n in "qkv")
    q, k = jax.nn.elu(q) + 1, jax.nn.elu(k) + 1
    y = q @ (k.T @ v) / (q @ k.sum(0))[:, None]
    return y @ p["o"]


def gram(p: Any, x: Any) -> Any:
    """One atom on two axes; the broadcast axis is not zero."""
    h = x @ p["w"] + p["b"]
    pair = h[:, :, None] + h[:, None, :]
    return jnp.tanh(pair).sum((1, 2))[:, None] + h @ p["v"]


def outer_product(p: Any, x: Any) -> Any:
    h = jax.nn.sigmoid(x @ p["w"] + p["b"])
    g = jnp.einsum("bi,bj->ij", h, h)
    return g.sum() + h @ p["v"]


def pad_with_one(p: Any, x: Any) -> Any:
    """Padding that is not zero is no zero."""
    h = jnp.pad(x @ p["w"] + p["b"], ((0, 0), (2, 1)), constant_values=1.0)
    return jnp.sin(h + p["c"]).sum(-1, keepdims=True) + h @ p["u"]


def mixer(p: Any, x: Any) -> Any:
    """A bias along another axis lands on removed channels before a norm."""
    h = x @ p["w"] + p["b"]  # [tokens, d]
    h = h + p["mix"] @ h + p["mb"][:, None]
    return two_pass(h) @ p["v"]


def weight_standardization(p: Any, x: Any) -> Any:
    h = jnp.tanh(x @ p["w"])
    v = p["v"]
    v = (v - v.mean(0)) / jnp.sqrt(v.var(0) + 1e-3)
    return jnp.tanh(h @ v) @ p["u"]


def counts(p: Any, x: Any) -> Any:
    """A count made by the program."""
    h = x @ p["w"] + p["b"]
    return h @ p["v"] + h.sum(-1, keepdims=True) / jnp.ones_like(h).sum(
        -1, keepdims=True
    )


def kl_term(p: Any, x: Any) -> Any:
    """Every piece is non-zero at a removed unit, the sum is zero."""
    mu, lv = x @ p["w"], x @ p["v"]
    kl = 1 + lv - mu**2 - jnp.exp(lv)
    return (mu + lv) @ p["u"] + kl.sum(-1, keepdims=True)


def token_mask(p: Any, x: Any) -> Any:
    """A literal zero in a select is zero everywhere."""
    h = x @ p["w"] + p["b"]
    h = jnp.where(x[:, :1] > 0, h, 0.0)
    return h @ p["v"] + h.sum(-1, keepdims=True)


def scan_norms(p: Any, x: Any) -> Any:
    def body(h: Any, layer: Any) -> Any:
        w, v = layer
        h = h + jnp.tanh(two_pass(h) @ w) @ v
        return h, two_pass(h).mean(-1)

    h, ys = lax.scan(body, x @ p["w"] + p["b"], (p["ws"], p["vs"]))
    return h @ p["v"] + ys.sum(0)[:, None]


def remat_scan(p: Any, x: Any) -> Any:
    @jax.checkpoint
    def body(h: Any, layer: Any) -> Any:
        w, v = layer
        return h + jnp.tanh(two_pass(h) @ w) @ v, None

    return lax.scan(body, x @ p["w"] + p["b"], (p["ws"], p["vs"]))[0] @ p["v"]


def moving_carry(p: Any, x: Any) -> Any:
    """A carry whose ghost is zero at the start and moves inside the loop."""

    def body(h: Any, row: Any) -> Any:
        return h + jax.nn.sigmoid(h).mean() + row.mean(), None

    h = lax.scan(body, x @ p["w"] + p["b"], jnp.arange(6.0).reshape(3, 2))[0]
    return h @ p["v"] + h.sum(-1, keepdims=True)


def cond_leak(p: Any, x: Any) -> Any:
    h = x @ p["w"] + p["b"]
    h = lax.cond(x[0, 0] > 0, jax.nn.sigmoid, lambda a: a - a.mean(), h)
    return h @ p["v"] + jnp.cos(h).sum(-1, keepdims=True)


def flatten_norm(p: Any, x: Any) -> Any:
    h = (x @ p["w"] + p["b"]).reshape(-1)
    return two_pass(h) @ p["f"]


def concat_norm(p: Any, x: Any) -> Any:
    h = jnp.concatenate([x @ p["w"] + p["b"], x, jax.nn.sigmoid(x @ p["v"])], -1)
    return two_pass(h) @ p["u"]


def constant_scale(p: Any, x: Any) -> Any:
    """A constant that differs between coordinates, on units that are zero."""
    h = x @ p["w"] + p["b"]
    return (h * jnp.asarray([1.0, 2, 3, 4, 5, 6])) @ p["v"]


def attention(p: Any, x: Any) -> Any:
    heads = lambda n: (x @ p[n]).reshape(-1, 3, 4)  # noqa: E731
    q, k, v = heads("q"), heads("k"), heads("v")
    a = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k) / 2.0)
    y = jnp.einsum("hqk,khd->qhd", a, v).reshape(-1, 12)
    return two_pass(y) @ p["o"]


def vmapped_heads(p: Any, x: Any) -> Any:
    one = jax.vmap(lambda w: jnp.tanh(x @ w), out_axes=1)
    return jnp.einsum("bhd,hdo->bo", one(p["w"]), p["v"])


def segment(p: Any, x: Any) -> Any:
    """Hidden features go through a scatter."""
    h = jnp.tanh(x @ p["w"] + p["b"])
    s = jax.ops.segment_sum(h, jnp.asarray([0, 0, 1]), 2)
    return jnp.tanh(s)[jnp.asarray([0, 1, 1])] @ p["v"]


def scatter_set(p: Any, x: Any) -> Any:
    h = jnp.tanh(x @ p["w"] + p["b"])
    return (h.at[0].set(2.0 * h[1]) @ p["v"]) + h.at[1].max(h[2]).sum(-1, keepdims=True)


def positional_sum(p: Any, x: Any) -> Any:
    """What `vmap(axis_name=...)` leaves of a `psum`."""

    def one(row: Any) -> Any:
        h = row @ p["w"] + p["b"]
        return (h - lax.pmean(h, "i")) @ p["v"]

    return jax.vmap(one, axis_name="i")(x)


def batched_gather(p: Any, x: Any) -> Any:
    """A vmapped take."""
    h = jnp.tanh(x @ p["w"]).reshape(3, 2, 6)
    index = jnp.asarray([[1], [0], [1]])
    return jax.vmap(lambda a, i: a[i])(h, index)[:, 0] @ p["v"]


def whole_row_gather(p: Any, x: Any) -> Any:
    """Indexed in the map, but the slice spans the axis."""
    rows = jax.vmap(lambda i: p["table"][i])(jnp.asarray([0, 2, 1]))
    return (rows * (x @ p["w"])) @ p["v"]


def device_put(p: Any, x: Any) -> Any:
    """A transfer and a barrier hand a value on unchanged."""
    h = jax.device_put(x @ p["w"] + p["b"])
    return lax.optimization_barrier((h, x))[0] @ p["v"]


def complex_rotation(p: Any, x: Any) -> Any:
    """Real and imaginary parts of one rotation."""
    z = lax.complex(x @ p["w"], x @ p["v"]) * jnp.exp(1j * x[:, :1])
    return z.real @ p["u"] + z.imag @ p["u"]


def fourier_over_space(p: Any, x: Any) -> Any:
    h = x @ p["w"] + p["b"]
    return jnp.fft.irfft(jnp.fft.rfft(h, axis=0) * 0.5, n=4, axis=0) @ p["v"]


def constant_chain(p: Any, x: Any) -> Any:
    """Constants through structural primitives stay generators."""
    ramp = jnp.cumsum(jnp.ones(6)) + jnp.sort(-jnp.arange(6.0))[::-1]
    return ((x @ p["w"]) * jnp.flip(ramp)) @ p["v"]


def uneven_group_norm(p: Any, x: Any) -> Any:
    """Group norm over a concatenation that its groups cut through."""
    h = jnp.concatenate([x @ p["w"], x @ p["v"]], -1)  # 12 + 8 in 4 groups of 5
    g = h.reshape(-1, 4, 5)
    g = (g - g.mean(-1, keepdims=True)) / jnp.sqrt(g.var(-1, keepdims=True) + 1e-3)
    return g.reshape(-1, 20) @ p["u"]


def interleaved(p: Any, x: Any) -> Any:
    """Even and odd features, rotated and interleaved again."""
    h = x @ p["w"]
    even, odd = h[..., ::2], h[..., 1::2]
    c, s = jnp.cos(x[:, :1]), jnp.sin(x[:, :1])
    turned = jnp.stack([even * c - odd * s, even * s + odd * c], -1)
    return turned.reshape(h.shape) @ p["v"]


def ragged(p: Any, x: Any) -> Any:
    """Experts of unlike row counts in one ragged contraction."""
    sizes = jnp.asarray([1, 2], jnp.int32)
    h = jnp.tanh(lax.ragged_dot(x @ p["w"], p["e"], sizes))
    return h @ p["v"]


def dead_slice(p: Any, x: Any) -> Any:
    """A slice taken only for its shape."""
    h = x @ p["w"] + p["b"]
    mask = jnp.ones_like(h[..., 0])
    return (h * mask[..., None].astype(h.dtype)) @ p["v"]


def depthwise(p: Any, x: Any) -> Any:
    """Ghosts of a depthwise convolution convolve like the kept channels."""
    numbers = ("NHWC", "HWIO", "NHWC")
    h = jax.nn.sigmoid(x @ p["w"])
    k = lax.conv_general_dilated(
        h, p["k"], (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=6
    )
    return (jax.nn.sigmoid(k).mean((1, 2, 3), keepdims=True) + k) @ p["v"]


def grouped(p: Any, x: Any) -> Any:
    numbers = ("NHWC", "HWIO", "NHWC")
    h = jnp.tanh(x @ p["w"])
    k = lax.conv_general_dilated(
        h, p["k"], (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=3
    )
    return jnp.tanh(k) @ p["v"]


def tile_and_repeat(p: Any, x: Any) -> Any:
    h = x @ p["w"]
    return jnp.tile(h, (1, 2)) @ p["v"] + jnp.repeat(h, 2, 1) @ p["u"]


def rolled(p: Any, x: Any) -> Any:
    """Half a turn: both halves must lose the same coordinates."""
    h = x @ p["w"]
    return (h + jnp.roll(h, 3, -1)) @ p["v"]


def while_loop(p: Any, x: Any) -> Any:
    h = x @ p["w"] + p["b"]
    state = (0, h)
    step = lambda s: (s[0] + 1, jax.nn.sigmoid(s[1]) - s[1].mean())  # noqa: E731
    _, h = lax.fori_loop(0, 3, lambda _, s: step(s), state)
    return h @ p["v"] + h.sum(-1, keepdims=True)
