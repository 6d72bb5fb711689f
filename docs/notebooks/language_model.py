# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A small language model: Wanda, SparseGPT, and a compact model
#
# We train a small causal transformer on text that ships with Python (its license and the docstrings of the standard
# library), one byte a token. Then we remove half of its weights with calibration data, and half of its
# feed-forward units and heads for good.

# %%
# %matplotlib inline
import inspect
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from jprune import analysis, compress, masks, surgery

names = sorted(sys.stdlib_module_names)


def documentation():
    """Docstrings of modules of the standard library that are already loaded."""
    for name in names:
        module = sys.modules.get(name)
        if module is None:
            continue
        yield module.__doc__ or ""
        for _, value in inspect.getmembers(module, callable):
            yield inspect.getdoc(value) or ""


text = "\n".join(dict.fromkeys(documentation())).encode("ascii", "ignore")
tokens = np.frombuffer(text, np.uint8).astype(np.int32)
cut = int(0.9 * len(tokens))
train_tokens, test_tokens = tokens[:cut], tokens[cut:]
print(f"{len(tokens):,} bytes of text")

# %% [markdown]
# ## The model: plain functions of a pytree

# %%
WIDTH, HEADS, DEPTH, CONTEXT = 64, 4, 2, 64


def init(key):
    def dense(*shape, fan):
        nonlocal key
        key, k = jax.random.split(key)
        return jax.random.normal(k, shape) / np.sqrt(fan)

    block = lambda: {
        "norm1": jnp.ones(WIDTH),
        "qkv": {"kernel": dense(WIDTH, 3, HEADS, WIDTH // HEADS, fan=WIDTH)},
        "proj": {"kernel": dense(HEADS, WIDTH // HEADS, WIDTH, fan=WIDTH)},
        "norm2": jnp.ones(WIDTH),
        "up": {"kernel": dense(WIDTH, 4 * WIDTH, fan=WIDTH)},
        "down": {"kernel": dense(4 * WIDTH, WIDTH, fan=4 * WIDTH)},
    }
    return {
        "embedding": dense(128, WIDTH, fan=WIDTH),
        "position": dense(CONTEXT, WIDTH, fan=WIDTH),
        "blocks": [block() for _ in range(DEPTH)],
        "norm": jnp.ones(WIDTH),
        "head": {"kernel": dense(WIDTH, 128, fan=WIDTH)},
    }


def rms_norm(x, scale):
    return x * scale * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def apply(params, ids):
    x = params["embedding"][ids] + params["position"][: ids.shape[1]]
    causal = jnp.tril(jnp.ones((ids.shape[1], ids.shape[1]), bool))
    for block in params["blocks"]:
        h = rms_norm(x, block["norm1"])
        qkv = jnp.einsum("btd,dchk->cbhtk", h, block["qkv"]["kernel"])
        weights = jnp.einsum("bhtk,bhsk->bhts", qkv[0], qkv[1]) / np.sqrt(
            WIDTH // HEADS
        )
        weights = jax.nn.softmax(jnp.where(causal, weights, -1e9))
        h = jnp.einsum("bhts,bhsk->bthk", weights, qkv[2])
        x = x + jnp.einsum("bthk,hkd->btd", h, block["proj"]["kernel"])
        h = jax.nn.gelu(rms_norm(x, block["norm2"]) @ block["up"]["kernel"])
        x = x + h @ block["down"]["kernel"]
    return rms_norm(x, params["norm"]) @ params["head"]["kernel"]


def batch(rng, source, size=16):
    starts = rng.integers(0, len(source) - CONTEXT - 1, size)
    return jnp.asarray(source[starts[:, None] + np.arange(CONTEXT + 1)])


def loss(params, ids):
    logits = apply(params, ids[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()


# %%
def train(params, loss, steps, rate):
    tx = optax.adamw(optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def step(params, state, ids):
        value, grads = jax.value_and_grad(loss)(params, ids)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, rng = tx.init(params), np.random.default_rng(1)
    for _ in tqdm(range(steps), mininterval=2):
        params, state, _ = step(params, state, batch(rng, train_tokens))
    return params


held_out = batch(np.random.default_rng(2), test_tokens, 64)


def perplexity(loss, params):
    return float(jnp.exp(jax.jit(loss)(params, held_out)))


params = train(init(jax.random.key(0)), loss, 700, 3e-3)
dense = perplexity(loss, params)
print(f"perplexity of a byte: {dense:.3f}")

# %% [markdown]
# ## Single weights, with calibration data
#
# Magnitude looks at weights alone. Wanda multiplies by the norm of the input, and compares within each output. SparseGPT also
# mends the weights that stay. All work layer by layer, each on the inputs behind the layers pruned before.

# %%
calibration = [(batch(np.random.default_rng(3), train_tokens)[:, :-1],)]
scope = masks.prunable(params, include="blocks/.*kernel")
once = masks.unstructured(params, 0.5, ranking="leaf", scope=scope)
found = {
    "dense": params,
    "magnitude": masks.apply(once, params),
    "Wanda": compress.wanda(
        apply, params, calibration, sparsity=0.5, scope=scope
    ).params,
    "SparseGPT": compress.sparse_gpt(
        apply, params, calibration, sparsity=0.5, scope=scope
    ).params,
}
table = {name: perplexity(loss, p) for name, p in found.items()}
for name, value in table.items():
    print(f"{name:10s} {value:.3f}")
assert table["SparseGPT"] < table["magnitude"]

# %% [markdown]
# ## Units and heads, for good
#
# The same functions, smaller: half of the FLOPs of the blocks, then a short training.

# %%
deps = surgery.groups(apply)(params, calibration[0][0][:1])
print(deps.table())

# %%
plan = surgery.select(deps, deps.scores(params), flops=0.6, round_to=4)
small = surgery.shrink(apply, plan)
compact = plan.pack(params)


def small_loss(params, ids):
    logits = small(params, ids[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()


after = perplexity(small_loss, compact)
compact = train(compact, small_loss, 200, 1e-3)
tuned = perplexity(small_loss, compact)
print(f"dense {dense:.3f}, cut {after:.3f}, trained on {tuned:.3f}")
assert tuned < after
analysis.plot_widths(deps, plan)

# %% [markdown]
# ## It writes
#
# The compact model generates as the dense one does.


# %%
@jax.jit
def next_token(params, ids):
    return small(params, ids)[:, -1].argmax(-1)


line = jnp.asarray(np.frombuffer(b"Return the ", np.uint8).astype(np.int32))[None]
for _ in range(30):
    line = jnp.concatenate([line, next_token(compact, line)[:, None]], axis=1)
print(bytes(np.asarray(line[0], np.uint8)).decode())
