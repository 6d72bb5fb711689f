"""Language models, small: one decoder with the parts that real ones differ in.

Written for these tests, in plain JAX, with and without a cache. A `Form` has grouped or
multiple queries, rotary positions in both forms, ALiBi, T5's relative biases, a sliding
window, gated or plain or expert feed-forward layers, a head tied to the embedding or
not; `mamba` is a selective state space model. The cache of a window is a ring.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.surgery.sequence_nets import rms_norm

LAYERS, WIDTH, HEAD, HIDDEN, VOCABULARY, EXPERTS, BUCKETS = 2, 12, 4, 10, 11, 5, 6


class Form(NamedTuple):
    """What a decoder is made of.

    Attributes:
      heads: number of query heads.
      kv: number of key and value heads.
      rotary: None, or how pairs lie: "halves" or "pairs".
      bias: None, "alibi" or "t5".
      window: how many positions a query sees, or None for all.
      mlp: "plain", "gated", "soft" (all experts, weighted), "top" (the best two, by a
        mask over all) or "gather" (the weights of the best two, looked up).
      tied: whether the logits read the embedding.
    """

    heads: int = 4
    kv: int = 4
    rotary: str | None = None
    bias: str | None = None
    window: int | None = None
    mlp: str = "plain"
    tied: bool = False


def parameters(form: Form, seed: int = 0) -> Any:
    """Random float64 parameters."""
    rng = np.random.default_rng(seed)

    def array(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape) / np.sqrt(shape[-2] if shape[1:] else 2)

    def layer() -> dict[str, np.ndarray]:
        out = {
            "norm_1": 1 + array(WIDTH),
            "norm_2": 1 + array(WIDTH),
            "query": array(WIDTH, form.heads, HEAD),
            "key": array(WIDTH, form.kv, HEAD),
            "value": array(WIDTH, form.kv, HEAD),
            "out": array(form.heads, HEAD, WIDTH),
        }
        if form.bias == "t5":
            out["bias"] = array(BUCKETS, form.heads)
        experts = () if form.mlp in ("plain", "gated") else (EXPERTS,)
        if experts:
            out["router"] = array(WIDTH, EXPERTS)
        if form.mlp == "gated":
            out["gate"] = array(WIDTH, HIDDEN)
        up, down = array(*experts, WIDTH, HIDDEN), array(*experts, HIDDEN, WIDTH)
        return {**out, "up": up, "down": down}

    out = {
        "embedding": array(VOCABULARY, WIDTH),
        "layers": [layer() for _ in range(LAYERS)],
        "norm": 1 + array(WIDTH),
    }
    return out if form.tied else {**out, "head": array(WIDTH, VOCABULARY)}


def empty_cache(form: Form, batch: int, length: int) -> Any:
    """A cache without entries: keys, values and the position of each place."""
    length = length if form.window is None else form.window
    shape = (batch, length, form.kv, HEAD)
    one = {"key": np.zeros(shape), "value": np.zeros(shape)}
    layers = [{k: v.copy() for k, v in one.items()} for _ in range(LAYERS)]
    return {"layers": layers, "places": np.full(length, -1)}


def rotate(x: Any, places: Any, form: str) -> Any:
    """Rotary positions. [batch, time, heads, head dimension]"""
    half = x.shape[-1] // 2
    angle = places[:, None] * 10.0 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
    halves = form == "halves"
    a, b = jnp.split(x, 2, -1) if halves else (x[..., ::2], x[..., 1::2])
    turned = a * cos - b * sin, a * sin + b * cos
    if halves:
        return jnp.concatenate(turned, -1)
    return jnp.stack(turned, -1).reshape(x.shape)


def _bias(p: Any, form: Form, past: Any) -> Any:
    """What is added to the scores. [heads, queries, keys] of [queries, keys]"""
    if form.bias == "alibi":
        slopes = 2.0 ** -(1 + jnp.arange(form.heads))
        return -slopes[:, None, None] * past
    buckets = jnp.clip(past, 0, BUCKETS - 1)
    return jnp.moveaxis(p["bias"][buckets], -1, 0)


def attention(p: Any, form: Form, x: Any, cache: Any, at: Any, seen: Any) -> Any:
    """Causal attention; `cache` is None or what `empty_cache` gives for a layer."""
    q = jnp.einsum("btd,dhk->bthk", x, p["query"])
    k = jnp.einsum("btd,dhk->bthk", x, p["key"])
    v = jnp.einsum("btd,dhk->bthk", x, p["value"])
    if form.rotary:
        q, k = rotate(q, at, form.rotary), rotate(k, at, form.rotary)
    if cache is not None and form.window is None:
        start = (0, at[0], 0, 0)
        k = jax.lax.dynamic_update_slice(cache["key"], k, start)
        v = jax.lax.dynamic_update_slice(cache["value"], v, start)
    elif cache is not None:
        ring = at % form.window
        k = cache["key"].at[:, ring].set(k)
        v = cache["value"].at[:, ring].set(v)
    grouped = q.reshape(*q.shape[:2], form.kv, form.heads // form.kv, q.shape[-1])
    scores = jnp.einsum("btgrk,bsgk->bgrts", grouped, k) / HEAD**0.5
    past = at[:, None] - seen[None]  # [queries, keys]
    if form.bias:
        extra = _bias(p, form, past)
        extra = extra.reshape(form.kv, form.heads // form.kv, *past.shape)
        scores = scores + extra[None]
    visible = (past >= 0) & (seen >= 0)[None]
    if form.window is not None:
        visible &= past < form.window
    weights = jax.nn.softmax(jnp.where(visible, scores, -1e9), -1)
    y = jnp.einsum("bgrts,bsgk->btgrk", weights, v)
    y = y.reshape(*x.shape[:2], form.heads, HEAD)
    return jnp.einsum("bthk,hkd->btd", y, p["out"]), {"key": k, "value": v}


def feed_forward(p: Any, form: Form, x: Any) -> Any:
    """A plain or gated layer, or one of experts."""
    if form.mlp == "plain":
        return jax.nn.gelu(x @ p["up"]) @ p["down"]
    if form.mlp == "gated":
        return (jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]
    logits = x @ p["router"]
    if form.mlp == "gather":
        best, which = jax.lax.top_k(logits, 2)
        h = jax.nn.gelu(jnp.einsum("btd,btedf->btef", x, p["up"][which]))
        y = jnp.einsum("btef,btefd->bted", h, p["down"][which])
        return jnp.einsum("bte,bted->btd", jax.nn.softmax(best, -1), y)
    if form.mlp == "top":
        best, which = jax.lax.top_k(logits, 2)
        chosen = jax.nn.one_hot(which, EXPERTS)
        gates = jnp.einsum("btk,btke->bte", jax.nn.softmax(best, -1), chosen)
    else:
        gates = jax.nn.softmax(logits, -1)
    h = jax.nn.gelu(jnp.einsum("btd,edf->btef", x, p["up"]))
    return jnp.einsum("btef,efd,bte->btd", h, p["down"], gates)


def decoder(p: Any, ids: Any, cache: Any = None, start: Any = 0, *, form: Form) -> Any:
    """Logits; with a cache, the logits and the cache.

    Args:
      p: `parameters(form)`.
      ids: [batch, time].
      cache: `empty_cache(...)`, or what an earlier call returned.
      start: position of the first of `ids`.
      form: what the decoder is made of.
    """
    at = start + jnp.arange(ids.shape[1])
    seen, layers = at, [None] * LAYERS
    if cache is not None:
        layers = cache["layers"]
        slot = at if form.window is None else at % form.window
        seen = jnp.asarray(cache["places"]).at[slot].set(at)
    x, new = p["embedding"][ids], []
    for layer, held in zip(p["layers"], layers, strict=True):
        h = rms_norm(x, layer["norm_1"])
        y, kept = attention(layer, form, h, held, at, seen)
        x = x + y
        x = x + feed_forward(layer, form, rms_norm(x, layer["norm_2"]))
        new.append(kept)
    x = rms_norm(x, p["norm"])
    logits = x @ p["embedding"].T if form.tied else x @ p["head"]
    return logits if cache is None else (logits, {"layers": new, "places": seen})


STATE, RANK, TAPS = 3, 2, 3


def mamba_parameters(seed: int = 0) -> Any:
    """Random parameters of `mamba`."""
    rng = np.random.default_rng(seed)

    def array(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape) / np.sqrt(shape[0])

    def layer() -> dict[str, np.ndarray]:
        return {
            "norm": 1 + array(WIDTH),
            "in": array(WIDTH, HIDDEN),
            "gate": array(WIDTH, HIDDEN),
            "conv": array(TAPS, HIDDEN),
            "b": array(HIDDEN, STATE),
            "c": array(HIDDEN, STATE),
            "dt_down": array(HIDDEN, RANK),
            "dt_up": array(RANK, HIDDEN),
            "dt_bias": array(HIDDEN),
            "a": array(HIDDEN, STATE),
            "skip": array(HIDDEN),
            "out": array(HIDDEN, WIDTH),
        }

    return {
        "embedding": array(VOCABULARY, WIDTH),
        "layers": [layer() for _ in range(LAYERS)],
        "norm": 1 + array(WIDTH),
    }


def empty_state(batch: int) -> Any:
    """The state of `mamba` before the first token."""
    conv, ssm = np.zeros((batch, TAPS - 1, HIDDEN)), np.zeros((batch, HIDDEN, STATE))
    return [{"conv": conv.copy(), "ssm": ssm.copy()} for _ in range(LAYERS)]


def _selective(p: Any, x: Any, state: Any) -> Any:
    """A selective state space layer over time, and the state behind it."""
    gate, x = x @ p["gate"], x @ p["in"]
    before = jnp.concatenate([state["conv"], x], 1)
    time = x.shape[1]
    taps = [before[:, i : i + time] * p["conv"][i] for i in range(TAPS)]
    x = jax.nn.silu(sum(taps))
    step = jax.nn.softplus(x @ p["dt_down"] @ p["dt_up"] + p["dt_bias"])
    b, c = x @ p["b"], x @ p["c"]

    def one(h: Any, now: Any) -> Any:
        x, step, b, c = now
        decay = jnp.exp(-jnp.exp(p["a"])[None] * step[..., None])
        h = decay * h + (step * x)[..., None] * b[:, None]
        return h, jnp.einsum("bds,bs->bd", h, c)

    over_time = [jnp.moveaxis(v, 1, 0) for v in (x, step, b, c)]
    h, y = jax.lax.scan(one, state["ssm"], tuple(over_time))
    y = (jnp.moveaxis(y, 0, 1) + x * p["skip"]) * jax.nn.silu(gate)
    return y @ p["out"], {"conv": before[:, time:], "ssm": h}


def mamba(p: Any, ids: Any, state: Any = None) -> Any:
    """Logits; with a state, the logits and the state."""
    layers = empty_state(ids.shape[0]) if state is None else state
    x, new = p["embedding"][ids], []
    for layer, held in zip(p["layers"], layers, strict=True):
        y, kept = _selective(layer, rms_norm(x, layer["norm"]), held)
        x = x + y
        new.append(kept)
    logits = rms_norm(x, p["norm"]) @ p["embedding"].T
    return logits if state is None else (logits, new)
