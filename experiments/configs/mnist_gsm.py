"""GSM on MNIST at 60x, and its winning tickets.

Claims (Ding et al., Global Sparse Momentum SGD, NeurIPS 2019, tables 1 and 4):
LeNet-300-100 keeps its accuracy at 60 times fewer weights (98.19 -> 98.18 %), without
training afterwards; and the positions GSM keeps are better lottery tickets than the
largest weights of the trained network (98.22 against 97.39 % at 60x).

4,436 weights are active in each step, 4,437 stay: the authors' two counts. Momentum
0.99, decay 5e-4 on the kernels, 240 epochs with drops after 160 and 200, batch 256,
warm-up of 5 epochs. A ticket is the initial network under a mask, trained as the dense
one was.

Two settings of the authors are known, and neither is whole. This one is the paper's
text as it is remembered: rate 3e-2, heavy ball, drops after 160 and 200 of 240 epochs.
Its lottery script has rate 1e-2, Nesterov, drops after 160, 200 and 240 of 280;
`mnist_gsm_lottery` is that script. Its 200 dense epochs with drops at 40, 80, 120 and
160 are used here too. Deviations of both: inputs standardized, as PyTorch loaders do
[inferred], He initialization.

Found, mean of three seeds (`mnist_gsm_seed0.json`): dense 98.40; GSM at 60x 98.29
before the removal and 98.22 after it, so 0.18 points below the dense network (0.16,
0.33 and 0.06) where the paper loses 0.01. Its accuracy is the paper's, our dense
network is 0.2 points above the paper's. From a dense network of 80 epochs it was 0.28
points below. One-shot removal of the dense network 34.61. Tickets: by magnitude 96.78,
by GSM 98.06 (paper 97.39, 98.22).

By the lottery script: dense 98.40, GSM 98.17 before the removal and 96.14 after it;
tickets 96.78 and 98.05: as in the paper those by GSM are better. As a way to prune it
loses 2 points here. A likely reason, computed and not tested: after epoch 160 rate x
decay / (1 - momentum) adds up to 0.5, so a weight that leaves the active set then keeps
0.6 of itself; with the rate 3e-2 of above it is 1.5 and 0.2.

Cost: 55 minutes of one shared core for three seeds (the lottery script 75, more widely
shared); `--set setup.seeds=1` runs one.

Command: `python -m experiments.train mnist_gsm --data-dir FOLDER`.
"""

from experiments.config import Claim, Config


def get_config() -> Config:
    """The settings."""
    return Config(
        runner="mnist",
        data="mnist",
        model="lenet300",
        batch=256,
        setup={"seeds": 3, "inputs": "standardized", "init": "he", "validation": 0},
        dense={
            "epochs": 200,
            "lr": 3e-2,
            "drops": (40, 80, 120, 160),
            "warmup": 5,
            "momentum": 0.9,
            "weight_decay": 5e-4,
        },
        runs={
            "gsm": {
                "method": "gsm",
                "compression": 60,
                "epochs": 240,
                "lr": 3e-2,
                "drops": (160, 200),
                "warmup": 5,
                "momentum": 0.99,
                "nesterov": False,
                "weight_decay": 5e-4,
                "tickets": True,
            },
        },
        claims=CLAIMS,
    )


CLAIMS = (
    Claim(
        "after removal GSM is within 0.15 points of the dense network",
        ("dense", "gsm 60x"),
        lambda dense, gsm: gsm.after >= dense.after - 0.0015,
    ),
    Claim(
        "the ticket by GSM is above the ticket by magnitude",
        ("ticket by magnitude 60x", "ticket by GSM 60x"),
        lambda magnitude, gsm: gsm.after > magnitude.after,
    ),
    Claim(
        "every count is exactly the one asked for",
        ("gsm 60x", "one-shot 60x", "ticket by magnitude 60x", "ticket by GSM 60x"),
        lambda *rows: all(row.nonzero == row.kept for row in rows),
    ),
)

PAPER = {
    "dense": "98.19",
    "gsm 60x": "98.18",
    "ticket by magnitude 60x": "97.39",
    "ticket by GSM 60x": "98.22",
}
"""The paper's test accuracy, %, for rows in its setting."""
