"""Pre-norm transformers: ViT (image classifier) and GPT-2 (tied language model).

Each comes with Flax's attention module, whose kernels are `(d, heads, head_dim)`, or
with the fused form most checkpoints have: one `(d, 3 d)` kernel reshaped to
`(3, heads, head_dim)`.

References:
  Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021 (Eq. 1-4).
  Radford et al., Language Models are Unsupervised Multitask Learners, 2019.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp


class Attention(nn.Module):
    """Multi-head self-attention; one kernel for q, k and v when `fused`."""

    heads: int
    fused: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, mask=None, train: bool = False) -> jax.Array:
        if not self.fused:
            module = nn.MultiHeadDotProductAttention(
                self.heads, dropout_rate=self.dropout, deterministic=not train
            )
            return module(x, mask=mask)
        batch, tokens, width = x.shape
        qkv = nn.Dense(3 * width)(x)
        qkv = qkv.reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = jnp.unstack(qkv, axis=2)
        out = nn.dot_product_attention(q, k, v, mask=mask)
        return nn.Dense(width)(out.reshape(batch, tokens, width))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    heads: int
    hidden: int
    fused: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, mask=None, train: bool = False) -> jax.Array:
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        y = Attention(self.heads, self.fused, self.dropout)(
            nn.LayerNorm()(x), mask, train
        )
        x = x + drop()(y)
        y = nn.gelu(nn.Dense(self.hidden)(nn.LayerNorm()(x)))
        return x + drop()(nn.Dense(x.shape[-1])(y))


class ViT(nn.Module):
    """Patches, a class token, learned positions, blocks, a linear head.

    Attributes:
      layers, width, heads, hidden: number of blocks, residual width, heads, MLP width.
      patch: side of a patch in pixels.
      classes: number of logits.
      fused: one kernel for q, k and v.
      dropout: rate on attention and on both branches.
    """

    layers: int = 12
    width: int = 768
    heads: int = 12
    hidden: int = 3072
    patch: int = 16
    classes: int = 1000
    fused: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        patch = (self.patch, self.patch)
        x = nn.Conv(self.width, patch, patch)(x)
        x = x.reshape(x.shape[0], -1, self.width)
        normal = nn.initializers.normal(0.02)
        token = self.param("token", normal, (1, 1, self.width))
        token = jnp.broadcast_to(token, (x.shape[0], 1, self.width)).astype(x.dtype)
        x = jnp.concatenate([token, x], axis=1)
        x = x + self.param("positions", normal, (1, *x.shape[1:]))
        for _ in range(self.layers):
            x = Block(self.heads, self.hidden, self.fused, self.dropout)(x, None, train)
        return nn.Dense(self.classes)(nn.LayerNorm()(x)[:, 0])


class GPT(nn.Module):
    """Token and position tables, causal blocks, logits through the token table.

    Attributes:
      layers, width, heads, hidden: as in `ViT`.
      vocabulary: number of tokens.
      context: number of positions.
      fused: one kernel for q, k and v.
      dropout: rate on attention and on both branches.
    """

    layers: int = 12
    width: int = 768
    heads: int = 12
    hidden: int = 3072
    vocabulary: int = 50257
    context: int = 1024
    fused: bool = True
    dropout: float = 0.0

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        table = nn.Embed(self.vocabulary, self.width, name="wte")
        positions = nn.Embed(self.context, self.width, name="wpe")
        x = table(tokens) + positions(jnp.arange(tokens.shape[1]))[None]
        mask = nn.make_causal_mask(tokens, dtype=bool)
        for _ in range(self.layers):
            x = Block(self.heads, self.hidden, self.fused, self.dropout)(x, mask, train)
        return table.attend(nn.LayerNorm()(x))


vit_b16 = ViT
gpt2_small = GPT
