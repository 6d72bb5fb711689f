"""Surgery beside Torch-Pruning: four networks cut by each, in turns.

    python -m experiments.bench.beside_torch_pruning --torch PYTHON [--out FILE]

`PYTHON` is the interpreter of an environment with torch, torchvision and torch_pruning
(1.6.1 was used); it may lack JAX, and this one lacks PyTorch. Both cut networks with
random weights: ours is analysis, scores, a plan for half of the FLOPs and packing;
theirs the construction of `BasePruner` by magnitude (uniform, 0.3 of every width) and
`step`. Processor seconds of one thread each, the least of the turns: what another
process costs is only ever added. `first` is the first call of a process, in which JAX
compiles the scores and the packing. Nearly all of our analysis is JAX's own trace
of the network; `select` certifies that every group may be cut, theirs does not.
"""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.bench.surgery import NETWORKS, scalars, seconds
from experiments.bench.timing import machine
from jprune import surgery

NAMES = ("ResNet-50", "DenseNet-121", "ViT-B/16", "GPT-2 small")


class Other:
    """Torch-Pruning in a process of its own."""

    def __init__(self, python: str) -> None:
        script = Path(__file__).with_name("torch_side.py")
        self._process = subprocess.Popen(
            [python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.versions = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("torch_side.py ended: see its message above")
        return json.loads(line)

    def cut(self, name: str) -> dict[str, float]:
        assert self._process.stdin is not None
        print(name, file=self._process.stdin, flush=True)
        return self._answer()


def ours(name: str) -> dict[str, float]:
    """Seconds of each part, and the share of parameters left."""
    build, x = NETWORKS[name]
    model = build()
    sample = np.zeros(x.shape, x.dtype)
    variables = jax.block_until_ready(jax.jit(model.init)(jax.random.key(0), sample))
    parts = {}
    parts["analysis"], deps = seconds(lambda: surgery.groups(model.apply)(variables, x))
    parts["scores"], scores = seconds(
        lambda: jax.block_until_ready(deps.scores(variables))
    )
    parts["select"], plan = seconds(lambda: surgery.select(deps, scores, flops=0.5))
    parts["pack"], packed = seconds(lambda: jax.block_until_ready(plan.pack(variables)))
    parts["total"] = sum(parts.values())
    parts["parameters"] = scalars(packed) / scalars(variables)
    small = surgery.shrink(model.apply, plan)
    parts["compact trace"], _ = seconds(lambda: jax.make_jaxpr(small)(packed, x))
    return parts


def beside(name: str, other: Other, rounds: int) -> dict[str, Any]:
    """One network in turns: the first call, then the least of the others."""
    mine, theirs = [], []
    for _ in range(1 + rounds):
        mine.append(ours(name))
        theirs.append(other.cut(name))

    def least(rows: list[dict[str, float]]) -> dict[str, float]:
        return {key: min(row[key] for row in rows) for key in rows[0]}

    row = {"network": name, "ours": least(mine[1:]), "theirs": least(theirs[1:])}
    row["first"] = {"ours": mine[0]["total"], "theirs": theirs[0]["total"]}
    return row


def run(python: str, rounds: int = 5) -> dict[str, Any]:
    """All networks; `rows` holds our time as a share of theirs."""
    other = Other(python)
    networks = [beside(name, other, rounds) for name in NAMES]
    rows = {}
    for row in networks:
        mine, theirs = row["ours"], row["theirs"]["total"]
        rows[f"{row['network']}: ours / theirs"] = mine["total"] / theirs
        whole = mine["total"] + mine["compact trace"]
        rows[f"{row['network']}: with the compact trace"] = whole / theirs
        first = row["first"]
        rows[f"{row['network']}: first call"] = first["ours"] / first["theirs"]
    return {
        "machine": machine() | other.versions,
        "rows": rows,
        "networks": networks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--torch", required=True, help="an interpreter with PyTorch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    result = run(args.torch, args.rounds)
    for label, ratio in result["rows"].items():
        print(f"{label:42s} {ratio:5.2f}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
