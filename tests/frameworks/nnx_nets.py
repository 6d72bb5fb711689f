"""Networks in Flax NNX, written as public model collections write them."""

import flax.nnx as nnx
import jax
import jax.numpy as jnp


class ConvNet(nnx.Module):
    """Convolutions, batch norm, dropout; statistics and counters change in a call."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dense = nnx.Linear(8, 12, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(12, 4, rngs=rngs)

    def features(self, x):
        return nnx.relu(self.norm(self.conv(x))).mean((1, 2))

    def __call__(self, x, *, scale: float = 1.0):
        h = nnx.relu(self.dense(self.features(x)))
        return scale * self.head(self.drop(h))

    def loss(self, x):
        """Another method, of one number."""
        return jnp.mean(self(x) ** 2)


class Attention(nnx.Module):
    """Self-attention whose head count is a static attribute."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x):
        batch, length, width = x.shape
        split = (batch, length, 3, self.heads, width // self.heads)
        q, k, v = jnp.moveaxis(self.qkv(x).reshape(split), 2, 0)
        return self.out(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))


class Encoder(nnx.Module):
    """A pre-norm block of a vision transformer."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = Attention(width, heads, rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.mlp = nnx.Sequential(
            nnx.Linear(width, 2 * width, rngs=rngs),
            nnx.gelu,
            nnx.Linear(2 * width, width, rngs=rngs),
        )

    def __call__(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nnx.Module):
    """Patches, a class token, learned positions, two blocks, a head."""

    def __init__(self, rngs: nnx.Rngs, width: int = 16, heads: int = 4):
        self.patches = nnx.Conv(3, width, (4, 4), (4, 4), rngs=rngs)
        self.token = nnx.Param(jax.random.normal(rngs.params(), (1, 1, width)))
        self.position = nnx.Param(jax.random.normal(rngs.params(), (1, 5, width)))
        self.blocks = nnx.List([Encoder(width, heads, rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, 4, rngs=rngs)

    def __call__(self, images):
        x = self.patches(images)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = jnp.broadcast_to(self.token[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([token, x], 1) + self.position[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


class ConvNeXtBlock(nnx.Module):
    """Depthwise convolution, norm, inverted bottleneck, a learned scale."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.depthwise = nnx.Conv(
            width, width, (3, 3), feature_group_count=width, rngs=rngs
        )
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)
        self.scale = nnx.Param(0.5 * jnp.ones(width))

    def __call__(self, x):
        y = self.norm(self.depthwise(x))
        return x + self.scale[...] * self.down(nnx.gelu(self.up(y)))


class ConvNeXt(nnx.Module):
    """A stem, two stages of one block with a strided convolution between, a head."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 8, (2, 2), (2, 2), rngs=rngs)
        self.first = ConvNeXtBlock(8, rngs)
        self.down = nnx.Conv(8, 12, (2, 2), (2, 2), rngs=rngs)
        self.second = ConvNeXtBlock(12, rngs)
        self.norm = nnx.LayerNorm(12, rngs=rngs)
        self.head = nnx.Linear(12, 4, rngs=rngs)

    def __call__(self, x):
        x = self.second(self.down(self.first(self.stem(x))))
        return self.head(self.norm(x.mean((1, 2))))


def rotate(x, base: float = 1e4):
    """Rotary positions over the last axis of `x` [batch, length, heads, width]."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] / base ** (jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:]
    cos, sin = cos[None], sin[None]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


class QwenBlock(nnx.Module):
    """Grouped queries with normed q and k, rotary positions, a gated feed-forward."""

    def __init__(self, width, heads, kv_heads, head_dim, hidden, rngs):
        def linear(a, b):
            return nnx.Linear(a, b, use_bias=False, rngs=rngs)

        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.norm1 = nnx.RMSNorm(width, rngs=rngs)
        self.q = linear(width, heads * head_dim)
        self.k = linear(width, kv_heads * head_dim)
        self.v = linear(width, kv_heads * head_dim)
        self.o = linear(heads * head_dim, width)
        self.q_norm = nnx.RMSNorm(head_dim, rngs=rngs)
        self.k_norm = nnx.RMSNorm(head_dim, rngs=rngs)
        self.norm2 = nnx.RMSNorm(width, rngs=rngs)
        self.gate, self.up = linear(width, hidden), linear(width, hidden)
        self.down = linear(hidden, width)

    def __call__(self, x):
        lead, y = x.shape[:2], self.norm1(x)
        q = self.q(y).reshape(*lead, self.heads, self.head_dim)
        k = self.k(y).reshape(*lead, self.kv_heads, self.head_dim)
        v = self.v(y).reshape(*lead, self.kv_heads, self.head_dim)
        q, k = rotate(self.q_norm(q)), rotate(self.k_norm(k))
        h = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(h.reshape(*lead, -1))
        y = self.norm2(x)
        return x + self.down(nnx.silu(self.gate(y)) * self.up(y))


class Qwen(nnx.Module):
    """A small causal language model whose output table is its embedding."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(11, 16, rngs=rngs)
        self.blocks = nnx.List([QwenBlock(16, 4, 2, 8, 24, rngs) for _ in range(2)])
        self.norm = nnx.RMSNorm(16, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.embed.attend(self.norm(x))
