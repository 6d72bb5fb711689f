"""LeNet-5 on MNIST in the authors' settings: GSM at 125x and 300x, and four more.

GSM (Ding et al., NeurIPS 2019, tables 1 and 4): dense 99.21; 125x 99.22, 300x 99.06.
Winning tickets at 125x 97.60 by magnitude and 99.04 by GSM, at 300x 11.35 (chance) and
98.88. Network: Caffe's, 430,500 kernel weights; 3,444 and 1,435 are active.

Settings and the other papers: `authors_lenet300`, whose parts these are with another
network.

Deviations: those of `authors_lenet300`; and a mask of the largest weights leaves one
in every layer, so that at 300x magnitude cannot empty one.

Ours: not run; a day of one core [estimated from 30 s an epoch], minutes with `--small`,
a hundredth of the epochs and without K-starts (its convolutions are inside a loop,
which XLA runs ten times slower on a CPU).

Command: `python -m experiments.train authors_lenet5 --data-dir FOLDER`, a method alone
with `--only gsm125`, `gsm300`, `at_init`, `aswl`, `asl`, `k_starts`.
"""

from experiments.config import Claim, Config, loses, shortened
from experiments.configs.authors_lenet300 import counts, lenet, without


def get_config(small: bool = False) -> Config:
    """The settings.

    Args:
      small: a hundredth of the epochs, without K-starts.
    """
    whole = lenet("lenet5", (125, 300), CLAIMS, scope="Conv|Dense_0/kernel")
    return shortened(without(whole, "k_starts"), 0.01, 0.01) if small else whole


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
    counts("125x"),
    counts("300x"),
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
