"""What surgery costs and what it gains, at full size.

    python -m experiments.bench.surgery [--out FILE] [--quick]

Part one takes five networks as shapes only (nothing is allocated or compiled) and
times, in processor seconds, the bare `jax.make_jaxpr`, the analysis beyond it, a FLOPs
target of one half solved from that one analysis, and the first trace of the compact
function. Part two runs ResNet-56 (32 x 32) and ResNet-50 (224 x 224) with random
weights at 1/2 and 1/4 of their FLOPs, every group at the same sparsity in multiples of
8, batch 1 and 8, each compact model in turn with the dense one (medians). Part three
cuts a quarter of every width of ResNet-50 and runs it in turn with a ResNet-50 built at
those widths: what surgery gains is what a network of that size gains, on this machine.
`--quick` takes fewer turns.
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

from experiments.bench.timing import machine
from experiments.models.densenet import densenet121
from experiments.models.mobilenet import MobileNetV3
from experiments.models.resnet import resnet50, resnet56
from experiments.models.transformer import gpt2_small, vit_b16
from jprune import analysis, surgery

IMAGE = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
TEXT = jax.ShapeDtypeStruct((1, 128), jnp.int32)
NETWORKS: dict[str, tuple[Callable[[], Any], Any]] = {
    "ResNet-50": (resnet50, IMAGE),
    "MobileNetV3": (MobileNetV3, IMAGE),
    "DenseNet-121": (densenet121, IMAGE),
    "ViT-B/16": (vit_b16, IMAGE),
    "GPT-2 small": (gpt2_small, TEXT),
}


def seconds(fn: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of one call, and its result.

    Tracing is one thread of Python: the time it takes on an idle machine, whatever else
    runs now.
    """
    start = time.process_time()
    result = fn()
    return time.process_time() - start, result


def analyzed(name: str) -> dict[str, Any]:
    """Times of part one for a network, in seconds, and its sizes."""
    build, x = NETWORKS[name]
    model = build()
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    fresh = build()  # its apply has not been traced
    bare, _ = seconds(lambda: jax.make_jaxpr(fresh.apply)(variables, x))
    # The analysis traces again; JAX then has parts of the trace cached, so its own
    # share is taken against a second trace, not the first. In turns, the least of each:
    # what another process costs is only ever added.
    deps = surgery.groups(fresh.apply)(variables, x)
    again, whole = [], []
    for _ in range(9):
        again.append(seconds(lambda: jax.make_jaxpr(fresh.apply)(variables, x))[0])
        whole.append(seconds(lambda: surgery.groups(fresh.apply)(variables, x))[0])
    scores = _equal_scores(deps)
    solving, plan = seconds(lambda: surgery.select(deps, scores, flops=0.5))
    packed = jax.eval_shape(plan.pack, variables)
    small = surgery.shrink(fresh.apply, plan)
    compact, _ = seconds(lambda: jax.make_jaxpr(small)(packed, x))
    dense_flops = analysis.flops(fresh.apply)(variables, x)
    return {
        "network": name,
        "groups": len(deps),
        "parameters": scalars(variables),
        "parameters_compact": scalars(packed),
        "flops": dense_flops,
        "flops_compact": analysis.flops(small)(packed, x),
        "trace": bare,
        "retrace": min(again),
        "analysis": max(min(whole) - min(again), 0.0),
        "select": solving,
        "compact_trace": compact,
        **cold_traces(build, variables, plan, packed, x),
    }


def cold_traces(
    build: Callable[[], Any], variables: Any, plan: surgery.Plan, packed: Any, x: Any
) -> dict[str, float]:
    """First traces of the bare and of the compact function, no cache filled.

    In turns, the least of each.
    """
    bare, compact = [], []
    for _ in range(5):
        jax.clear_caches()
        apply = build().apply
        bare.append(seconds(lambda f=apply: jax.make_jaxpr(f)(variables, x))[0])
        jax.clear_caches()
        small = surgery.shrink(build().apply, plan)
        compact.append(seconds(lambda f=small: jax.make_jaxpr(f)(packed, x))[0])
    return {"trace_cold": min(bare), "compact_trace_cold": min(compact)}


def _equal_scores(deps: Any) -> dict[str, np.ndarray]:
    """Scores that make every group's coordinates distinct and groups comparable."""
    rng = np.random.default_rng(0)
    return {group.id: rng.permutation(group.size) / group.size for group in deps}


def scalars(tree: Any) -> int:
    """How many numbers a tree holds."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def timed(model: Any, x: Any, fractions: tuple[float, ...], rounds: int) -> list[dict]:
    """Latency at given fractions of the FLOPs, in turns with the dense model."""
    variables = jax.jit(model.init)(jax.random.key(0), x[:1])
    deps = surgery.groups(model.apply)(variables, x)
    scores = _equal_scores(deps)
    calls = {"1": (model.apply, variables, x)}
    for fraction in fractions:
        plan = surgery.select(deps, scores, flops=fraction, ranking="group", round_to=8)
        small = surgery.shrink(model.apply, plan)
        calls[str(fraction)] = (small, plan.pack(variables), x)
    found = analysis.latency(calls, rounds=rounds)

    def operations(name: str) -> int:
        fn, *args = calls[name]
        return analysis.flops(fn)(*args)

    return [
        {
            "batch": x.shape[0],
            "asked": fraction,
            "flops": operations(str(fraction)) / operations("1"),
            "dense_ms": 1e3 * found["1"].median,
            "compact_ms": 1e3 * found[str(fraction)].median,
            "dense_quartiles_ms": [1e3 * found["1"].low, 1e3 * found["1"].high],
            "faster": found["1"].median / found[str(fraction)].median,
        }
        for fraction in fractions
    ]


def cut_and_built(batch: int, rounds: int) -> dict[str, Any]:
    """Latency of ResNet-50 cut to 3/4 of every width, and of one built so."""
    dense, built = resnet50(), resnet50(width=48)
    x = np.random.default_rng(0).normal(size=(batch, 224, 224, 3)).astype(np.float32)
    first, second = (jax.jit(m.init)(jax.random.key(0), x[:1]) for m in (dense, built))
    deps = surgery.groups(dense.apply)(first, x)
    plan = surgery.select(deps, _equal_scores(deps), sparsity=0.25, ranking="group")
    packed = plan.pack(first)
    assert jax.tree.map(jnp.shape, packed) == jax.tree.map(jnp.shape, second)
    calls = {
        "cut": (surgery.shrink(dense.apply, plan), packed, x),
        "built": (built.apply, second, x),
    }
    found = analysis.latency(calls, rounds=rounds)
    return {
        "network": "ResNet-50",
        "batch": batch,
        "cut_ms": 1e3 * found["cut"].median,
        "built_ms": 1e3 * found["built"].median,
        "cut / built": found["cut"].median / found["built"].median,
    }


def latency_rows(quick: bool) -> list[dict]:
    """Part two: every network, batch and fraction."""
    rows = []
    for name, model, side, batches in (
        ("ResNet-56", resnet56(), 32, (1, 8)),
        ("ResNet-50", resnet50(), 224, (1, 8)),
    ):
        for batch in batches:
            x = np.random.default_rng(0).normal(size=(batch, side, side, 3))
            given = timed(model, x.astype(np.float32), (0.5, 0.25), 5 if quick else 15)
            rows += [{"network": name, **row} for row in given]
    return rows


def run(quick: bool = False) -> dict[str, Any]:
    """All parts; what `--out` writes. `rows` holds the figures that have a bound."""
    analyses = [analyzed(name) for name in NETWORKS]
    latencies = latency_rows(quick)
    pairs = [cut_and_built(batch, 5 if quick else 15) for batch in (1, 8)]
    rows = {}
    for r in analyses:
        allowed = max(0.1 * r["trace"], 0.03)
        rows[f"{r['network']}: analysis / allowed"] = r["analysis"] / allowed
        rows[f"{r['network']}: select seconds"] = r["select"]
        rows[f"{r['network']}: compact trace seconds"] = r["compact_trace"]
        ratio = r["compact_trace_cold"] / r["trace_cold"]
        rows[f"{r['network']}: compact trace / bare trace"] = ratio
        rows[f"{r['network']}: FLOPs / target"] = r["flops_compact"] / (
            0.5 * r["flops"]
        )
    for r in latencies:
        label = f"{r['network']}: faster at {r['asked']}, batch {r['batch']}"
        rows[label] = r["faster"]
    for r in pairs:
        rows[f"ResNet-50: cut / built, batch {r['batch']}"] = r["cut / built"]
    return {
        "machine": machine(),
        "rows": rows,
        "analysis": analyses,
        "latency": latencies,
        "cut and built": pairs,
    }


def table(result: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [
        "network       groups   Mparams         GFLOP           trace  analysis  select"
        "  compact trace (ms)"
    ]
    lines += [
        f"{r['network']:13s} {r['groups']:6d}  "
        f"{r['parameters'] / 1e6:6.2f}->{r['parameters_compact'] / 1e6:6.2f}  "
        f"{r['flops'] / 1e9:6.3f}->{r['flops_compact'] / 1e9:6.3f}  "
        f"{1e3 * r['trace']:6.0f}  {1e3 * r['analysis']:8.0f}  {1e3 * r['select']:6.0f}"
        f"  {1e3 * r['compact_trace']:6.0f}"
        for r in result["analysis"]
    ]
    lines += ["", "network    batch  asked  FLOPs   dense ms  compact ms  faster"]
    lines += [
        f"{r['network']:10s} {r['batch']:5d}  {r['asked']:5.2f}  {r['flops']:5.3f}  "
        f"{r['dense_ms']:8.1f}  {r['compact_ms']:10.1f}  {r['faster']:5.2f}x"
        for r in result["latency"]
    ]
    lines += ["", "ResNet-50 with 3/4 of every width, cut and built so (ms)"]
    lines += [
        f"batch {r['batch']}  {r['cut_ms']:8.1f}  {r['built_ms']:8.1f}  "
        f"{r['cut / built']:5.2f}x"
        for r in result["cut and built"]
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    result = run(args.quick)
    print(table(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
