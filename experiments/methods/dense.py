"""The dense run that the other methods start from and are held against."""

import optax

from experiments.lab import Lab
from experiments.loop import Fit, compile_program, fit
from experiments.methods.swept import sgd
from experiments.schedules import Rate, learning_rate


def train_dense(
    lab: Lab, *, epochs: int, lr: Rate, momentum: float, weight_decay: float
) -> Fit:
    """SGD with heavy ball; decay on the kernels alone.

    Args:
      lab: the shared part.
      epochs: length of the run.
      lr: see `schedules.learning_rate`.
      momentum: of heavy ball.
      weight_decay: coupled, as in the papers compared.
    """

    def transform(_: None) -> optax.GradientTransformation:
        return sgd(learning_rate(lr, epochs * lab.per_epoch), momentum, weight_decay)

    return fit(lab, compile_program(lab, transform), lab.run("dense"), epochs)
