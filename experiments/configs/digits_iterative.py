"""Iterative magnitude pruning on digits: what every other method is compared with.

Claims: pruned in rounds, a network keeps more than pruned once and trained again for as
long as one round (Han et al., NeurIPS 2015); rewinding the learning rate alone is as
good as rewinding the weights too (Renda, Frankle and Carbin, ICLR 2020, which finds it
no worse on CIFAR-10 and ImageNet).

Network: dense 64-300-100-10, 50,200 weights. Every round trains from the start of the
schedule; weights go back to where the second epoch left them.

Ours, seed 0, all claims hold (accuracy after six rounds, and after a single one;
dense 97.22, one-shot at 90 % without training 90.83):

            weights rewound  rate rewound  one round
    90 %         97.50           98.06       96.39
    98 %         96.39           97.22       95.28

Cost: a minute of CPU time. Command: `python -m experiments.train digits_iterative`.
"""

from experiments.config import Claim, Config

AGAIN = ("mnist_arena",)


def get_config() -> Config:
    """The settings; data, network and dense run are those of `digits_aswl`."""
    return Config(
        data="digits",
        model="lenet300",
        batch=64,
        dense={"epochs": 30, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        runs={
            "one_shot": {
                "method": "one_shot",
                "sparsity": (0.9,),
                "stats_momentum": None,
            },
            "iterative": {
                "method": "iterative",
                "sparsity": (0.9, 0.98),
                "rounds": 6,
                "early_epochs": 2,
                "epochs": 30,
                "lr": 0.1,
                "momentum": 0.9,
                "weight_decay": 5e-4,
            },
        },
        claims=CLAIMS,
    )


WEIGHTS = ("weights rewound 90%", "weights rewound 98%")
RATE = ("rate rewound 90%", "rate rewound 98%")
ONE = ("one round 90%", "one round 98%")

CLAIMS = (
    Claim(
        "at 98 % both ways of rewinding are above one round",
        (WEIGHTS[1], RATE[1], ONE[1]),
        lambda weights, rate, one: min(weights.after, rate.after) > one.after,
    ),
    Claim(
        "rewinding the learning rate is no worse than rewinding the weights, less a "
        "point",
        (*WEIGHTS, *RATE),
        lambda *rows: all(
            rate.after >= weights.after - 0.01
            for weights, rate in zip(rows[:2], rows[2:], strict=True)
        ),
    ),
    Claim(
        "every count is exactly the one asked for",
        (*WEIGHTS, *RATE, *ONE),
        lambda *rows: all(row.nonzero == row.kept for row in rows),
    ),
)
