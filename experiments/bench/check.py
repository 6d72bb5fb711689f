"""Runs the benches and fails past a bound.

    python -m experiments.bench.check [--quick] [--only NAME]

Bounds guard against regressions, with room for a busy machine; they are not results.
To add one: a row in `BOUNDS`, and in `BENCHES` the bench that gives its figure.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from experiments.bench import optimizer_step, scale, selection, surgery

Bench = Callable[[bool], Mapping[str, Any]]

BENCHES: dict[str, Bench] = {
    "optimizer_step": optimizer_step.run,
    "scale": scale.run,
    "selection": selection.run,
    "surgery": surgery.run,
}
"""Each takes `quick` and returns nested mappings of figures."""


class Bound(NamedTuple):
    """One figure and the most or least it may be.

    Attributes:
      bench: a key of `BENCHES`.
      figure: where the figure stands in the bench's result, key by key.
      side: `"<="` or `">="`.
      value: the bound.
      why: what the bound comes from.
    """

    bench: str
    figure: tuple[str, ...]
    side: Literal["<=", ">="]
    value: float
    why: str

    def holds(self, figure: float) -> bool:
        """Whether a figure keeps the bound; NaN does not."""
        return figure <= self.value if self.side == "<=" else figure >= self.value


def _row(figure: str, side: Literal["<=", ">="], value: float, why: str) -> Bound:
    return Bound("selection", ("rows", figure), side, value, why)


def _surgery(figure: str, side: Literal["<=", ">="], value: float, why: str) -> Bound:
    return Bound("surgery", ("rows", figure), side, value, why)


def _step(name: str, value: float, why: str) -> Bound:
    figure = ("networks", "ResNet-50", "rows", name)
    return Bound("optimizer_step", figure, "<=", value, why)


PASS = "a sweep of three pivots is bound by memory, as a sum is"
LLAMA = "groups, select and the compact trace of shapes; nothing is allocated"
SIZES = ("ResNet-50", "MobileNetV3", "DenseNet-121", "ViT-B/16", "GPT-2 small")
FASTER = "half and a quarter of the work must show on the clock"
SAME = "what is cut is what would have been built"
SORTS = "sorting 25 M values takes seconds"
BOUNDS: tuple[Bound, ...] = (
    _step("swd", 3, "times the dense update, exact threshold at every step"),
    _step("gsm", 3, "times the dense update, exact threshold at every step"),
    _step("gradual", 2, "a step that does not rank only carries and applies its mask"),
    _step("trp, truncated by the loop", 1.4, "only adds the sub-gradient it holds"),
    _step("trp", 3, "the branch wants the updates in memory, elsewhere they never are"),
    _step("keep_masked", 1.4, "only applies its mask"),
    _step("gradual, mask update", 10, "a step that ranks"),
    _step("iss-p", 6, "ranks at every step what the update leads to, a new tree"),
    _step("iss-r", 2, "a step that does not rank reads a count for each weight"),
    _step("iss-r, mask update", 10, "a step that ranks"),
    _step("2:4 in stages", 1.4, "only applies its mask"),
    _step("sr-ste", 3, "an N:M mask at every step"),
    _step("rigl", 1.4, "reads two masks; nothing is ranked"),
    _step("set", 1.4, "reads two masks; nothing is ranked"),
    _step("rigl, mask update", 10, "two rankings of every leaf"),
    _step("set, mask update", 20, "two rankings of every leaf, and lots"),
    _step("weight history", 2, "beside the mask, one more average is read and written"),
    _step("weight history, mask update", 10, "a step that ranks"),
    _step("grow_and_prune", 1.4, "a step that does not rank only carries its mask"),
    _step("grow_and_prune, mask update", 10, "a step that ranks every leaf"),
    _step("prune_unmoved", 1.4, "only applies its mask"),
    _step("network slimming", 5, "Nesterov reads the momentum again"),
    _step("masksparsity", 5, "Nesterov reads the momentum again"),
    _step("c-sgd", 16, "two averages of every kernel, products with a 0/1 matrix"),
    _step("tpp", 22, "two products of the size of a layer at every kernel"),
    _row("one sweep / sum of magnitudes", "<=", 1.6, PASS),
    _row(
        "one sweep / one count", "<=", 0.35, "the variadic reduction is the fast form"
    ),
    _row("warm / sum of magnitudes", "<=", 7, "a few sweeps near the last threshold"),
    _row(
        "cold, sampled / sum of magnitudes", "<=", 10, "some five sweeps and a sample"
    ),
    _row("cold / sum of magnitudes", "<=", 25, "no worse than 16 sweeps of bisection"),
    _row("mask / sum of magnitudes", "<=", 7, "one read and a write of a byte each"),
    _row("integer sort / warm", ">=", 15, SORTS),
    _row("float sort / warm", ">=", 50, SORTS),
    _row("mean sweeps, closed loop", "<=", 7, "4-5 under a harsh, steady drift"),
    _row("temporary bytes / model bytes", "<=", 0.01, "nothing is hoisted or copied"),
    *(
        _surgery(f"{name}: analysis / allowed", "<=", 1, "10 % of the trace, or 30 ms")
        for name in SIZES
    ),
    *(
        _surgery(f"{name}: FLOPs / target", "<=", 1.0, "a target is never overshot")
        for name in SIZES
    ),
    _surgery("ResNet-50: select seconds", "<=", 2, "solved from one analysis"),
    _surgery("ResNet-50: compact trace seconds", "<=", 2, "a few times the trace"),
    *(
        _surgery(f"ResNet-50: faster at {share}, batch {batch}", ">=", least, FASTER)
        for batch in (1, 8)
        for share, least in ((0.5, 1.7), (0.25, 2.8))
    ),
    *(
        _surgery(f"ResNet-50: cut / built, batch {batch}", "<=", 1.15, SAME)
        for batch in (1, 8)
    ),
    *(
        Bound("scale", ("rows", f"Llama-3-8B, {form}: {what}"), "<=", most, LLAMA)
        for form in scale.FORMS
        for what, most in (("seconds", 10), ("GB", 2))
    ),
)


def figure_of(result: Mapping[str, Any], figure: tuple[str, ...]) -> float:
    """The figure at a path of keys."""
    for key in figure:
        result = result[key]
    return float(result)  # type: ignore[arg-type]


def check(quick: bool, only: str | None = None) -> int:
    """Runs the benches, prints a row for each bound; how many do not hold."""
    missed = 0
    for name, bench in BENCHES.items():
        if only not in (None, name):
            continue
        result = bench(quick)
        for bound in (b for b in BOUNDS if b.bench == name):
            figure = figure_of(result, bound.figure)
            missed += not bound.holds(figure)
            label = f"{name}: {bound.figure[-1]}"
            verdict = "ok" if bound.holds(figure) else "MISSED"
            print(
                f"{label:50s} {figure:9.4g} {bound.side} {bound.value:<6g} {verdict:7s}"
                f"{bound.why}"
            )
    return missed


def main() -> int:
    """Entry point; 1 past a bound."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--only", choices=sorted(BENCHES), help="one bench alone")
    args = parser.parse_args()
    return 1 if check(args.quick, args.only) else 0


if __name__ == "__main__":
    sys.exit(main())
