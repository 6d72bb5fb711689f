"""ResNet-50 on ImageNet in the authors' settings: RigL, GSM, MaskSparsity and GaP.

RigL (Evci et al., ICML 2020; its README), Erdos-Renyi-kernel masks: dense 76.8, 75.12
at 80 % and 73.07 at 90 %, training of the usual length. Of the weights 0.3 move
every 100 steps until step 25,000 of 32,000 [recalled], along a cosine; labels smoothed
by 0.1.
GSM (Ding et al., NeurIPS 2019, poster): 75.72 -> 75.33 at 4x, 74.30 at 5x. Batch 64,
momentum 0.99, 40 epochs at 1e-3, 10 at 1e-4, 10 at 1e-5 [recalled].
MaskSparsity (Jiang et al., 2022/23, abstract): 0.76 points lost at 51.07 % fewer FLOPs.
Baseline, global sparsity and MaskSparsity 100 epochs each, batch 256, rate 0.1, a tenth
after 30, 60 and 90, Nesterov 0.9, decay 1e-4, strength 5e-4, threshold 0.01; 40 epochs
of fine-tuning at 5e-4, a tenth after 10, 20 and 30.
GaP (Ma et al., ICLR 2022; its README), uniform sparsity, four parts: C-GaP 77.856 at
80 % and 76.348 at 90 %, P-GaP 77.492 and 76.128. 28 steps of 30 epochs, or 8 rounds,
and 150 of fine-tuning [recalled].

Deviations:
- all: images of 64 x 64, not 224 x 224, which lie in memory (`imagenet_swd`): no
  accuracy may be held against the papers' own, only the losses. The network computes
  in bfloat16, a batch in 4 parts (RigL's in 16).
- RigL: batch and rate not given; taken: 4,096, 102 epochs (31,824 steps), rate 1.6 with
  5 epochs of warm-up, a tenth after 30, 70 and 90; decay 1e-4, momentum 0.9. The first
  layer is pruned too; theirs stays dense.
- GSM: base training not given; taken: MaskSparsity's.
- MaskSparsity: heavy ball in the base and in fine-tuning, no decay of the norms there.
- GaP: parts, rate, batch not given; taken: the four stages, the stem with the first and
  the dense layer with the last; a cosine from 0.1 in each step, batch 256, decay 1e-4.
  First and last layer are pruned too; 990 and 1,110 epochs in all.

TPP's ratios differ by stage and C-SGD's widths by layer, which their runs here have no
setting for; TRP's settings on ImageNet are not given. SWD: `imagenet_swd`.

Ours: not run; it needs an accelerator for weeks.
`--small`: seven minutes of one core [estimated], see `authors.small`.

Command: `python -m experiments.train authors_resnet50 --data-dir FOLDER`, a method
alone with `--only rigl,static`, `gsm4`, `gsm5`, `masksparsity`, `gap`.
"""

from typing import Any

from experiments import authors
from experiments.config import (
    Claim,
    Config,
    cheaper,
    combine,
    exact,
    loses,
)
from experiments.schedules import in_steps


def get_config(small: bool = False) -> Config:
    """The settings.

    Args:
      small: minutes of one core, see `authors.small`.
    """
    whole = combine([_rigl(), _masksparsity_and_gsm(), _gap()])
    if not small:
        return whole
    return authors.small(whole, 3, examples=128, tests=100)


IMAGENET: dict[str, Any] = {
    "data": "imagenet",
    "model": "resnet50",
    "augment": "crop_flip",
    "compute": "bfloat16",
    "accumulate": 4,
    "checkpoint_every": 1,
}


def _rigl() -> Config:
    shared: dict[str, Any] = {
        "epochs": 102,
        "lr": in_steps(1.6, 102, (30, 70, 90), warmup=5),
        "momentum": 0.9,
        "weight_decay": 1e-4,
    }
    run = {
        **shared,
        "method": "dynamic_sparse",
        "sparsity": (0.8, 0.9),
        "drop_fraction": 0.3,
        "every": 100,
        "end": 25 / 32,
    }
    return Config(
        **{**IMAGENET, "accumulate": 16},
        batch=4096,
        smoothing=0.1,
        dense=shared,
        runs={
            "rigl": {**run, "recipe": "rigl"},
            "static": {**run, "recipe": "static"},
        },
        claims=RIGL,
    )


def _masksparsity_and_gsm() -> Config:
    shared: dict[str, Any] = {
        "epochs": 100,
        "lr": in_steps(0.1, 100, (30, 60, 90)),
        "momentum": 0.9,
        "weight_decay": 1e-4,
    }
    return Config(
        **IMAGENET,
        batch=256,
        dense=shared,
        runs={
            **{f"gsm{x}": _gsm(x) for x in (4, 5)},
            "masksparsity": {
                **shared,
                "method": "masksparsity",
                "strength": (5e-4,),
                "threshold": 0.01,
                "tune_epochs": 40,
                "tune_lr": in_steps(5e-4, 40, (10, 20, 30)),
            },
        },
        claims=MASKSPARSITY_AND_GSM,
    )


def _gsm(compression: int) -> dict[str, Any]:
    return {
        "method": "gsm",
        "compression": compression,
        "epochs": 60,
        "lr": in_steps(1e-3, 60, (40, 50)),
        "momentum": 0.99,
        "nesterov": False,
        "weight_decay": 1e-4,
    }


def _gap() -> Config:
    shared = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    return Config(
        **IMAGENET,
        batch=256,
        dense={**shared, "epochs": 90},
        runs={
            "gap": {
                **shared,
                "method": "gap",
                "sparsity": (0.8, 0.9),
                "partitions": STAGES,
                "epochs": 30,
                "cyclic_rounds": (7,),
                "parallel_rounds": (8,),
                "tune_epochs": 150,
            },
        },
        claims=GAP,
    )


STAGES = (
    r"(Conv|BatchNorm)_(\d|10)/",
    r"(Conv|BatchNorm)_(1[1-9]|2[0-3])/",
    r"(Conv|BatchNorm)_(2[4-9]|3\d|4[0-2])/",
    r"(Conv|BatchNorm)_(4[3-9]|5\d)/|Dense_0/",
)
"""Stem and first stage, and each of the three others, the last with the head."""

RIGL = (
    loses("rigl 80%", 1.68),
    loses("rigl 90%", 3.73),
    *(
        Claim(
            f"RigL at {share} % is above a random mask that stands still",
            (f"rigl {share}%", f"static {share}%"),
            lambda ours, other: ours.after > other.after,
        )
        for share in (80, 90)
    ),
)

MASKSPARSITY_AND_GSM = (
    loses("gsm 4x", 0.39),
    loses("gsm 5x", 1.42),
    exact("gsm 4x", "gsm 5x"),
    loses("masksparsity 0.0005", 0.76, extra="tuned"),
    cheaper("masksparsity 0.0005", 1 / (1 - 0.5107)),
)

CYCLIC, PARALLEL = "C-GaP {}%, 7 rounds", "P-GaP {}%, 8 rounds"

GAP = (
    *(
        Claim(
            f"{form.format(80)} is not below the dense network",
            ("dense", form.format(80)),
            lambda dense, row: row.after >= dense.after,
        )
        for form in (CYCLIC, PARALLEL)
    ),
    *(
        Claim(
            f"at {share} % C-GaP is above P-GaP",
            (CYCLIC.format(share), PARALLEL.format(share)),
            lambda ours, other: ours.after > other.after,
        )
        for share in (80, 90)
    ),
    exact(*(f.format(share) for f in (CYCLIC, PARALLEL) for share in (80, 90))),
)

PAPER = {
    "dense": "76.8",
    "rigl 80%": "75.12",
    "rigl 90%": "73.07",
    "resnet50 2 dense": "75.72",
    "resnet50 2 gsm 4x": "75.33",
    "resnet50 2 gsm 5x": "74.30",
    f"resnet50 3 {CYCLIC.format(80)}": "77.856",
    f"resnet50 3 {CYCLIC.format(90)}": "76.348",
    f"resnet50 3 {PARALLEL.format(80)}": "77.492",
    f"resnet50 3 {PARALLEL.format(90)}": "76.128",
}
"""The papers' accuracy at 224 x 224, %."""
