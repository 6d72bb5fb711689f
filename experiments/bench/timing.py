"""Timing on a machine that is never quiet: turns, medians, and what machine it was."""

import os
import platform
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np


def in_turns(
    steps: Mapping[str, Callable[[], None]], repeats: int
) -> dict[str, np.ndarray]:
    """Seconds of each call, one call of every step in each round.

    The i-th times of all steps were taken side by side, so a ratio of them is fair even
    when another process takes part of the machine. Each step must block until done.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return {name: np.asarray(t) for name, t in times.items()}


def machine() -> dict[str, object]:
    """What the figures were taken on, and how busy it was."""
    return {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "jax": jax.__version__,
        "python": platform.python_version(),
    }
