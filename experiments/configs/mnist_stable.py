"""Stable ResNet scaling on MNIST: pruning at initialization of a residual network.

Paper (Hayou et al., Robust Pruning at Initialization, ICLR 2021; its body and tables
could not be read): with branches scaled by blocks**-0.5 the gradients of a residual
network do not grow with depth, and pruning by SNIP (there SBP-SR) is better for it.

Network, ours: dense 784-100, 10 blocks y + s W relu(y) of 100 units, dense 100-10, no
norms, 179,400 kernel weights, He's initialization. `stable_mlp` has s = 10**-0.5,
`residual_mlp` s = 1. 10 training examples of each class score, SynFlow takes 100
rounds, one ranking over all kernels. Eight epochs of batch 128, momentum 0.9, cosine.
Rates: of 0.1 to 0.0001 in three epochs of dense training on 50,000 images, judged on
10,000 others, the best of each, 0.03 (97.0) and 0.003 (92.3); with s = 1 the next
larger rate, 0.01, diverges. With 30 blocks s = 1 trains at none of these rates, and the
scaled network as with 10 (96.9).

Found, three seeds, test accuracy in percent:

                 90 %           95 %           98 %           99 %
    scaled, dense 97.93 +- 0.05
      random   95.45 +-  0.12  93.37 +-  0.37  80.23 +- 14.72  50.59 +-  5.87
      SNIP     96.79 +-  0.15  95.60 +-  0.46  92.44 +-  0.76  89.01 +-  0.58
      SynFlow  95.43 +-  0.19  93.86 +-  0.44  89.89 +-  1.03  84.66 +-  1.56
    plain, dense 96.96 +- 0.11
      random   93.78 +-  0.31  90.94 +-  0.36  69.23 +- 10.21  37.11 +-  5.64
      SNIP     92.62 +-  0.80  89.67 +-  1.70  78.39 +-  2.17  57.39 +-  4.02
      SynFlow  93.10 +-  0.29  91.22 +-  0.44  83.94 +-  0.69  73.53 +-  2.67

Every claim holds in every seed. The scaled network is also easier to train. On it SNIP
is ahead of random masks and of SynFlow; on the plain one it is behind both up to 95 %
and behind SynFlow beyond. Magnitude (one scale for layers of unlike fan-in)
leaves 35 at 90 % and chance below, with or without scaling.

Cost: 12 to 19 minutes of one shared core a seed.

Command: `python -m experiments.train mnist_stable --data-dir FOLDER`.
"""

import dataclasses
from typing import Any

from experiments.config import Claim, Config

CRITERIA = ("random", "magnitude", "snip", "synflow")
SHARES = ("90%", "95%", "98%", "99%")


def get_config() -> Config:
    """The settings: the scaled network, and the plain one beside it."""
    stable = _network("stable_mlp", 0.03)
    plain = _network("residual_mlp", 0.003)
    return dataclasses.replace(stable, claims=CLAIMS, beside=(plain,))


def _network(model: str, lr: float) -> Config:
    training: dict[str, Any] = {
        "epochs": 8,
        "lr": lr,
        "momentum": 0.9,
        "weight_decay": 0.0,
    }
    return Config(
        data="mnist",
        model=model,
        batch=128,
        dense=training,
        runs={
            "at_init": {
                **training,
                "method": "prune_at_init",
                "criteria": CRITERIA,
                "sparsity": (0.9, 0.95, 0.98, 0.99),
                "prefix": "",
                "draw": (2.0, 0.0),
                "sigma_w2": 2.0,
                "per_class": 10,
                "chunks": 1,
                "temperature": 1.0,
                "rounds": 100,
            }
        },
    )


def _lost(dense: Any, pruned: Any) -> float:
    return dense.after - pruned.after


CLAIMS = (
    *(
        Claim(
            f"at {share} SNIP on the scaled network is above SNIP on the plain one",
            (f"snip {share}", f"residual_mlp snip {share}"),
            lambda stable, plain: stable.after > plain.after,
        )
        for share in SHARES
    ),
    *(
        Claim(
            f"at {share} SNIP loses less of its own dense on the scaled network",
            (
                "dense",
                f"snip {share}",
                "residual_mlp dense",
                f"residual_mlp snip {share}",
            ),
            lambda dense, row, other, plain: _lost(dense, row) < _lost(other, plain),
        )
        for share in SHARES
    ),
    Claim(
        "SNIP may remove more of the scaled network before a layer is empty",
        ("snip 90%", "residual_mlp snip 90%"),
        lambda stable, plain: stable.extra["critical"] > plain.extra["critical"],
    ),
)
