"""LeNet-5 on MNIST in the authors' settings: GSM at 125x and 300x, and four more.

GSM (Ding et al., NeurIPS 2019, tables 1 and 4): dense 99.21; 125x 99.22, 300x 99.06.
Winning tickets at 125x 97.60 by magnitude and 99.04 by GSM, at 300x 11.35 (chance) and
98.88. Network: Caffe's, 430,500 kernel weights; 3,444 and 1,435 are active. Their
lottery script: batch 256, decay 5e-4 on kernels, warm-up of 5 epochs; base 200 epochs,
momentum 0.9, rate 3e-2, a tenth after 40, 80, 120, 160; GSM 280 epochs, momentum 0.99
(Nesterov), rate 1e-2, a tenth after 160, 200, 240.

`mnist_gsm_lenet5` is GSM a tenth as long, at a rate that makes up for it. The other
papers: `authors_lenet300`, whose parts these are with another network.

Deviations:
- GSM: inputs standardized, initialization Flax's, heavy ball in the base and for the
  tickets; not given. A mask of the largest weights leaves one in every layer, so that
  at 300x magnitude cannot empty one.
- the others: those of `authors_lenet300`.

Ours: not run; a day of one core [estimated from 30 s an epoch], K-starts longer (its
convolutions are inside a loop, which XLA runs ten times slower on a CPU).
`--small`: six minutes of one core [estimated; K-starts and ASL 4], see `authors.small`.

Command: `python -m experiments.train authors_lenet5 --data-dir FOLDER`, a method alone
with `--only gsm125`, `gsm300`, `at_init`, `aswl`, `asl`, `k_starts`.
"""

from typing import Any

from experiments import authors
from experiments.config import (
    Claim,
    Config,
    combine,
    exact,
    loses,
)
from experiments.configs.authors_lenet300 import base, lenet
from experiments.schedules import in_steps


def get_config(small: bool = False) -> Config:
    """The settings.

    Args:
      small: minutes of one core, see `authors.small`.
    """
    runs = {f"gsm{x}": _gsm(x) for x in (125, 300)}
    gsm = Config(**base("lenet5"), runs=runs, claims=CLAIMS)
    whole = combine([gsm, lenet("lenet5", scope="Conv|Dense_0/kernel")])
    if not small:
        return whole
    return authors.small(whole, 4, examples=320, tests=500)


def _gsm(compression: int) -> dict[str, Any]:
    return {
        "method": "gsm_tickets",
        "compression": compression,
        "epochs": 280,
        "lr": in_steps(1e-2, 280, (160, 200, 240), warmup=5),
        "momentum": 0.99,
        "nesterov": True,
        "weight_decay": 5e-4,
    }


def _counts(end: str) -> Claim:
    return exact(
        *(f"{kind} {end}" for kind in ("gsm", "one-shot")),
        *(f"ticket by {kind} {end}" for kind in ("magnitude", "GSM")),
    )


def _tickets(end: str, points: float) -> Claim:
    return Claim(
        f"the ticket by GSM at {end} is above the one by magnitude, by {points:g} "
        "points",
        (f"ticket by magnitude {end}", f"ticket by GSM {end}"),
        lambda magnitude, gsm: 100 * gsm.after >= 100 * magnitude.after + points,
    )


CLAIMS = (
    loses("gsm 125x", -0.01),
    loses("gsm 300x", 0.15),
    _tickets("125x", 1),
    _tickets("300x", 50),
    _counts("125x"),
    _counts("300x"),
)

PAPER = {
    "dense": "99.21",
    "gsm 125x": "99.22",
    "gsm 300x": "99.06",
    "ticket by magnitude 125x": "97.60",
    "ticket by GSM 125x": "99.04",
    "ticket by magnitude 300x": "11.35",
    "ticket by GSM 300x": "98.88",
}
"""The paper's test accuracy, %."""
