"""Latency of compact networks on this device, at 1/2 and 1/4 of their FLOPs.

    python -m experiments.bench.latency [--out FILE] [--only NAME] [--dtype bfloat16]
        [--batch 32] [--quick]

ResNet-50, ViT-B/16 and GPT-2 small with random weights, every group cut alike in
multiples of 64 (of 8 at batch 1 and in a trial), dense and compact in turns (medians).
The file is written after every network, so that a job that is cut off leaves what it
had. `--quick` takes ResNet-56 and few turns: a trial of the command itself.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import files
from experiments.bench.timing import machine
from experiments.models.resnet import resnet50, resnet56
from experiments.models.transformer import gpt2_small, vit_b16
from jprune import analysis, surgery

NETWORKS = {
    "ResNet-50": (resnet50, (224, 224, 3)),
    "ViT-B/16": (vit_b16, (224, 224, 3)),
    "GPT-2 small": (gpt2_small, (512,)),
}
TRIAL = {"ResNet-56": (resnet56, (32, 32, 3))}


def rows(name: str, batch: int, dtype: Any, rounds: int) -> list[dict]:
    """A row for each share of the FLOPs."""
    make, shape = (NETWORKS | TRIAL)[name]
    multiple = 64 if batch > 1 and name in NETWORKS else 8
    model, random = make(), np.random.default_rng(0)
    if len(shape) == 1:
        x = random.integers(0, 50_000, (batch, *shape)).astype(np.int32)
    else:
        x = jnp.asarray(random.normal(size=(batch, *shape)), dtype)
    variables = jax.jit(model.init)(jax.random.key(0), x[:1])
    variables = optax.tree.cast(variables, dtype)
    deps = surgery.groups(model.apply)(variables, x)
    even = {g.id: np.arange(g.size, dtype=np.float32) for g in deps}
    whole = analysis.flops(model.apply)(variables, x)
    found = []
    for share in (0.5, 0.25):
        plan = surgery.select(
            deps, even, flops=share, ranking="group", round_to=multiple
        )
        small, packed = surgery.shrink(model.apply, plan), plan.pack(variables)
        times = analysis.latency(
            {"dense": (model.apply, variables, x), "compact": (small, packed, x)},
            rounds=rounds,
        )
        found.append(
            {
                "network": name,
                "batch": batch,
                "dtype": str(jnp.dtype(dtype)),
                "asked": share,
                "flops": analysis.flops(small)(packed, x) / whole,
                "dense_ms": 1e3 * times["dense"].median,
                "compact_ms": 1e3 * times["compact"].median,
                "faster": times["dense"].median / times["compact"].median,
            }
        )
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the JSON here")
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--quick", action="store_true", help="a trial")
    args = parser.parse_args()
    networks = TRIAL if args.quick else NETWORKS
    found: list[dict] = []
    for name in networks:
        if args.only in name:
            rounds = 2 if args.quick else 20
            found += rows(name, args.batch, jnp.dtype(args.dtype), rounds)
            for row in found[-2:]:
                print(row, flush=True)
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                files.write_json(args.out, {"machine": machine(), "rows": found})


if __name__ == "__main__":
    main()
