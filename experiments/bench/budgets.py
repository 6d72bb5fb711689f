"""A budget in FLOPs and one in measured latency: what each gives, and what it keeps.

    python -m experiments.bench.budgets [--out FILE] [--only NAME] [--resume]
        [--page FILE]

MobileNetV3, ResNet-50 and ViT-B/16 with random weights, one image. Three plans each:

* `flops`: half of the FLOPs, every group cut in proportion (the default order);
* `latency`: half of the measured latency, along the same order;
* `latency, per FLOP`: half of the measured latency, but the order is importance for
  what a coordinate saves (`analysis.savings`), over all groups at once.

Afterwards the dense network and the three plans run in turns: their latency over the
dense one's (medians) says how well the budget was met on a second measurement. *kept*
is the share of the summed scores (L2, summed over members) that stays, so the last two
plans compare what is left at one latency.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import files
from experiments.bench.page import put_table
from experiments.bench.surgery import NETWORKS
from experiments.bench.timing import machine
from jprune import analysis, surgery

NAMES = ("MobileNetV3", "ResNet-50", "ViT-B/16")
SHARE = 0.5
ROUND = 8
MARK = "<!-- budgets -->"


def random_weights(shapes: Any) -> Any:
    """Parameters of some shapes: kernels of unit gain, scales 1, the rest 0."""
    rng = np.random.default_rng(0)

    def leaf(path: Any, x: Any) -> jax.Array:
        name = path[-1].key
        if name in ("scale", "var"):
            return jnp.ones(x.shape, x.dtype)
        if len(x.shape) < 2:
            return jnp.zeros(x.shape, x.dtype)
        fan = np.prod(x.shape[:-1])
        values = rng.standard_normal(x.shape, np.float32) * (2 / fan) ** 0.5
        return jnp.asarray(values, x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def kept_share(scores: dict[str, Any], keep: dict[str, np.ndarray]) -> float:
    """The share of the summed scores of the groups that stays."""
    whole = sum(float(np.sum(s)) for s in scores.values())
    lost = sum(float(np.sum(np.asarray(scores[i])[~mask])) for i, mask in keep.items())
    return 1 - lost / whole


def measured(name: str, rounds: int) -> dict[str, Any]:
    """The figures of one network."""
    build, image = NETWORKS[name]
    model = build()
    params = random_weights(jax.eval_shape(model.init, jax.random.key(0), image))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=image.shape), image.dtype)
    deps = surgery.groups(model.apply)(params, x)
    coupled = {g.id for g in deps if g.kind == "coupled"}
    found = deps.scores(params, reduce="sum")
    scores = {i: s for i, s in found.items() if i in coupled}
    price = analysis.savings(deps, "flops")
    per_flop = {i: np.asarray(s) / price[i] for i, s in scores.items()}
    asked = []
    latency = analysis.relative_cost("latency", model.apply, params, x, rounds=rounds)

    def cost(plan: surgery.Plan) -> float:
        asked.append(latency(plan))
        print(f"  {name}: {asked[-1]:.3f}", flush=True)
        return asked[-1]

    budget = {"cost": cost, "at_most": SHARE}
    kept = {
        "flops": surgery.choose(deps, scores, flops=SHARE, round_to=ROUND),
        "latency": surgery.choose(deps, scores, round_to=ROUND, **budget),
        "latency, per FLOP": surgery.choose(
            deps, per_flop, ranking="global", most=0.9, round_to=ROUND, **budget
        ),
    }
    calls: dict[str, Any] = {"dense": (model.apply, params, x)}
    for label, keep in kept.items():
        plan = surgery.plan_from_keep(deps, keep)
        calls[label] = (surgery.shrink(model.apply, plan), plan.pack(params), x)
    times = analysis.latency(calls, rounds=2 * rounds)
    dense = deps.flops()
    return {
        "network": name,
        "dense_ms": 1e3 * times["dense"].median,
        "measurements_asked": len(asked),
        "plans": {
            label: {
                "latency": times[label].median / times["dense"].median,
                "flops": deps.flops({i: int(m.sum()) for i, m in keep.items()}) / dense,
                "kept": kept_share(scores, keep),
            }
            for label, keep in kept.items()
        },
    }


def table(result: dict[str, Any]) -> str:
    """The figures as a table for a page."""
    lines = [
        "| network | plan | latency | FLOPs | kept importance |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['network']} | {label} | {p['latency']:.3f} | {p['flops']:.3f} "
        f"| {p['kept']:.3f} |"
        for row in result["networks"].values()
        for label, p in row["plans"].items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the JSON here")
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--resume", action="store_true", help="networks in --out count")
    parser.add_argument("--page", type=Path, help="put the table into this page")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    result: dict[str, Any] = {"networks": {}}
    if args.resume and args.out and args.out.exists():
        result = json.loads(args.out.read_text())
    for name in NAMES:
        if args.only in name and name not in result["networks"]:
            result["networks"][name] = measured(name, args.rounds)
            result |= {
                "machine": machine(),
                "command": "python -m experiments.bench.budgets",
                "rounds": args.rounds,
            }
            if args.out:
                files.write_json(args.out, result)
    print(table(result))
    if args.page:
        put_table(args.page, table(result), MARK)


if __name__ == "__main__":
    main()
