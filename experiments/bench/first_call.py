"""What the first call costs a stock network: every candidate default, side by side.

    python -m experiments.bench.first_call [--seeds 0 1 2] [--only CNN]

Small networks (`first_nets`) are trained, channels are removed to 3/4, 1/2 and 1/4
of the FLOPs and nothing is tuned afterwards; batch statistics are measured anew where
there are any. A candidate is how members are scored (norm, reduction) and what competes
with what. Reference lines: random scores, and Torch-Pruning's rules. The removal is
evaluated as the zeroed dense network, which the compact one equals (`verify`); FLOPs
are those of the compact one. Accuracies go to
`experiments/results/bench_first_call.json`, and a run that was stopped goes on there.
Trained weights stay in `experiments/runs/first_call`. Three more networks (`HELD_OUT`)
were not looked at while the default was chosen.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.first_nets import HELD_OUT, NETS, Data, Net, trained
from experiments.bench.timing import machine
from jprune import masks, surgery

RESULT = Path("experiments/results/bench_first_call.json")
WEIGHTS = Path("experiments/runs/first_call")
TARGETS = (0.75, 0.5, 0.25)
ALL = {**NETS, **HELD_OUT}

Vectors = dict[str, np.ndarray]


# -- candidates ----------------------------------------------------------------------


def members(deps: Any, variables: Any, power: int) -> dict[str, list]:
    """For each group its trained members: role, and sums of |w|^p by coordinate."""
    leaves = {
        tuple(k.key for k in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    return {
        group.id: [
            (
                ref.role,
                ref.collect(
                    np.sum(
                        np.abs(leaves[ref.path]) ** power,
                        axis=ref.others(leaves[ref.path].ndim),
                    ),
                    group.size,
                ),
            )
            for ref in group.members
            if ref.path[0] == "params"
        ]
        for group in deps
        if group.kind == "coupled"
    }


def over_mean(v: np.ndarray) -> np.ndarray:
    """A vector over its mean."""
    return v / v.mean() if v.mean() > 0 else v


def scored(rows: list, power: int, reduce: str) -> np.ndarray:
    """One score for each coordinate from the sums of its members."""
    vectors = [v for _, v in rows]
    if reduce == "sum":
        return np.sum(vectors, 0) ** (1 / power)
    if reduce == "product":  # written, times relatively scaled, times relatively read
        wrote = [v for role, v in rows if role in ("out", "table")]
        factors = [np.sum(wrote, 0)] if wrote else []
        for factor in ("scale", "in"):
            some = [over_mean(v) for role, v in rows if role == factor]
            if some and np.any(some):
                factors.append(np.mean(some, 0))
        factors = factors or [np.sum(vectors, 0)]
        return np.prod(factors, 0) ** (1 / power)
    taken = [v for role, v in rows if role in (reduce, "table")] or vectors
    return np.sum(taken, 0) ** (1 / power)


def candidates() -> dict[str, tuple[int, str, str, bool]]:
    """By label: power, reduction, competition, and whether scores are raw."""
    found = {}
    for power in (1, 2):
        for reduce in ("sum", "product", "out"):
            for rule in RULES:
                raw = rule.endswith("raw")
                if reduce == "sum" or not (raw or rule in ONLY_OF_SUMS):
                    found[f"L{power} {reduce}, {rule}"] = (power, reduce, rule, raw)
    return found


def per_cost(deps: Any, scores: Vectors) -> Vectors:
    """Scores over the FLOPs that one coordinate of the dense network costs."""
    dense = deps.flops()
    return {
        n: s / max(dense - deps.flops({n: s.size - 1}), 1) for n, s in scores.items()
    }


def shares(deps: Any, scores: Vectors, amount: Callable) -> Vectors:
    """What share of its group is gone with a coordinate, times the group's writers."""
    found = {}
    for name, s in scores.items():
        worst, part = np.argsort(-s, kind="stable")[::-1], np.empty(s.size)
        part[worst] = np.cumsum(amount(s)[worst]) / np.sum(amount(s))
        found[name] = part * deps.writers[name]
    return found


def writers(deps: Any, scores: Vectors) -> Vectors:
    """Scores times the number of kernels that write the group (a stream has many)."""
    return {n: s * deps.writers[n] for n, s in scores.items()}


ONLY_OF_SUMS = ("isomorphic", "global, most 3/4", "global per FLOP")
RULES: dict[str, Callable[[Any, Vectors], tuple[Vectors, dict[str, Any]]]] = {
    "balanced": lambda deps, s: (s, {"ranking": "balanced"}),
    "balanced count": lambda deps, s: (
        shares(deps, s, np.ones_like),
        {"ranking": "global"},
    ),
    "balanced energy": lambda deps, s: (
        shares(deps, s, np.square),
        {"ranking": "global"},
    ),
    "group": lambda deps, s: (s, {"ranking": "group"}),
    "isomorphic": lambda deps, s: (s, {"ranking": "isomorphic"}),
    "global": lambda deps, s: (s, {"ranking": "global"}),
    "global, most 3/4": lambda deps, s: (s, {"ranking": "global", "most": 0.75}),
    "global per FLOP": lambda deps, s: (per_cost(deps, s), {"ranking": "global"}),
    "global by writers": lambda deps, s: (writers(deps, s), {"ranking": "global"}),
    "global raw": lambda deps, s: (s, {"ranking": "global"}),
    "global per FLOP raw": lambda deps, s: (per_cost(deps, s), {"ranking": "global"}),
}


def choices(
    deps: Any, variables: Any, target: float, wanted: Callable[[str], bool], seed: int
) -> Any:
    """Every candidate that is wanted: its label and what it keeps."""
    rng = np.random.default_rng(seed)
    sums = {power: members(deps, variables, power) for power in (1, 2)}

    def kept(scores: Vectors, **options: Any) -> Any:
        try:
            return surgery.choose(deps, scores, flops=target, **options)
        except ValueError:  # not even with every group at its minimum
            return surgery.choose(deps, scores, flops=target, ranking="global")

    for label, (power, reduce, rule, raw) in candidates().items():
        if wanted(label):
            found = {n: scored(rows, power, reduce) for n, rows in sums[power].items()}
            if not raw:
                found = {n: over_mean(v) for n, v in found.items()}
            scores, options = RULES[rule](deps, found)
            yield label, kept(scores, **options)
    weights = {  # Torch-Pruning scores weights without biases
        n: np.mean([v for role, v in rows if role != "bias"] or [v for _, v in rows], 0)
        for n, rows in sums[2].items()
    }
    weights = {n: over_mean(v) for n, v in weights.items()}
    chance = {n: rng.random(v.size) for n, v in weights.items()}
    lines: dict[str, Callable[[], Any]] = {
        "random, group": lambda: kept(chance, ranking="group"),
        "Torch-Pruning": lambda: kept(weights, ranking="group"),
        "Torch-Pruning, global": lambda: kept(weights, ranking="global"),
        "default": lambda: surgery.choose(deps, deps.scores(variables), flops=target),
    }
    for label, line in lines.items():
        if wanted(label):
            yield label, line()


# -- one network ---------------------------------------------------------------------


def evaluator(net: Net, data: Data) -> Callable[[Any, Any], float]:
    """From variables and a mask to the accuracy in percent, statistics anew.

    They are what `compress.recalibrate` finds from one batch; that checks on the host,
    and would compile anew for each of some hundred networks.
    """
    batch, momentum = data.train[:256], 0.9

    @jax.jit
    def accuracy(variables: Any, mask: Any) -> jax.Array:
        kept = masks.apply(mask, variables)
        params = kept["params"]
        rest = {n: v for n, v in kept.items() if n != "params"}
        if rest:
            _, seen = net.model.apply(
                {"params": params, **jax.tree.map(jnp.zeros_like, rest)},
                batch,
                train=True,
                mutable=list(rest),
                rngs={"dropout": jax.random.key(0)},
            )
            rest = jax.tree.map(lambda s: s / (1 - momentum), seen)
        logits: Any = net.model.apply({"params": params, **rest}, data.test)
        return 100 * jnp.mean(logits.argmax(-1) == data.test_wanted)

    return lambda variables, mask: float(accuracy(variables, mask))


def stored(name: str, net: Net, data: Data, seed: int) -> Any:
    """The trained variables, from disk where an earlier run left them."""
    path = WEIGHTS / f"{name}_{seed}.npz"
    like = jax.eval_shape(net.model.init, jax.random.key(0), data.train[:1])
    if not path.exists():
        leaves = jax.tree.leaves(trained(net, data, seed))
        np.savez(path, *map(np.asarray, leaves))
    with np.load(path) as file:
        arrays = [file[f"arr_{i}"] for i in range(len(file.files))]
    return jax.tree.unflatten(jax.tree.structure(like), arrays)


def measure(name: str, seeds: list[int]) -> None:
    """Fills in what is missing for one network."""
    net, part = ALL[name], WEIGHTS / f"{name}.json"
    found = load(part)
    data = net.data()
    evaluate = evaluator(net, data)
    for seed in seeds:
        done = found.setdefault(str(seed), {})
        start = time.process_time()
        variables = stored(name, net, data, seed)
        apply: Callable[..., Any] = net.model.apply
        deps = surgery.groups(apply)(variables, data.test[:1])
        whole = jax.tree.map(lambda v: np.ones(v.shape, bool), variables)
        done["dense"] = evaluate(variables, whole)
        for target in TARGETS:
            cells = done.setdefault(str(target), {})
            wanted = lambda label, cells=cells: label not in cells or label == "default"  # noqa: E731
            seen: dict[bytes, float] = {}  # candidates often agree
            for label, keep in choices(deps, variables, target, wanted, seed):
                same = b"".join(keep[n].tobytes() for n in sorted(keep))
                if same in seen:
                    cells[label] = seen[same]
                    continue
                mask = masks.from_groups(variables, deps, keep)
                mask = jax.tree.map(
                    np.broadcast_to, mask, jax.tree.map(np.shape, whole)
                )
                cells[label] = seen[same] = round(evaluate(variables, mask), 2)
        done["seconds"] = round(done.get("seconds", 0) + time.process_time() - start, 1)
        save(part, found)
        print(
            f"{name} {seed}: dense {done['dense']:.1f}, default "
            f"{[done[str(t)]['default'] for t in TARGETS]}",
            flush=True,
        )


def save(path: Path, figures: dict[str, Any]) -> None:
    """Writes figures, whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(figures, indent=1) + "\n")
    part.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Figures that were written, or none."""
    return json.loads(path.read_text()) if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(ALL), default=list(ALL))
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # candidates that gut a layer
    WEIGHTS.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        measure(name, args.seeds)
    if args.only == list(ALL):
        parts = {name: load(WEIGHTS / f"{name}.json") for name in ALL}
        few = {name: parts[name] for name in NETS}
        held = {name: parts[name] for name in HELD_OUT}
        save(RESULT, {"machine": machine(), "networks": few, "held_out": held})


if __name__ == "__main__":
    main()
