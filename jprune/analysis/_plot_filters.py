"""A figure of how scale-invariant filters move in training."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jprune._errors import value_error
from jprune.analysis._plots import _figure


def plot_filters(
    logs: Sequence[Any],
    *,
    angle: float | None = None,
    steps: Sequence[int] | None = None,
) -> Any:
    """The turn of a step and the length of filters against the step, a curve a layer.

    Args:
      logs: states of `transforms.log_filters`, one for each step that was kept.
      angle: where the angles settle (`analysis.equilibrium`), a dashed line.
      steps: of the logs; 0, 1, ... by default.

    Returns:
      A matplotlib figure of two panels; a curve is the mean over the layer's filters.

    Raises:
      ImportError: if matplotlib is missing; names the extra that brings it.
      ValueError: `logs` is empty.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jprune import analysis, transforms
      >>> def net(p, x):
      ...     h = x @ p["w"]
      ...     return h * jax.lax.rsqrt((h * h).mean(0)[None])
      >>> p = {"w": jnp.ones((2, 2))}
      >>> groups = analysis.scale_invariance(net, p, jnp.eye(2)).groups
      >>> state = transforms.log_filters(groups).init(p)
      >>> [a.get_ylabel() for a in analysis.plot_filters([state], angle=0.01).axes]
      ['turn of a step (rad)', 'length']
    """
    if not len(logs):
        raise value_error("`logs` is empty: keep the states of `log_filters`.")
    at = list(range(len(logs))) if steps is None else list(steps)
    figure = _figure(8.0, 5.0)
    panels = figure.subplots(2, 1, sharex=True)
    for name in logs[0].angle:
        for panel, of in zip(panels, ("angle", "norm"), strict=True):
            curve = [float(np.mean(getattr(log, of)[name])) for log in logs]
            panel.plot(at, curve, label=name)
    if angle is not None:
        panels[0].axhline(angle, color="black", linestyle="--", label="equilibrium")
    for panel, label in zip(panels, ("turn of a step (rad)", "length"), strict=True):
        panel.set_yscale("log")
        panel.set_ylabel(label)
    panels[1].set_xlabel("step")
    panels[0].legend(fontsize="x-small")
    return figure
