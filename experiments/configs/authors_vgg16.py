"""VGG-16 on CIFAR-10 in the authors' settings: ASWL and WeightMom.

ASWL (He, Shi, Dong, arXiv 2111.02399; no numbers could be read): weights and the
sparsity of every layer are learned from scratch in one run. Batch 32, rate 1e-3 for
weights and attentions, a tenth after 32,000 and 48,000 steps, momentum 0.9, decay 1e-4,
gamma 5, alpha 1, r = 0, a tenth of the training set held back.
WeightMom (Johnson et al., arXiv 2208.05970; abstract alone): 15 times fewer weights
for the loss that earlier methods have with more.

Deviations:
- all: 13 convolutions with batch norm and one dense layer; not given.
- ASWL: length not given; taken: 64,676 steps. Shifts of up to 4 pixels, not a tenth. A
  norm behind a layer cancels its attention's scale, here as there.
- WeightMom: every setting not given; taken, as its specification suggests: beta 0.99,
  gamma 1, from 10 to 75 % of the run, every 100 steps, momentum 0.9; training of 160
  epochs at batch 128 after a dense run of as many. Against beta 0 and gamma 0, gradual
  pruning by magnitude.

Ours: not run.
`--small`: five minutes of one core [estimated], see `authors.small`.

Command: `python -m experiments.train authors_vgg16 --data-dir FOLDER`, a method alone
with `--only aswl` or `--only weightmom`.
"""

from typing import Any

from experiments import authors
from experiments.config import Claim, Config, combine, exact
from experiments.schedules import in_steps


def get_config(small: bool = False) -> Config:
    """The settings.

    Args:
      small: minutes of one core, see `authors.small`.
    """
    aswl = authors.aswl("cifar10", "vgg16", held=5000, epochs=46)
    whole = combine([aswl, _weightmom()])
    if not small:
        return whole
    return authors.small(whole, 3, examples=128, tests=100)


def _weightmom() -> Config:
    shared: dict[str, Any] = {
        "epochs": 160,
        "lr": in_steps(0.05, 160, (80, 120)),
        "momentum": 0.9,
        "weight_decay": 5e-4,
    }
    return Config(
        data="cifar10",
        model="vgg16",
        batch=128,
        augment="crop_flip",
        dense=shared,
        runs={
            "weightmom": {
                **shared,
                "method": "weightmom",
                "sparsity": (14 / 15,),
                "strengths": ((0.0, 0.0), (0.99, 1.0)),
                "batch": 128,
                "begin": 0.1,
                "end": 0.75,
                "every": 100,
            },
        },
        claims=CLAIMS,
    )


PLAIN, HISTORY = (
    f"weightmom 93.3333% beta {beta:g} gamma {gamma:g}"
    for beta, gamma in ((0, 0), (0.99, 1))
)

CLAIMS = (
    Claim(
        "at 15x the history of the weights loses no more than gradual magnitude",
        (PLAIN, HISTORY),
        lambda plain, history: history.after >= plain.after,
    ),
    exact(PLAIN, HISTORY),
)
