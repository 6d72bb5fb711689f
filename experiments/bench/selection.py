"""The exact threshold against one read of the weights, and against sorting them.

    python -m experiments.bench.selection [--out FILE] [--quick]

Leaf shapes of ResNet-50 (25.6 M weights in 161 leaves), normal weights with a scale of
their own for each leaf, a tenth of them kept. Every figure is a ratio of times taken in
turns in one run, so that a busy machine slows both alike: medians of the paired ratios.
Counted, not timed, are the sweeps of a closed loop of momentum SGD with selective decay
under a constant gradient, and the temporary memory of threshold and mask.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.optimizer_step import resnet_shapes
from experiments.bench.timing import in_turns, machine
from jprune import selection


def weights(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, jax.Array]:
    """Normal leaves, of He's scale for kernels and 0.1 for vectors."""
    rng = np.random.default_rng(seed)
    tree = {}
    for name, shape in shapes.items():
        scale = (2 / np.prod(shape[:-1])) ** 0.5 if len(shape) > 1 else 0.1
        tree[name] = jnp.asarray(scale * rng.standard_normal(shape, np.float32))
    return tree


def timed(tree: Any, k: int, repeats: int) -> dict[str, np.ndarray]:
    """Seconds of each way to look at all weights once, or to rank them."""
    kth = jax.jit(lambda t, k, init: selection.kth_magnitude(t, k, init=init))
    sampled = jax.jit(lambda t: selection.kth_magnitude(t, k))
    masked = jax.jit(lambda t, found, k: selection.keep_mask(t, found, k))
    found = jax.block_until_ready(kth(tree, k, selection.WarmStart.cold(tree)))
    # The favourable warm start: a threshold that moved by 3,000 images.
    near = selection.WarmStart(found.bits + 3_000, jnp.int32(4_000))
    # A count that the threshold meets exactly is confirmed by a single sweep.
    met, there = found.count, selection.WarmStart(found.bits, jnp.int32(1))
    fns: dict[str, Callable[[], Any]] = {
        "sum of magnitudes": _call(jax.jit(_sum_abs), tree),
        "one count": _call(jax.jit(_one_count), tree, found.bits),
        "one sweep": _call(kth, tree, met, there),
        "warm": _call(kth, tree, k, near),
        "cold, sampled": _call(sampled, tree),
        "cold": _call(kth, tree, k, selection.WarmStart.cold(tree)),
        "mask": _call(masked, tree, found._replace(count=jnp.int32(k)), k),
        "mask, one tie broken": _call(masked, tree, found, met - 1),
    }
    for fn in fns.values():
        fn()
    if int(kth(tree, met, there).passes) != 1:
        raise RuntimeError("The single sweep took more than one.")
    return in_turns(fns, repeats)


def sorted_times(tree: Any, k: int) -> dict[str, np.ndarray]:
    """Seconds of a warm threshold and of two sorts of everything, once each."""
    kth = jax.jit(lambda t, init: selection.kth_magnitude(t, k, init=init))
    found = kth(tree, selection.WarmStart.cold(tree))
    near = selection.WarmStart(found.bits + 3_000, jnp.int32(4_000))
    leaves = jax.tree.leaves(tree)
    joined = jnp.concatenate([leaf.reshape(-1) for leaf in leaves])
    sizes = jnp.abs(joined)
    images = _images(joined)
    sort = jax.jit(jnp.sort)
    fns = {
        "warm": _call(kth, tree, near),
        "integer sort": _call(sort.lower(images).compile(), images),
        "float sort": _call(sort.lower(sizes).compile(), sizes),
    }
    fns["warm"]()
    return in_turns(fns, 1) | in_turns({"warm": fns["warm"]}, 5)


def compiled(tree: Any, k: int) -> dict[str, float]:
    """CPU seconds to trace and compile threshold and mask; temporary bytes over all."""

    def select(tree: Any, init: selection.WarmStart) -> Any:
        found = selection.kth_magnitude(tree, k, init=init)
        return init.after(found), selection.keep_mask(tree, found, k)

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    start = time.process_time()
    lowered = jax.jit(select).lower(shapes, selection.WarmStart.cold(tree))
    middle = time.process_time()
    memory = lowered.compile().memory_analysis()
    end = time.process_time()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    temporary = memory.temp_size_in_bytes / size if memory else float("nan")
    return {
        "trace, CPU seconds": middle - start,
        "compile, CPU seconds": end - middle,
        "temporary bytes / model bytes": temporary,
    }


def closed_loop(tree: Any, k: int, steps: int) -> list[int]:
    """Sweeps of each step after the third, under a harsh, steady drift."""
    rng = np.random.default_rng(1)
    drift = jax.tree.map(
        lambda x: jnp.asarray(1e-3 * rng.standard_normal(x.shape, np.float32)), tree
    )

    @jax.jit
    def step(w: Any, v: Any, warm: selection.WarmStart) -> Any:
        found = selection.kth_magnitude(w, k, init=warm)
        kept = selection.keep_mask(w, found, k, ties="all")
        v = jax.tree.map(
            lambda p, m, g, u: 0.9 * u + g + jnp.where(m, 0, 1e-2 * p),
            w,
            kept,
            drift,
            v,
        )
        w = jax.tree.map(lambda p, u: p - 0.1 * u, w, v)
        return w, v, warm.after(found), found.passes

    v, warm, passes = (
        jax.tree.map(jnp.zeros_like, tree),
        selection.WarmStart.cold(tree),
        [],
    )
    for _ in range(steps + 3):
        tree, v, warm, made = step(tree, v, warm)
        passes.append(int(made))
    return passes[3:]


def _call(fn: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    def run() -> None:
        jax.block_until_ready(fn(*args))

    return run


def _sum_abs(tree: Any) -> jax.Array:
    return sum((jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(tree)), jnp.float32(0))


def _images(x: jax.Array) -> jax.Array:
    """The integers by which float32 magnitudes compare; infinities and NaN lowest."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32) & 0x7FFFFFFF
    return jnp.where(bits < 0x7F800000, bits, 0)


def _one_count(tree: Any, bits: jax.Array) -> jax.Array:
    images = [_images(x) for x in jax.tree.leaves(tree)]
    return sum((jnp.sum(b >= bits, dtype=jnp.int32) for b in images), jnp.int32(0))


def run(quick: bool = False) -> dict[str, Any]:
    """All measurements as one JSON-ready value."""
    tree = weights(resnet_shapes(50))
    size = sum(leaf.size for leaf in jax.tree.leaves(tree))
    k = size // 10
    times = timed(tree, k, 9 if quick else 31)
    sorts = sorted_times(tree, k)
    passes = closed_loop(tree, k, 8 if quick else 25)
    read, warm = times["sum of magnitudes"], float(np.median(sorts["warm"]))
    rows = {f"{name} / sum of magnitudes": _ratio(t, read) for name, t in times.items()}
    rows["one sweep / one count"] = _ratio(times["one sweep"], times["one count"])
    for name in ("integer sort", "float sort"):
        rows[f"{name} / warm"] = float(np.median(sorts[name])) / warm
    rows["mean sweeps, closed loop"] = float(np.mean(passes))
    return {
        "bench": "selection",
        "machine": machine(),
        "parameters": size,
        "leaves": len(tree),
        "milliseconds": {n: 1e3 * float(np.median(t)) for n, t in times.items()},
        "rows": rows | compiled(tree, k),
        "sweeps": passes,
    }


def _ratio(times: np.ndarray, base: np.ndarray) -> float:
    return float(np.median(times / base))


def table(result: dict[str, Any]) -> str:
    """The rows as text."""
    lines = [f"{result['parameters']:,} weights in {result['leaves']} leaves"]
    lines += [f"  {name:44s} {value:9.4g}" for name, value in result["rows"].items()]
    lines += [f"  {n:44s} {t:9.2f} ms" for n, t in result["milliseconds"].items()]
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the JSON here")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    args = parser.parse_args()
    result = run(args.quick)
    print(table(result))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
