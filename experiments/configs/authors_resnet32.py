"""ResNet-32 on CIFAR-10 in the authors' settings: TRP, and SNIP, GraSP, SynFlow.

TRP with the nuclear norm (Xu et al., IJCAI 2020; README): 92.26 -> 91.40 (channel, 2.2
times fewer FLOPs), 91.39 (spatial, 3.4). Settings and deviations: `authors_resnet20`.
SNIP, GraSP, SynFlow (Hayou et al., ICLR 2021; no table could be read): 10 examples of
each class, 100 rounds of SynFlow, temperature 200, He initialization; the network and
90, 95, 98 % are those of GraSP's configurations. Frankle et al. (arXiv 2009.08576):
masks shuffled within each layer are as good or better.

Deviations:
- TRP: those of `authors_resnet20`.
- at-init: training not given; taken: TRP's. Scores in train mode, SynFlow in eval mode
  (the code that was read scores all of them in eval mode). A layer's norm scale is not
  counted.

Ours: not run.
`--small`: five minutes of one core for `at_init`, see `authors.small`.

Command: `python -m experiments.train authors_resnet32 --data-dir FOLDER`, a method
alone with `--only trp` or `--only at_init`.
"""

import dataclasses

from experiments import authors
from experiments.config import Config, cheaper, combine, loses


def get_config(small: bool = False) -> Config:
    """The settings.

    Args:
      small: minutes of one core, see `authors.small`.
    """
    trp = dataclasses.replace(authors.trp("resnet32"), claims=CLAIMS)
    base = {
        name: getattr(trp, name)
        for name in ("data", "model", "batch", "augment", "dense")
    }
    whole = combine([trp, authors.at_init((0.9, 0.95, 0.98), **base)])
    if not small:
        return whole
    return authors.small(whole, 4, examples=320, tests=100)


CLAIMS = (
    loses("trp channel 0.9", 0.86),
    loses("trp spatial 0.9", 0.87),
    cheaper("trp channel 0.9", 2.2),
    cheaper("trp spatial 0.9", 3.4),
)

PAPER = {
    "dense": "92.26",
    "trp channel 0.9": "91.40",
    "trp spatial 0.9": "91.39",
}
"""The paper's test accuracy, %."""
