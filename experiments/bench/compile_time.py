"""What a user waits for first: the compilation of one update, of every transformation.

    python -m experiments.bench.compile_time [--rows swd,rigl] [--llama] [--out FILE]

Shapes only: the update at the 161 leaves of ResNet-50 (with `--llama` at the 291 of
Llama-3-8B) is traced, lowered and compiled, never run, state and parameters donated.
Reported are seconds of CPU time (of all threads: a busy machine does not change them
much, and a quiet one with several cores waits less) and of the wall clock, the
instructions before and after optimization, and the bytes of temporaries as a multiple
of the parameters. "init" is the program that makes the first state.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench.optimizer_step import optimizers, resnet_shapes
from experiments.bench.timing import machine
from jprune import transforms

INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = ", re.MULTILINE)

Shapes = Mapping[str, tuple[int, ...]]


def llama_shapes() -> dict[str, tuple[int, ...]]:
    """The 291 leaves of Llama-3-8B."""
    wide, inner, keys, words = 4_096, 14_336, 1_024, 128_256
    shapes = {"embed/embedding": (words, wide), "norm/scale": (wide,)}
    shapes["head/kernel"] = (wide, words)
    for i in range(32):
        block = f"block_{i}"
        for name in ("attention_norm", "mlp_norm"):
            shapes[f"{block}/{name}/scale"] = (wide,)
        for name, width in (("q", wide), ("k", keys), ("v", keys), ("o", wide)):
            shapes[f"{block}/{name}/kernel"] = (wide, width)
        for name in ("gate", "up"):
            shapes[f"{block}/{name}/kernel"] = (wide, inner)
        shapes[f"{block}/down/kernel"] = (inner, wide)
    return shapes


def recipes() -> dict[str, optax.GradientTransformation]:
    """The moving masks as their recipes make them."""
    run: dict[str, Any] = {"sparsity": 0.9, "total_steps": 10**6}
    return {
        "rigl": transforms.rigl(1e-4, **run),
        "set": transforms.sparse_evolutionary(1e-4, every=100, **run),
        "static sparse": transforms.static_sparse(1e-4, sparsity=0.9),
    }


def llama_rows() -> dict[str, optax.GradientTransformation]:
    """A few for a language model, by leaf: 8 billion weights pass an int32 count."""
    swd = transforms.swd(
        1e-4, mu=5e-4, total_steps=10**6, sparsity=0.5, a_max=1e3, ranking="leaf"
    )
    gradual = transforms.prune_gradually(0.5, end=10**6, every=100, ranking="leaf")
    sgd = optax.sgd(1e-4, momentum=0.9)
    return {
        "dense": sgd,
        "swd": swd,
        "gradual": optax.chain(sgd, gradual),
        "rigl": transforms.rigl(1e-4, sparsity=0.5, total_steps=10**6),
    }


def row(tx: optax.GradientTransformation, shapes: Shapes) -> dict[str, Any]:
    """Costs of compiling one update."""

    def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
    wall, cpu = time.perf_counter(), time.process_time()
    jax.jit(tx.init).lower(params).compile()
    init = time.process_time() - cpu
    state = jax.eval_shape(tx.init, params)
    wall, cpu = time.perf_counter(), time.process_time()
    lowered = jax.jit(update, donate_argnums=(0, 1)).lower(params, state, params)
    traced = time.process_time() - cpu
    compiled = lowered.compile()
    total, waited = time.process_time() - cpu, time.perf_counter() - wall
    size = 4 * sum(int(np.prod(s)) for s in shapes.values())
    memory: Any = compiled.memory_analysis()
    text = compiled.as_text() or ""
    return {
        "init, CPU seconds": round(init, 2),
        "lowering, CPU seconds": round(traced, 2),
        "CPU seconds": round(total, 2),
        "wall seconds": round(waited, 2),
        "instructions given": lowered.as_text().count("\n"),
        "instructions compiled": len(INSTRUCTION.findall(text)),
        "temporaries / parameters": round(memory.temp_size_in_bytes / size, 3),
    }


def run(names: list[str] | None, llama: bool, out: Path | None) -> dict[str, Any]:
    """All rows; each is written as soon as it is there, and none is measured twice."""
    shapes = llama_shapes() if llama else resnet_shapes(50)
    network = "Llama-3-8B" if llama else "ResNet-50"
    rows = llama_rows() if llama else {**optimizers(shapes), **recipes()}
    rows = {n: tx for n, tx in rows.items() if not n.endswith("mask update")}
    result: dict[str, Any] = {"bench": "compile_time", "networks": {}}
    if out and out.exists():
        result = json.loads(out.read_text())
    result |= {"command": "python -m experiments.bench.compile_time"}
    result |= {"machine": {**machine(), "jaxlib": version("jaxlib")}}
    result["machine"]["optax"] = optax.__version__
    part = result["networks"].setdefault(network, {"leaves": len(shapes), "rows": {}})
    jax.jit(lambda x: x + 1)(1.0)  # the first compilation of all is slower
    for name in names or rows:
        if name in part["rows"]:
            continue
        part["rows"][name] = {**row(rows[name], shapes), "load": machine()["load"]}
        print(network, name, part["rows"][name], flush=True)
        if out:
            out.write_text(json.dumps(result, indent=1) + "\n")
    return result


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", help="these only, separated by commas")
    parser.add_argument("--llama", action="store_true", help="Llama-3-8B's leaves")
    parser.add_argument("--out", type=Path, help="write the JSON here; resumes it")
    args = parser.parse_args()
    run(args.rows.split(",") if args.rows else None, args.llama, args.out)


if __name__ == "__main__":
    sys.exit(main())
