"""Steps outside `jit`, as in a first try: nothing is compiled a second time."""

import logging

import jax
import optax
import pytest

from jprune import masks
from tests.transforms.table import TABLE, gradients, tree

STEPS = 4
QUICK = ("prune_gradually-leaf", "drop_and_grow", "swd", "prune_unmoved")


def compiled(function, caplog):
    """The programs that a call compiles."""
    caplog.clear()
    with caplog.at_level(logging.DEBUG), jax.log_compiles():
        function()
    return [
        r.getMessage()
        for r in caplog.records
        if r.getMessage().startswith("Finished XLA compilation")
    ]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, marks=[pytest.mark.slow] * (c.name not in QUICK), id=c.name)
        for c in TABLE
    ],
)
def test_no_step_is_compiled_twice(case, caplog):
    tx = case.make()

    def run():
        params = tree("dict")
        state = tx.init(params)
        for t in range(STEPS):
            updates, state = tx.update(gradients(params, t), state, params)
            params = optax.apply_updates(params, updates)

    run()
    assert not compiled(run, caplog)


def test_no_mask_is_compiled_twice(caplog):
    params = tree("dict")
    above = lambda: masks.above(params, 0.5)  # noqa: E731
    above()
    assert not compiled(above, caplog)
    assert compiled(lambda: jax.jit(lambda x: x + 1)(1.0), caplog)
