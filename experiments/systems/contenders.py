"""The contenders of the arena, by the names that a configuration has for them."""

from collections.abc import Callable
from typing import Any

from experiments.systems import arena, mnist
from experiments.systems import contenders_cut as cut
from experiments.systems import contenders_early as early
from experiments.systems import contenders_trained as trained
from experiments.systems.runner import Runner

METHODS: dict[str, Callable[..., Any]] = {
    "asl": trained.asl,
    "aswl": trained.aswl,
    "dissipating": early.dissipating,
    "gap": trained.gap,
    "gradual": trained.gradual,
    "grasp": early.grasp,
    "gsm": cut.gsm,
    "issp": trained.issp,
    "issr": trained.issr,
    "iterative": cut.iterative,
    "k_starts": early.k_starts,
    "one_shot": cut.one_shot,
    "powerprop": cut.powerprop,
    "rigl": trained.rigl,
    "sbp": early.sbp,
    "set": trained.sparse_evolutionary,
    "snip": early.snip,
    "static": trained.static,
    "straight_through": trained.straight_through,
    "swd": trained.swd,
    "synflow": early.synflow,
    "top_kast": trained.top_kast,
    "weightmom": trained.weightmom,
}

RUNNER = Runner(
    open=mnist.open_mnist,
    dense=arena.train_dense,
    methods=METHODS,
    data=mnist.DATA,
    models=mnist.MODELS,
)
