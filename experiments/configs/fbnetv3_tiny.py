"""A larger compact network, pruned, against a smaller one of its family from scratch.

Claim (Ghosh et al., Pruning Compact ConvNets for Efficient Inference, 2023, abstract):
pruned FBNetV3 models are more accurate than existing FBNetV3 models at equal
computation on ImageNet, at a fraction of the cost of a search. Only the abstract could
be read: the protocol is ours.

The larger member is `fbnetv3_tiny` (4.46 M multiply-adds at 16 x 16), the smaller one
`fbnetv3_smaller`, ours too, at about half its width. The larger is trained, cut at once
to the smaller's multiply-adds by five rules, and trained on for a quarter as long; the
smaller is trained from scratch for as long as both together. Channels leave through
surgery, depthwise kernels and squeeze-excitation with them; weights are masked, with
stem and depthwise kernels spared. "per FLOP": importance for each multiply-add saved.

Data: `cifar10_small`, the first 10,000 training and 2,000 test images of CIFAR-10 at 16
x 16, and 8 epochs. `fbnetv3` is the comparison of the published members at 32 x 32, for
an accelerator.

Found, seed 0 (`fbnetv3_tiny_seed0.json`; one standard error is 1.1 points): the larger
member 43.65; at the smaller's multiply-adds (0.378 of its own) channels by magnitude
41.55, per FLOP 41.35, weights in one share 42.85, by magnitude 43.15, per FLOP 43.35;
the smaller from scratch 43.45. At this size no pruned network is above the smaller one,
and none is decidedly below: the comparison is not decided. Cost, seconds of one core:
the smaller 753; a cut with its training about 290, beside the larger network's 1,211.

Command: `python -m experiments.train fbnetv3_tiny --data-dir FOLDER`.
"""

import dataclasses
from typing import Any

from experiments.config import Claim, Config
from experiments.methods.compact_convnets import RULES


def get_config() -> Config:
    """The settings."""
    return pair(
        Config(
            data="cifar10_small",
            model="fbnetv3_tiny",
            batch=50,
            dense={"epochs": 8, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
            runs={},
            augment="small_crop_flip",
        ),
        "fbnetv3_smaller",
        tune=2,
    )


def pair(larger: Config, smaller: str, tune: int) -> Config:
    """The larger member with its pruning runs, the smaller one beside it.

    Args:
      larger: the larger member's training.
      smaller: the model whose cost is the budget.
      tune: epochs of training after the cut, at a tenth of the rate.
    """
    cut: dict[str, Any] = {
        **larger.dense,
        "method": "compact_convnets",
        "smaller": smaller,
        "rules": RULES,
        "spare": "stem|depthwise",
        "epochs": tune,
        "lr": 0.1 * larger.dense["lr"],
    }
    longer = {**larger.dense, "epochs": larger.dense["epochs"] + tune}
    scratch = dataclasses.replace(larger, model=smaller, dense=longer)
    claims = tuple(
        Claim(
            f"cut by {rule}, the larger member is above the smaller one from scratch",
            (f"{smaller} dense", rule),
            lambda smaller, row: row.after > smaller.after,
        )
        for rule in RULES
    )
    return dataclasses.replace(
        larger, runs={"compact": cut}, claims=claims, beside=(scratch,)
    )
