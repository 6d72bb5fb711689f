"""Weights of a small language model removed with and without calibration data.

    python -m experiments.bench.perplexity [--out FILE] [--resume] [--page FILE]

A causal transformer (two blocks, one byte a token) is trained on the reference manual
that ships with Python (`pydoc_data`); the last tenth of it is held out. Then the
kernels of its blocks lose 50 % or 60 % of their weights, or two of each four along the
inputs, by magnitude in each leaf, by Wanda and by SparseGPT; nothing is trained
afterwards. Everything is repeated for three seeds (weights, batches, calibration). The
perplexity is of a byte, on held-out text. `--page` puts the table into a page, between
the marks `<!-- perplexity -->`.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import files
from experiments.bench.page import put_table
from experiments.bench.timing import machine
from jprune import compress, masks

WIDTH, HEADS, DEPTH, CONTEXT, BATCH, STEPS = 64, 4, 2, 64, 16, 600
SEEDS = (0, 1, 2)
TARGETS: dict[str, dict[str, Any]] = {
    "50 %": {"sparsity": 0.5},
    "60 %": {"sparsity": 0.6},
    "2:4": {"n": 2, "m": 4},
}
MARK = "<!-- perplexity -->"


def text() -> tuple[np.ndarray, np.ndarray]:
    """The bytes to train on, and those held out."""
    joined = "\n".join(topics[name] for name in sorted(topics))
    tokens = np.frombuffer(joined.encode("ascii", "ignore"), np.uint8).astype(np.int32)
    cut = int(0.9 * len(tokens))
    return tokens[:cut], tokens[cut:]


def init(key: jax.Array) -> dict[str, Any]:
    """Random parameters."""
    keys = iter(jax.random.split(key, 4 + 6 * DEPTH))

    def matrix(rows: int, columns: int) -> dict[str, jax.Array]:
        return {"kernel": jax.random.normal(next(keys), (rows, columns)) / rows**0.5}

    def block() -> dict[str, Any]:
        return {
            "norm1": jnp.ones(WIDTH),
            **{name: matrix(WIDTH, WIDTH) for name in ("q", "k", "v", "o")},
            "norm2": jnp.ones(WIDTH),
            "up": matrix(WIDTH, 4 * WIDTH),
            "down": matrix(4 * WIDTH, WIDTH),
        }

    return {
        "embedding": matrix(128, WIDTH)["kernel"],
        "position": matrix(CONTEXT, WIDTH)["kernel"],
        "blocks": [block() for _ in range(DEPTH)],
        "norm": jnp.ones(WIDTH),
        "head": matrix(WIDTH, 128),
    }


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * scale * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def apply(params: Any, ids: jax.Array) -> jax.Array:
    """Logits of the next byte. [batch, length, 128]"""
    x = params["embedding"][ids] + params["position"][: ids.shape[1]]
    causal = jnp.tril(jnp.ones((ids.shape[1], ids.shape[1]), bool))
    for p in params["blocks"]:
        h = _norm(x, p["norm1"])
        q, k, v = (
            (h @ p[name]["kernel"]).reshape(*h.shape[:2], HEADS, -1) for name in "qkv"
        )
        a = jnp.einsum("bthd,bshd->bhts", q, k) / (WIDTH // HEADS) ** 0.5
        a = jax.nn.softmax(jnp.where(causal, a, -1e9))
        h = jnp.einsum("bhts,bshd->bthd", a, v).reshape(x.shape)
        x = x + h @ p["o"]["kernel"]
        h = jax.nn.gelu(_norm(x, p["norm2"]) @ p["up"]["kernel"])
        x = x + h @ p["down"]["kernel"]
    return _norm(x, params["norm"]) @ params["head"]["kernel"]


def loss(params: Any, ids: jax.Array) -> jax.Array:
    """Mean cross-entropy of the next byte."""
    logits = apply(params, ids[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()


def windows(rng: np.random.Generator, tokens: np.ndarray, size: int) -> jax.Array:
    """Random pieces of the text. [size, CONTEXT + 1]"""
    starts = rng.integers(0, len(tokens) - CONTEXT - 1, size)
    return jnp.asarray(tokens[starts[:, None] + np.arange(CONTEXT + 1)])


def train(seed: int, tokens: np.ndarray, steps: int) -> Any:
    """A trained dense model."""
    tx = optax.adamw(optax.cosine_decay_schedule(3e-3, steps))

    @jax.jit
    def step(params: Any, state: Any, ids: jax.Array) -> tuple[Any, Any]:
        updates, state = tx.update(jax.grad(loss)(params, ids), state, params)
        return optax.apply_updates(params, updates), state

    params, rng = init(jax.random.key(seed)), np.random.default_rng(seed)
    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state, windows(rng, tokens, BATCH))
    return params


def by_magnitude(params: Any, scope: Any, sparsity: float = 0.0, **pattern: int) -> Any:
    """The smallest of each leaf set to zero."""
    if pattern:
        mask = masks.n_of_m(params, pattern["n"], pattern["m"], scope=scope)
    else:
        mask = masks.unstructured(params, sparsity, ranking="leaf", scope=scope)
    return masks.apply(mask, params)


def measured(seed: int, steps: int = STEPS) -> dict[str, float]:
    """The perplexities of one seed, by method and target."""
    train_tokens, test_tokens = text()
    params = train(seed, train_tokens, steps)
    rng = np.random.default_rng(1000 + seed)
    calibration = [(windows(rng, train_tokens, BATCH)[:, :-1],) for _ in range(8)]
    held_out = windows(np.random.default_rng(7), test_tokens, 256)
    scope = masks.prunable(params, include="blocks/.*kernel")
    value = jax.jit(loss)

    def perplexity(pruned: Any) -> float:
        return float(np.exp(value(pruned, held_out)))

    found = {"dense": perplexity(params)}
    methods: dict[str, Callable[..., Any]] = {
        "magnitude": lambda **target: by_magnitude(params, scope, **target),
        "Wanda": lambda **target: (
            compress.wanda(apply, params, calibration, scope=scope, **target).params
        ),
        "SparseGPT": lambda **target: (
            compress.sparse_gpt(
                apply, params, calibration, scope=scope, **target
            ).params
        ),
    }
    for label, target in TARGETS.items():
        for method, prune in methods.items():
            found[f"{method}, {label}"] = perplexity(prune(**target))
    return found


def table(result: dict[str, Any]) -> str:
    """The figures as a table: mean and spread (largest less smallest) of the seeds."""
    rows = result["rows"].values()

    def cell(label: str) -> str:
        values = [row[label] for row in rows]
        return f"{np.mean(values):.2f} ({np.ptp(values):.2f})"

    names = list(TARGETS)
    lines = [
        f"| perplexity of a byte | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
        f"| dense | {' | '.join([cell('dense')] * len(names))} |",
    ]
    lines += [
        f"| {m} | {' | '.join(cell(f'{m}, {name}') for name in names)} |"
        for m in ("magnitude", "Wanda", "SparseGPT")
    ]
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the JSON here")
    parser.add_argument("--resume", action="store_true", help="seeds in --out are done")
    parser.add_argument("--page", type=Path, help="put the table into this page")
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    result: dict[str, Any] = {"rows": {}}
    if args.resume and args.out and args.out.exists():
        result = json.loads(args.out.read_text())
    for seed in SEEDS:
        if str(seed) not in result["rows"]:
            result["rows"][str(seed)] = measured(seed, args.steps)
            result |= {
                "machine": machine(),
                "command": "python -m experiments.bench.perplexity",
                "steps": args.steps,
            }
            print(seed, result["rows"][str(seed)], flush=True)
            if args.out:
                files.write_json(args.out, result)
    print(table(result))
    if args.page:
        put_table(args.page, table(result), MARK)


if __name__ == "__main__":
    main()
