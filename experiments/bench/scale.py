"""Surgery of models too large to allocate: the shapes of Llama-3-8B and 70B.

    python -m experiments.bench.scale [--out FILE] [--only NAME] [--page FILE]

Each network is a plain function of parameters that exist as shapes only
(`jax.ShapeDtypeStruct`), its layers one after another or in a scan. One process for
each takes the groups, solves for half of the FLOPs with scores given by hand (the
certificate is part of it), packs shapes, and traces the compact function; it reports
processor seconds, the share above the bare trace, and the peak of its memory (Python
and JAX alone are in `start_mb`).
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import files
from experiments.bench.page import put_table
from experiments.bench.timing import machine
from jprune import surgery


class Shape(NamedTuple):
    """The sizes of a Llama."""

    layers: int
    width: int
    heads: int
    kv: int
    ff: int
    vocabulary: int = 128_256


SHAPES = {
    "Llama-3-8B": Shape(32, 4096, 32, 8, 14_336),
    "Llama-3-70B": Shape(80, 8192, 64, 8, 28_672),
}
FORMS = ("unrolled", "scanned")
HEAD = 128
LENGTH = 128
MARK = "<!-- scale -->"


def shapes(s: Shape, form: str) -> dict[str, Any]:
    """The parameters as shapes, bfloat16."""
    layer = {
        "norm1": (s.width,),
        "norm2": (s.width,),
        "q": (s.width, s.heads, HEAD),
        "k": (s.width, s.kv, HEAD),
        "v": (s.width, s.kv, HEAD),
        "o": (s.heads, HEAD, s.width),
        "gate": (s.width, s.ff),
        "up": (s.width, s.ff),
        "down": (s.ff, s.width),
    }
    if form == "scanned":
        layers: Any = {name: (s.layers, *shape) for name, shape in layer.items()}
    else:
        layers = [layer] * s.layers
    tree = {
        "embedding": (s.vocabulary, s.width),
        "layers": layers,
        "norm": (s.width,),
        "head": (s.width, s.vocabulary),
    }
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16),
        tree,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    root = jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-5)
    return (wide * root).astype(x.dtype) * scale


def _rotary(x: jax.Array) -> jax.Array:
    half = HEAD // 2
    angle = jnp.arange(x.shape[1])[:, None] * 5e5 ** (-jnp.arange(half) / half)
    cos, sin = (f(angle)[None, :, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _block(s: Shape, x: jax.Array, p: Any) -> jax.Array:
    h = _norm(x, p["norm1"])
    q = _rotary(jnp.einsum("btd,dhk->bthk", h, p["q"]))
    k = _rotary(jnp.einsum("btd,dhk->bthk", h, p["k"]))
    v = jnp.einsum("btd,dhk->bthk", h, p["v"])
    q = q.reshape(*q.shape[:2], s.kv, s.heads // s.kv, HEAD)
    a = jnp.einsum("btgrk,bsgk->bgrts", q, k) / HEAD**0.5
    causal = jnp.tril(jnp.ones(a.shape[-2:], bool))
    a = jax.nn.softmax(jnp.where(causal, a, -1e9))
    h = jnp.einsum("bgrts,bsgk->btgrk", a, v).reshape(*x.shape[:2], s.heads, HEAD)
    x = x + jnp.einsum("bthk,hkd->btd", h, p["o"])
    h = _norm(x, p["norm2"])
    return x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"]


def network(s: Shape, form: str) -> Callable[[Any, jax.Array], jax.Array]:
    """Logits of the parameters and the token ids."""

    def apply(params: Any, ids: jax.Array) -> jax.Array:
        x = params["embedding"][ids]
        if form == "scanned":
            x, _ = jax.lax.scan(
                lambda x, p: (_block(s, x, p), None), x, params["layers"]
            )
        else:
            for p in params["layers"]:
                x = _block(s, x, p)
        return _norm(x, params["norm"]) @ params["head"]

    return apply


def peak_mb() -> float:
    """The largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(name: str, form: str) -> dict[str, Any]:
    """The figures of one network, in this process."""
    start, s = peak_mb(), SHAPES[name]
    params, fn = shapes(s, form), network(s, form)
    ids = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
    marks = [time.process_time()]

    def lap() -> float:
        marks.append(time.process_time())
        return marks[-1] - marks[-2]

    jax.make_jaxpr(network(s, form))(params, ids)
    found: dict[str, Any] = {"trace": lap()}
    deps = surgery.groups(fn)(params, ids)
    found["groups"] = lap()
    rng = np.random.default_rng(0)
    given = {g.id: rng.permutation(g.size) / g.size for g in deps}
    lap()
    plan = surgery.select(deps, given, flops=0.5)
    found["select"] = lap()
    packed = jax.eval_shape(plan.pack, params)
    found["pack shapes"] = lap()
    jax.make_jaxpr(surgery.shrink(fn, plan))(packed, ids)
    found["compact trace"] = lap()
    return {
        "network": name,
        "form": form,
        "parameters": _size(params),
        "parameters_compact": _size(packed),
        "groups_found": len(deps),
        "seconds": found,
        "total": sum(found.values()) - found["trace"],
        "start_mb": start,
        "peak_mb": peak_mb(),
    }


def _size(tree: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def apart(name: str, form: str) -> dict[str, Any]:
    """The figures of one network, in a process of its own."""
    command = [sys.executable, "-m", "experiments.bench.scale", "--one", name, form]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(quick: bool = False, only: str = "") -> dict[str, Any]:
    """All networks; `rows` holds the figures that have a bound. `quick`: no 70B."""
    names = [n for n in SHAPES if only in n and not (quick and "70B" in n)]
    networks = [apart(name, form) for name in names for form in FORMS]
    rows = {}
    for r in networks:
        label = f"{r['network']}, {r['form']}"
        rows[f"{label}: seconds"] = r["total"]
        rows[f"{label}: GB"] = r["peak_mb"] / 1024
    return {
        "machine": machine(),
        "command": "python -m experiments.bench.scale",
        "rows": rows,
        "networks": networks,
    }


def table(result: dict[str, Any]) -> str:
    """The figures as a table for a page."""
    lines = [
        "| shapes | layers | parameters | groups | select | compact trace | all "
        "| bare trace | memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in result["networks"]:
        t = r["seconds"]
        lines.append(
            f"| {r['network']} | {r['form']} | {r['parameters'] / 1e9:.1f} B "
            f"| {t['groups']:.2f} s | {t['select']:.2f} s | {t['compact trace']:.2f} s "
            f"| {r['total']:.2f} s | {t['trace']:.2f} s "
            f"| {r['peak_mb'] / 1024:.2f} GB |"
        )
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the JSON here")
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--page", type=Path, help="put the table into this page")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measured(*args.one)))
        return
    result = run(only=args.only)
    print(table(result))
    if args.out:
        files.write_json(args.out, result)
    if args.page:
        put_table(args.page, table(result), MARK)


if __name__ == "__main__":
    main()
