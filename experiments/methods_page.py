"""The page of methods: what jprune implements, from which paper, and how it did.

    python -m experiments.methods_page

writes `docs/methods.md` from `METHODS`, the registry: papers as `jprune.cite` knows
them, configurations by their files, figures from `experiments/results`. Only what a
paper reports is written here.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

import jprune

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "methods.md"
RESULTS = ROOT / "experiments" / "results"


class Method(NamedTuple):
    """A row of the page.

    Attributes:
      name: as the papers call it.
      kind: a heading of the page.
      functions: public names under `jprune`; the first is the one to call.
      cite: a name that `jprune.cite` knows, or "" for our own.
      config: of `experiments/configs`; its result file at seed 0 holds our figures.
      rows: a regular expression for the runs of that file that are this method's.
      paper: what the paper reports for its own setting, where it could be read.
      where: in the paper.
    """

    name: str
    kind: str
    functions: tuple[str, ...]
    cite: str
    config: str
    rows: str
    paper: str = ""
    where: str = ""


KINDS = {
    "gradient map": "The raw gradient is masked or merged; first in a chain.",
    "penalty": "The gradient of a regularizer is added.",
    "projection": "Removed weights land on zero; last in a chain.",
    "wrapper": "Stands around a whole optimizer.",
    "reparameterization": "What is trained is not the weights; `reparam.wrap`.",
    "at initialization": "Decided before training, or in its first epochs.",
    "pure function": "A function of weights (and data), no part of a chain.",
}
"""Headings, with what the kind means."""


INTRODUCTION = """\
This page is written by `python -m experiments.methods_page` from its registry, from the
papers that `jprune.cite` knows and from the files under `experiments/results/`. Our
figures are accuracies on the test set, in percent, seed 0; before → after where
something is removed from a trained network. A paper's figures are those of its own
setting. What each claim is worth is on the [page of results](results.md)."""


METHODS = (
    Method(
        "GSM, global sparse momentum",
        "gradient map",
        ("transforms.gsm", "transforms.mask_by_saliency"),
        "gsm",
        "digits",
        "^gsm",
        "ResNet-56, CIFAR-10, 10x: 93.80 %; dense 94.05 %",
        "eq. 6-8",
    ),
    Method(
        "C-SGD, centripetal SGD",
        "gradient map",
        ("transforms.csgd", "compress.merge"),
        "csgd",
        "digits_csgd",
        "^csgd",
        "ResNet-56, CIFAR-10, 5/8 width: 93.39 → 93.44 %",
        "eq. 4-6",
    ),
    Method(
        "SWD, selective weight decay",
        "penalty",
        ("transforms.swd", "transforms.add_selective_decay"),
        "swd",
        "digits",
        r"^swd \d",
        where="section 3.2",
    ),
    Method(
        "SWD on channels",
        "penalty",
        ("transforms.swd", "surgery.shrink"),
        "swd",
        "digits",
        "^swd channels",
        where="section 3.3",
    ),
    Method(
        "MaskSparsity",
        "penalty",
        ("transforms.masksparsity", "masks.keep_by_scale"),
        "masksparsity",
        "digits_masksparsity",
        "^masksparsity",
    ),
    Method(
        "network slimming",
        "penalty",
        ("transforms.network_slimming",),
        "network_slimming",
        "digits_masksparsity",
        "^slimming",
        where="eq. 1",
    ),
    Method(
        "TPP, trainability preserving",
        "penalty",
        ("transforms.tpp", "transforms.add_decorrelation"),
        "tpp",
        "digits_tpp",
        "^tpp",
    ),
    Method(
        "SR-STE, N:M from scratch",
        "penalty",
        ("transforms.sr_ste", "reparam.straight_through"),
        "sr_ste",
        "digits_nm",
        "^(sr-)?ste",
        "ResNet-50, ImageNet: 77.0 % at 2:4, 75.9 % at 1:4",
        "section 4",
    ),
    Method(
        "ISS-R, a growing decay",
        "penalty",
        ("transforms.issr", "transforms.add_growing_decay"),
        "issr",
        "digits_issp",
        "^iss-r",
    ),
    Method(
        "TRP, trained rank pruning",
        "projection",
        ("transforms.trp", "compress.low_rank"),
        "trp",
        "digits_trp",
        "^trp",
        "ResNet-20, CIFAR-10, channel, 2.17x fewer FLOPs: 90.50 %; dense 91.74 %",
    ),
    Method(
        "hard N:M, in stages or at once",
        "projection",
        ("transforms.prune_to_n_of_m", "compress.pack_n_of_m"),
        "",
        "digits_nm",
        "^(gradual|one-shot)",
    ),
    Method(
        "ISS-P, iterative soft shrinkage",
        "projection",
        ("transforms.issp", "transforms.shrink_softly"),
        "issp",
        "digits_issp",
        "^iss-p",
    ),
    Method(
        "gradual magnitude",
        "projection",
        ("transforms.prune_gradually",),
        "prune_gradually",
        "digits",
        "^gradual",
        where="eq. 1",
    ),
    Method(
        "weight history, inspired by WeightMom's abstract",
        "projection",
        ("transforms.prune_by_weight_history",),
        "weightmom",
        "digits_weightmom",
        "^weightmom",
    ),
    Method(
        "RigL",
        "wrapper",
        ("transforms.rigl", "transforms.drop_and_grow"),
        "rigl",
        "digits_rigl",
        "^rigl",
        "ResNet-50, ImageNet, ERK: 75.12 % at 80 %, 73.07 % at 90 %; dense 76.8 %",
        "algorithm 1",
    ),
    Method(
        "SET, sparse evolutionary training",
        "wrapper",
        ("transforms.sparse_evolutionary",),
        "set",
        "digits_rigl",
        "^set",
        where="eq. 3",
    ),
    Method(
        "static random sparse",
        "wrapper",
        ("transforms.static_sparse",),
        "static_sparse",
        "digits_rigl",
        "^static",
        where="section 4",
    ),
    Method(
        "C-GaP, scheduled grow-and-prune",
        "wrapper",
        ("transforms.gap", "transforms.grow_and_prune"),
        "gap",
        "digits_gap",
        "^C-GaP",
        "ResNet-50, ImageNet, uniform: 80 %: 77.86 %, 90 %: 76.35 %",
    ),
    Method(
        "powerpropagation",
        "reparameterization",
        ("reparam.powerpropagation",),
        "powerprop",
        "mnist_powerprop",
        "^alpha [13],",
        where="eq. 1-2",
    ),
    Method(
        "straight-through masks (DPF)",
        "reparameterization",
        ("reparam.straight_through",),
        "dpf",
        "digits_straight_through",
        "^straight",
    ),
    Method(
        "Top-KAST",
        "reparameterization",
        ("reparam.top_kast",),
        "top-kast",
        "digits_rigl",
        "^top-kast",
    ),
    Method(
        "ASWL, learned attention",
        "reparameterization",
        ("reparam.learned_attention",),
        "aswl",
        "digits_aswl",
        "^aswl",
        where="eq. 1-3",
    ),
    Method(
        "ASL, adaptive sparsity loss",
        "reparameterization",
        ("reparam.learned_thresholds",),
        "asl",
        "digits_asl",
        "^asl",
    ),
    Method(
        "SLS, learned N:M",
        "reparameterization",
        ("reparam.learned_n_of_m",),
        "sls",
        "digits_sls",
        "^(sls|uniform)",
    ),
    Method(
        "learned gates on channels and blocks",
        "reparameterization",
        ("reparam.learned_gates", "surgery.shrink"),
        "gates",
        "digits_gates",
        "^gates",
        where="eq. 10-13 (the gates; the rest is ours)",
    ),
    Method(
        "shrinking scales, gates without noise",
        "reparameterization",
        ("reparam.shrinking_scales", "surgery.shrink"),
        "shrinking_scales",
        "digits_scales",
        "^scales",
        where="after it; the method is ours",
    ),
    Method(
        "SNIP",
        "at initialization",
        ("at_init.snip",),
        "snip",
        "digits_at_init",
        r"^snip \d",
        where="eq. 6",
    ),
    Method(
        "GraSP",
        "at initialization",
        ("at_init.grasp",),
        "grasp",
        "digits_at_init",
        r"^grasp \d",
        where="algorithm 1",
    ),
    Method(
        "SynFlow",
        "at initialization",
        ("at_init.synflow_mask", "at_init.synflow"),
        "synflow",
        "digits_at_init",
        r"^synflow \d",
        where="algorithm 1",
    ),
    Method(
        "SBP, robust pruning at initialization",
        "at initialization",
        ("at_init.sbp", "at_init.edge_of_chaos"),
        "sbp",
        "digits_at_init",
        "^deep_tanh edge",
    ),
    Method(
        "K-starts",
        "at initialization",
        ("at_init.k_starts",),
        "k_starts",
        "digits_kstarts",
        "^K-starts(?!, then)",
        where="abstract",
    ),
    Method(
        "dissipating gradients",
        "at initialization",
        ("at_init.dissipating", "transforms.prune_unmoved"),
        "dissipating",
        "digits_kstarts",
        r"^dissipating[ ,][ \d](?!then)",
        where="abstract",
    ),
    Method(
        "dissipating gradients and K-starts",
        "at initialization",
        ("at_init.dissipating_k_starts",),
        "dissipating_k_starts",
        "digits_kstarts",
        ", then ",
        where="abstract",
    ),
    Method(
        "P-GaP, C-GaP in parallel",
        "pure function",
        ("transforms.grow_in_parallel",),
        "p-gap",
        "digits_gap",
        "^P-GaP",
        "ResNet-50, ImageNet, uniform: 80 %: 77.49 %, 90 %: 76.13 %",
    ),
    Method(
        "magnitude, one shot",
        "pure function",
        ("transforms.finish",),
        "magnitude",
        "digits",
        "^one-shot",
    ),
    Method(
        "iterative magnitude, rewinding",
        "pure function",
        ("transforms.prune_iteratively",),
        "rewinding",
        "digits_iterative",
        "rewound",
    ),
    Method(
        "LASSO channel pruning",
        "pure function",
        ("compress.reconstruct", "compress.sample_inputs"),
        "reconstruct",
        "digits_lasso",
        "^lasso, ",
        "ResNet-50, ImageNet, 2x: 90.8 % top-5; dense 92.2 %",
        "section 3",
    ),
    Method(
        "channel similarity",
        "pure function",
        ("compress.similar_channels", "compress.remove_similar"),
        "similar_channels",
        "digits_similarity",
        "^weights ",
        "ResNet-50, ImageNet, 30 % fewer FLOPs: above the dense network",
        "abstract",
    ),
)
"""The registry."""


def page() -> str:
    """The whole page, Markdown."""
    parts = ["# Methods", INTRODUCTION]
    for kind, meaning in KINDS.items():
        parts.append(f"## {kind[0].upper()}{kind[1:]}\n\n{meaning}")
        parts += [_entry(m) for m in METHODS if m.kind == kind]
    return "\n\n".join(parts) + "\n"


def _entry(method: Method) -> str:
    calls = ", ".join(f"`{name}`" for name in method.functions)
    lines = [f"- In jprune: {calls}."]
    if method.cite:
        where = f", {method.where}" if method.where else ""
        lines.append(f"- Paper: {'; '.join(papers(method.cite))}{where}.")
    if method.paper:
        lines.append(f"- The paper reports: {method.paper}.")
    file = RESULTS / f"{method.config}_seed0.json"
    rows = ours(method)
    if rows:
        page = f"[{method.config}](results.md#{method.config})"
        where = f"{page}, `{file.relative_to(ROOT)}`"
        lines.append(f"- Ours, {where}: {'; '.join(rows)}.")
    return f"### {method.name}\n\n" + "\n".join(lines)


def papers(name: str) -> list[str]:
    """Each paper behind a method in one line, with a link where there is one."""
    return [_paper(entry) for entry in re.split(r"\n\n(?=@)", jprune.cite(name))]


def _paper(bibtex: str) -> str:
    def field(key: str) -> str:
        found = re.search(rf"^  {key} = \{{+(.*?)\}}+,$", bibtex, re.MULTILINE)
        return found[1] if found else ""

    families = [one.partition(",")[0] for one in field("author").split(" and ")]
    who = families[0] if len(families) == 1 else f"{families[0]} et al."
    if len(families) == 2:
        who = " and ".join(families)
    title = f"{who}, {field('title')}, {field('year')}"
    if arxiv := field("eprint"):
        return f"[{title}](https://arxiv.org/abs/{arxiv})"
    if doi := field("doi"):
        return f"[{title}](https://doi.org/{doi})"
    return title


def ours(method: Method) -> list[str]:
    """Our figures: the dense network, and each run of this method."""
    file = RESULTS / f"{method.config}_seed0.json"
    if not file.exists():
        return []
    rows = json.loads(file.read_text())["rows"]
    mine = [row for row in rows if re.search(method.rows, row["run"])]
    dense = [row for row in rows if row["run"] == "dense"]
    return [f"{row['run']} {_accuracy(row)}" for row in dense + mine]


def _accuracy(row: dict) -> str:
    numbers = [row.get("before"), row["after"]]
    return " → ".join(f"{100 * x:.2f}" for x in numbers if x is not None)


if __name__ == "__main__":
    PAGE.write_text(page())
