"""The dense run that the other methods start from and are held against."""

import optax

from experiments.lab import Lab
from experiments.loop import Fit, compile_program, fit
from experiments.methods.swept import sgd
from experiments.schedules import warmup_cosine


def train_dense(
    lab: Lab, *, epochs: int, lr: float, momentum: float, weight_decay: float
) -> Fit:
    """SGD with heavy ball; a cosine after a warm-up; decay on the kernels alone.

    Args:
      lab: the shared part.
      epochs: length of the run.
      lr: where the cosine starts.
      momentum: of heavy ball.
      weight_decay: coupled, as in the papers compared.
    """

    def transform(_: None) -> optax.GradientTransformation:
        return sgd(warmup_cosine(lr, epochs * lab.per_epoch), momentum, weight_decay)

    return fit(lab, compile_program(lab, transform), lab.run("dense"), epochs)
