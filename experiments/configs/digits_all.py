"""Every method on the digits, in one table and one figure.

Everything that the configurations named `digits` or `digits_<method>` list, with those
of their claims that 360 images can decide: one image is 0.28 points, and what two
methods differ by is often less. `UNDECIDED` are the claims left out: drawn anew with
the error of that test set, the rows of their own result files bear them out in more
than 5 and less than 95 % of the draws (`experiments.page`). They are claims of their
own configurations still. Those that share a network and its dense run train it once;
the rest stand beside with their own, their rows marked by the network's name. A new
`digits_<method>.py` is taken in by being there.

Ours, seed 0, on two cores: the 194 rows of `experiments/results/digits_all_seed0.json`.
Of the claims that stay 48 hold in it and 15 do not (with those left out 70 of 100); the
document of each configuration says what is behind them. This was another processor than
that of the single results: the same seed then trains another network, and rows near a
bound change sides by an image or two.

Command: `python -m experiments.train digits_all`.
"""

import dataclasses

from experiments import config
from experiments.config import Config


def get_config() -> Config:
    """All of them, the main job first."""
    names = [name for name in config.names() if name.startswith("digits")]
    names.remove("digits_all")
    whole = config.combine([config.load(name) for name in names])
    return dataclasses.replace(
        _decided(whole), beside=tuple(_decided(part) for part in whole.beside)
    )


def _decided(part: Config) -> Config:
    left = tuple(claim for claim in part.claims if claim.text not in UNDECIDED)
    return dataclasses.replace(part, claims=left)


UNDECIDED = (
    "a common budget is no worse than one for each layer, by more than a point",
    "with r = 0.1 within 2 points of the dense network",
    "at 90% masks shuffled within each layer cost at most 2 points",
    "C-SGD with k-means is within 1 point of the dense network",
    "k-means and even clusters are within 1 point of each other",
    "one large cluster is no better than k-means",
    "C-GaP and P-GaP at 80 % are within 1 point of the dense network",
    "C-GaP is above static random masks trained as long",
    "C-GaP and P-GaP of as many rounds are within 1 point of each other",
    "three rounds of C-GaP are no worse than one, give or take an image",
    "tuned, each is within a point of the dense network",
    "ISS-R beats one-shot at 90%, recalibrated or not",
    "ISS-P 0.95 at 90% is no worse than hard thresholding",
    "ISS-P 0.5 at 90% is no worse than hard thresholding",
    "at 98 % both ways of rewinding are above one round",
    "rewinding the learning rate is no worse than rewinding the weights, less a point",
    "at every sparsity both combinations are above random pruning",
    "at every sparsity dissipating is above K-starts and random pruning",
    "tuned, MaskSparsity is at least as good as slimming, less one image of 360",
    "SR-STE at 2:4 within a point of the dense network",
    "SR-STE at 1:4 within a point of the dense network",
    "SR-STE 0.0002 at 2:4 no worse than STE",
    "SR-STE 0.002 at 2:4 no worse than STE",
    "SR-STE 0.02 at 2:4 no worse than STE",
    "SR-STE 0.0002 at 1:4 no worse than STE",
    "SR-STE 0.002 at 1:4 no worse than STE",
    "SR-STE 0.02 at 1:4 no worse than STE",
    "2:4 in stages no worse than at once, trained as long",
    "1:4 in stages no worse than at once, trained as long",
    "at 95 % every alpha above 1 is 10 points above alpha 1",
    "before pruning no alpha loses more than 2 points",
    "RigL at least as good as the static random mask at 90, 95 and 98 %",
    "RigL above the static random mask at 98 %",
    "at 70% of the FLOPs merging by the filters is ahead of plain removal",
    "no more than a point below the same N everywhere",
    "at 90 % within a point of the dense network",
    "after fine-tuning TPP is at least as good as L1, less one image of 360",
    "TRP is within 3 points of the dense network",
)
"""Claims whose rows stand too near one another for 360 test images."""
