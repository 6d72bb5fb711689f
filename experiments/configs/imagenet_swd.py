"""SWD on ImageNet with ResNet-50: prepared, smoke-tested on mock data, not run.

Paper: Tessier et al., Rethinking Weight Decay for Efficient Neural Network Pruning,
2022: ResNet-50 on ImageNet, unstructured, at several sparsities, from the
initialization, no fine-tuning.

Its setting on ImageNet is not given; taken: batch 256, 90 epochs, rate 0.1, a tenth
after 30 and 60, decay 1e-4, and a from 0.1 to 1e5, so that the last decay is 10 (50 on
CIFAR-10, see `authors_resnet20`).

Deviations: images are 64 x 64, not 224 x 224 (all of them lie in memory, see
`experiments.data.images.load_imagenet`); bfloat16 in the network; labels smoothed by
0.1; batches of 256 as 4 parts of 64. So its accuracies must not be held against the
paper's: what can be read here is SWD against one-shot pruning under one budget. Other
methods with this network: `authors_resnet50`.

Expected: SWD at 90 % loses less than one-shot, statistics recalibrated.
Ours: not run; it needs an accelerator for some days.

Command: `python -m experiments.train imagenet_swd --data-dir FOLDER`.
"""

from experiments.config import Claim, Config
from experiments.schedules import in_steps


def get_config() -> Config:
    """The settings."""
    rate = in_steps(0.1, 90, (30, 60))
    return Config(
        data="imagenet",
        model="resnet50",
        batch=256,
        augment="crop_flip",
        dense={"epochs": 90, "lr": rate, "momentum": 0.9, "weight_decay": 1e-4},
        runs={
            "one_shot": {
                "method": "one_shot",
                "sparsity": (0.9,),
                "stats_momentum": 0.99,
            },
            "swd": {
                "method": "swd",
                "sparsity": (0.9,),
                "batch": 256,
                "epochs": 90,
                "lr": rate,
                "momentum": 0.9,
                "mu": 1e-4,
                "a_min": 0.1,
                "a_max": 1e5,
            },
        },
        validation=0,
        smoothing=0.1,
        compute="bfloat16",
        accumulate=4,
        checkpoint_every=1,
        claims=CLAIMS,
    )


CLAIMS = (
    Claim(
        "SWD at 90 % is above one-shot, stale and recalibrated",
        ("swd 90%", "one-shot 90%", "one-shot 90%, recalibrated"),
        lambda swd, stale, fresh: swd.after > max(stale.after, fresh.after),
    ),
    Claim(
        "every count is exactly the one asked for",
        ("swd 90%",),
        lambda swd: swd.nonzero == swd.kept,
    ),
)
