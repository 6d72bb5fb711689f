"""The proof table: every test network, compact against the zeroed dense model.

    python -m experiments.bench.networks [--out docs/networks.md] [--only NAME]

For each network of `tests/surgery`, one random plan that removes about 40 % of every
group at once. All figures are measured in this run: how many groups were found and what
share of the parameters they reach (with the hand-written minima), parameters and FLOPs
before and after, and the largest relative differences in float64 (forward, gradient,
train mode with returned statistics, another batch size, an ensemble under `vmap`) and
in float32. The command exits with 1 if a bound is missed.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jprune import analysis, surgery
from tests.surgery.flax_nets import FLAX_NETS
from tests.surgery.nets import Net, total
from tests.surgery.other_nets import OTHER_NETS
from tests.surgery.proof import (
    FRACTION,
    coupled,
    errors,
    other_batch_and_ensemble,
    random_plan,
    reached,
    training_plan,
)
from tests.surgery.sequence_nets import SEQUENCE_NETS

NETS = FLAX_NETS + SEQUENCE_NETS + OTHER_NETS
BOUNDS = {"double": 1e-10, "single": 1e-5, "train": 1e-3}


class Row(NamedTuple):
    """One network.

    Attributes:
      net: the network with its minima.
      groups: coupled groups found.
      reach: fraction of the scalars that lie on a removable coordinate.
      parameters, operations: before and after.
      forward, gradient: float64, eval mode.
      train: float64, train mode, worst of output, gradient and statistics; None
        without.
      others: float64, another batch size and an ensemble.
      single: float32, eval mode, worst of forward and gradient.
      single_train: float32, train mode; None without.
    """

    net: Net
    groups: int
    reach: float
    parameters: tuple[int, int]
    operations: tuple[int, int]
    forward: float
    gradient: float
    train: float | None
    others: float
    single: float
    single_train: float | None

    @property
    def holds(self) -> bool:
        """Whether the minima and every bound hold."""
        double = (self.forward, self.gradient, self.train or 0.0, self.others)
        return (
            self.groups >= self.net.groups
            and self.reach >= least_reach(self.net, self.parameters[0])
            and max(double) <= BOUNDS["double"]
            and self.single <= BOUNDS["single"]
            and (self.single_train or 0.0) <= BOUNDS["train"]
        )


def least_reach(net: Net, scalars: int) -> float:
    """The hand-written minimum of the removable fraction."""
    return 1 - net.fixed / scalars


def measure(net: Net) -> Row:
    """Runs one network in all its forms."""
    with jax.enable_x64(True):
        case = net.make()
        deps = surgery.groups(case.apply)(case.variables, *case.args)
        plan = random_plan(deps)
        packed = plan.pack(case.variables)
        small = surgery.shrink(case.apply, plan)
        operations = (
            analysis.flops(case.apply)(case.variables, *case.args),
            analysis.flops(small)(packed, *case.args),
        )
        double = errors(case, plan)
        training = net.make(train=True) if net.train else None
        kept = training_plan(net, training) if training else plan
        train = max(errors(training, kept)) if training else None
        others = other_batch_and_ensemble(net, case, plan)
    single = max(errors(case, plan, np.float32))
    single_train = max(errors(training, kept, np.float32)) if training else None
    scalars = total(case.variables)
    return Row(
        net,
        len(coupled(deps)),
        reached(deps, case.variables) / scalars,
        (scalars, total(packed)),
        operations,
        double.forward,
        double.gradient,
        train,
        others,
        single,
        single_train,
    )


HEADER = f"""# Networks that surgery is proved on

Written by `python -m experiments.bench.networks`; do not edit. Each network lost about
{FRACTION:.0%} of every group at once (one random plan) and was compared with the dense
network whose removed parts are zeroed. Figures are the largest absolute difference over
the largest reference value of the leaf, or a hundredth of the largest of all where that
is more (the gradient of an attention's key bias is 0). *groups* and *reach* (the share
of all scalars that lie on a removable coordinate) stand beside the minimum written by
hand in `tests/surgery`; *train* covers the output, the gradient and the returned
statistics, under the same plan; *others* another batch size and an ensemble of two
under `vmap`.

Bounds: float64 {BOUNDS["double"]:.0e}; float32 {BOUNDS["single"]:.0e} in eval mode and
{BOUNDS["train"]:.0e} in train mode.
"""


def table(rows: list[Row]) -> str:
    """The page, in Markdown."""
    titles = (
        "network",
        "groups (min)",
        "reach % (min)",
        "scalars",
        "MFLOP",
        "f64 forward",
        "f64 gradient",
        "f64 train",
        "f64 others",
        "f32",
        "f32 train",
    )
    lines = [
        "| " + " | ".join(titles) + " |",
        "|---" + "|--:" * (len(titles) - 1) + "|",
    ]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    versions = f"jax {jax.__version__}, {jax.devices()[0].platform}"
    return f"{HEADER}\nMeasured with {versions}.\n\n" + "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    least = least_reach(row.net, row.parameters[0])
    dense, compact = row.operations
    return [
        row.net.name,
        f"{row.groups} ({row.net.groups})",
        f"{100 * row.reach:.2f} ({100 * least:.2f})",
        f"{row.parameters[0]} -> {row.parameters[1]}",
        f"{dense / 1e6:.3g} -> {compact / 1e6:.3g}",
        *map(
            _figure,
            (row.forward, row.gradient, row.train, row.others, row.single),
        ),
        _figure(row.single_train),
    ]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}" if value else "0"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/networks.md"))
    parser.add_argument("--only", help="networks whose name contains this; no file")
    args = parser.parse_args()
    rows = []
    for net in NETS:
        if args.only and args.only not in net.name:
            continue
        rows.append(measure(net))
        print("ok  " if rows[-1].holds else "FAIL", *_cells(rows[-1]), sep="  ")
    if not args.only:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(table(rows))
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
