"""The main job: a residual network on 8 x 8 digits loses 90 % and 98 % of its weights.

Data: the 1,797 digits inside scikit-learn, 1,437 to train on and 360 to test (one image
is 0.28 points). Network: `experiments.models.digits_resnet`, 77,072 kernel weights in
ten kernels, all of them ranked together, none exempt.

Methods and papers:
  swd: Tessier et al., Rethinking Weight Decay for Efficient Neural Network Pruning,
    2022. Trained from the initialization; strength 1 -> 5e6 and base decay 1e-3 where
    the paper has 0.1 -> 1e5 and 5e-4: batch norm hides small weights, and in 1,320
    steps the paper's strength does not make them small enough for 98 %.
  gsm: Ding et al., Global Sparse Momentum SGD for Pruning Very Deep Neural Networks,
    2019. From the dense network; momentum 0.95 and decay 0.04 where the paper has 0.98
    and 1e-4 for 470,000 steps; here are 880.
  swd_channels: SWD on batch-norm scales and shifts, half the FLOPs to go; then the
    channels are removed for good, the compact network is verified against the zeroed
    one, and trained on with its packed momentum.
  gradual: Zhu & Gupta, To Prune, or Not to Prune, 2017. From the dense network.
  one_shot: the largest magnitudes of the dense network, nothing trained afterwards.

Expected: dense at least 97 %; removal after SWD changes at most 2 predictions of 360
and no logit by 0.1; SWD at 98 % keeps at least 95 %, ten points or more above one-shot
even with recalibrated batch statistics; removal after GSM changes at most 3
predictions.

Ours, test accuracy after removal in percent, seeds 0 / 1 / 2 (`experiments/results/
digits_seed{0,1,2}.json`):
  dense 99.72 / 99.17 / 98.89; one-shot 98 % 10.28 / 9.72 / 9.72, with recalibrated
  statistics 28.33 / 22.50 / 14.17; gradual 98 % 96.94 / 96.94 / 96.94; GSM 10x 98.89 /
  99.17 / 99.72; SWD 98 % 98.89 / 98.33 / 98.61, no prediction changed by removal and no
  logit by more than 0.006. With batches of 64 for 40 epochs SWD at 98 % reached 96.94 /
  95.83 / 96.94 only; 60 such epochs did not help (seed 1: 96.94).

Command: `python -m experiments.train digits`. Cost: 190 s of CPU time, compilation
included.
"""

from experiments.config import Claim, Config


def get_config() -> Config:
    """The settings; seeds change initialization and batch order, never the split."""
    return Config(
        data="digits",
        model="digits_resnet",
        batch=64,
        dense={"epochs": 20, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        runs={
            "one_shot": {
                "method": "one_shot",
                "sparsity": (0.9, 0.98),
                "stats_momentum": 0.9,
            },
            "gradual": {
                "method": "gradual",
                "sparsity": (0.9, 0.98),
                "batch": 32,
                "epochs": 25,
                "end": 0.75,
                "every": 1,
                "lr": 0.05,
                "momentum": 0.9,
                "weight_decay": 5e-4,
            },
            "gsm": {
                "method": "gsm",
                "compression": 10,
                "epochs": 40,
                "lr": 0.05,
                "momentum": 0.95,
                "nesterov": False,
                "weight_decay": 0.04,
            },
            "swd": {
                "method": "swd",
                "sparsity": (0.9, 0.98),
                "batch": 32,
                "epochs": 30,
                "lr": 0.1,
                "momentum": 0.9,
                "mu": 1e-3,
                "a_min": 1.0,
                "a_max": 5e6,
            },
            "swd_channels": {
                "method": "swd_channels",
                "flops": 0.5,
                "multiple": 8,
                "epochs": 40,
                "lr": 0.1,
                "momentum": 0.9,
                "mu": 5e-4,
                "a_min": 0.1,
                "a_max": 1e6,
                "tune_epochs": 3,
                "tune_lr": 0.01,
            },
        },
        claims=CLAIMS,
    )


def _harmless(row) -> bool:
    return row.changed <= 2 and row.logit_change < 0.1


def _exact(*rows) -> bool:
    return all(row.nonzero == row.kept for row in rows)


CLAIMS = (
    Claim("dense reaches 97 %", ("dense",), lambda dense: dense.after >= 0.97),
    Claim(
        "removal after SWD changes at most 2 predictions and no logit by 0.1",
        ("swd 90%", "swd 98%"),
        lambda low, high: _harmless(low) and _harmless(high),
    ),
    Claim("SWD at 98 % keeps 95 %", ("swd 98%",), lambda swd: swd.after >= 0.95),
    Claim(
        "SWD at 98 % is 10 points above one-shot, stale and recalibrated",
        ("swd 98%", "one-shot 98%", "one-shot 98%, recalibrated"),
        lambda swd, stale, fresh: swd.after - max(stale.after, fresh.after) >= 0.1,
    ),
    Claim(
        "removal after GSM changes at most 3 predictions, costs at most 1 point, "
        "leaves 97 %",
        ("gsm 10x",),
        lambda gsm: (
            gsm.changed <= 3 and gsm.before - gsm.after <= 0.01 and gsm.after >= 0.97
        ),
    ),
    Claim(
        "removing channels changes no prediction and no logit by 0.01, and leaves at "
        "most half the FLOPs",
        ("swd channels, 50% FLOPs",),
        lambda row: (
            row.changed == 0 and row.logit_change < 0.01 and row.extra["flops"] <= 0.5
        ),
    ),
    Claim(
        "every count is exactly the one asked for",
        ("swd 90%", "swd 98%", "gsm 10x", "gradual 90%", "gradual 98%"),
        _exact,
    ),
)
