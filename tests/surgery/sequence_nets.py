"""Transformers and recurrent networks, with the minima derived beside each."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.models.transformer import GPT, ViT
from tests.surgery.flax_nets import linen, vectors
from tests.surgery.nets import Case, Net, fill, images, tokens

_vit = partial(
    ViT, layers=2, width=12, heads=3, hidden=20, patch=4, classes=5, dropout=0.1
)
_gpt = partial(GPT, layers=2, width=12, heads=3, hidden=20, vocabulary=13, context=8)
_TEXT = partial(tokens, length=6, vocabulary=13)

# The residual width; per layer the heads (shared by q, k, v and the output), the head
# dimension of q and k, that of v, and the hidden width.
VIT = Net("ViT (Flax attention)", linen(_vit(), partial(images, side=8)), 9, 5, True)

# One kernel for q, k, v has one head dimension: three groups per layer.
VIT_FUSED = Net(
    "ViT (fused qkv)",
    linen(_vit(fused=True), partial(images, side=8)),
    7,
    5,
    True,
)

# As ViT. The logits go through the token table, whose rows are indexed: no bias, and
# the residual width reaches every parameter.
GPT_FUSED = Net("GPT (fused, tied embedding)", linen(_gpt(), _TEXT), 7, 0)
GPT_FLAX = Net(
    "GPT (Flax attention)",
    linen(_gpt(fused=False, dropout=0.1), _TEXT),
    9,
    0,
    True,
)


class Recurrent(nn.Module):
    """One recurrent layer over time, a dense layer on its last state."""

    cell: Any

    @nn.compact
    def __call__(self, x):
        cell = self.cell(8)
        carry = cell.initialize_carry(jax.random.key(0), x[:, 0].shape)
        carry = jax.tree.map(lambda leaf: leaf.astype(x.dtype), carry)
        hidden: Any = nn.RNN(cell)(x, initial_carry=carry)
        return nn.Dense(3)(hidden[:, -1])


def sequences(batch: int) -> np.ndarray:
    """Random sequences. [batch, 5, 4]"""
    return vectors(batch * 5, 4).reshape(batch, 5, 4)


# The hidden size, on every kernel of the cell.
GRU = Net("GRU", linen(Recurrent(nn.GRUCell), sequences), 1, 3)
LSTM = Net("LSTM", linen(Recurrent(nn.OptimizedLSTMCell), sequences), 1, 3)

LAYERS, KV_HEADS, SHARE, HEAD, WIDTH, HIDDEN, VOCABULARY = 2, 2, 3, 8, 16, 24, 11


def rotate(x, interleaved: bool):
    """Rotary positions on the last axis. [batch, time, heads, head_dim]

    The rotated pairs are the two halves of the axis, or its even and odd places.
    """
    half = x.shape[-1] // 2
    rates = 10.0 ** (-4 * jnp.arange(half, dtype=x.dtype) / half)
    places = jnp.arange(x.shape[1], dtype=x.dtype)
    angle = (places[:, None] * rates[None])[None, :, None]  # [1, time, 1, half]
    if interleaved:
        first, second = x[..., ::2], x[..., 1::2]
    else:
        first, second = jnp.split(x, 2, axis=-1)
    turned = (
        first * jnp.cos(angle) - second * jnp.sin(angle),
        first * jnp.sin(angle) + second * jnp.cos(angle),
    )
    if interleaved:
        return jnp.stack(turned, -1).reshape(x.shape)
    return jnp.concatenate(turned, -1)


def rms_norm(x, scale):
    """x over its root mean square along the last axis."""
    mean = jnp.mean(jnp.square(x), -1, keepdims=True)
    return x * jax.lax.rsqrt(mean + 1e-6) * scale[None, None]


def grouped_query_gpt(variables, text, interleaved: bool = False):
    """A causal decoder: grouped queries, rotary positions, gated MLP, RMS norms."""
    x = variables["table"][text]
    batch, time = text.shape
    causal = jnp.tril(jnp.ones((time, time), bool))[None, None]
    for layer in variables["layers"]:
        y = rms_norm(x, layer["norm_1"])
        q = (y @ layer["query"]).reshape(batch, time, KV_HEADS * SHARE, HEAD)
        k = (y @ layer["key"]).reshape(batch, time, KV_HEADS, HEAD)
        v = (y @ layer["value"]).reshape(batch, time, KV_HEADS, HEAD)
        q, k = rotate(q, interleaved), rotate(k, interleaved)
        k, v = jnp.repeat(k, SHARE, 2), jnp.repeat(v, SHARE, 2)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / HEAD**0.5
        weights = jax.nn.softmax(jnp.where(causal, logits, -1e9), -1)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, time, -1)
        x = x + y @ layer["out"]
        y = rms_norm(x, layer["norm_2"])
        y = jax.nn.silu(y @ layer["gate"]) * (y @ layer["up"])
        x = x + y @ layer["down"]
    return rms_norm(x, variables["norm"]) @ variables["logits"]


def _grouped_query(interleaved: bool, train: bool = False, batch: int = 2) -> Case:
    del train
    array = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    layer = {
        "query": array((WIDTH, KV_HEADS * SHARE * HEAD)),
        "key": array((WIDTH, KV_HEADS * HEAD)),
        "value": array((WIDTH, KV_HEADS * HEAD)),
        "out": array((KV_HEADS * SHARE * HEAD, WIDTH)),
        "gate": array((WIDTH, HIDDEN)),
        "up": array((WIDTH, HIDDEN)),
        "down": array((HIDDEN, WIDTH)),
        "norm_1": array((WIDTH,)),
        "norm_2": array((WIDTH,)),
    }
    shapes = {
        "table": array((VOCABULARY, WIDTH)),
        "layers": [layer] * LAYERS,
        "norm": array((WIDTH,)),
        "logits": array((WIDTH, VOCABULARY)),
    }
    apply = partial(grouped_query_gpt, interleaved=interleaved)
    return Case(apply, fill(shapes), (tokens(batch, 5, VOCABULARY),))


# The residual width; per layer the key-value heads (with all queries that share one),
# the queries of one key-value head, the rotated pairs, the head dimension of v, and the
# hidden width (gate and up). Every parameter meets the residual width.
GQA_HALVES = Net(
    "GPT (grouped queries, RoPE by halves)",
    partial(_grouped_query, False),
    1 + 5 * LAYERS,
    0,
)
GQA_PAIRS = Net(
    "GPT (grouped queries, RoPE interleaved)",
    partial(_grouped_query, True),
    1 + 5 * LAYERS,
    0,
)

SEQUENCE_NETS = (
    VIT,
    VIT_FUSED,
    GPT_FUSED,
    GPT_FLAX,
    GQA_HALVES,
    GQA_PAIRS,
    GRU,
    LSTM,
)
