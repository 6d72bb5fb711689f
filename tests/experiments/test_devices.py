"""One device against eight: the same masks, step by step, and the same accuracy.

Each half is a process of its own: the number of devices is settled when JAX starts.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow

STEPS = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jprune import masks, transforms

mesh = jax.make_mesh((jax.device_count(),), ("d",), (AxisType.Auto,))
# One process reads what the other has written: equal parameters and gradients.
given = np.load(sys.argv[1])
names = ("a/kernel", "b/kernel", "c/kernel")
rules = {
    "swd": (transforms.swd(0.1, mu=1e-3, total_steps=20, sparsity=0.9), False),
    "gsm": (transforms.gsm(0.1, weight_decay=1e-2, sparsity=0.9, total_steps=20), False),
    "gradual": (
        optax.chain(
            optax.sgd(0.1, 0.9), transforms.prune_gradually(0.9, end=15, every=2)
        ),
        True,
    ),
    "rigl": (transforms.rigl(0.1, sparsity=0.9, total_steps=20, every=3), True),
    "issp": (transforms.issp(1e-2, sparsity=0.9, end=10), True),
}
place = NamedSharding(mesh, P("d"))
found = {}
for rule, (tx, _) in rules.items():
    tree = {n: jax.device_put(given[f"0 {n}"], place) for n in names}
    state = jax.jit(tx.init)(tree)
    update = jax.jit(tx.update)
    for step in range(20):
        params = {n: jax.device_put(given[f"{step} {n}"], place) for n in names}
        if step:  # what a projection has removed stays removed
            params = jax.tree.map(lambda p, z: jnp.where(z, 0, p), params, zero)
        grads = {n: jax.device_put(given[f"g{step} {n}"], place) for n in names}
        updates, state = update(grads, state, params)
        after = optax.apply_updates(params, updates)
        zero = jax.tree.map(lambda p: p == 0, after)
        for n in names:
            found[f"{rule} {step} {n}"] = np.asarray(zero[n])
        if rule in ("swd", "gsm") and step < 19:
            moved = jax.tree.map(lambda u: u, updates)
            for n in names:  # what is targeted shows in the update itself
                found[f"{rule} {step} {n} moved"] = np.asarray(moved[n])
np.savez(sys.argv[2], **found)
"""


def _process(words, devices):
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_masks_are_equal_for_twenty_steps_given_equal_parameters(tmp_path):
    random, script = np.random.default_rng(0), tmp_path / "steps.py"
    script.write_text(STEPS)
    sizes = {"a/kernel": (64, 96), "b/kernel": (96, 40), "c/kernel": (40, 10)}
    given = {
        f"{kind}{step} {name}": random.standard_normal(size).astype(np.float32)
        for step in range(20)
        for name, size in sizes.items()
        for kind in ("", "g")
    }
    np.savez(tmp_path / "given.npz", **given)
    for devices in (1, 8):
        out = tmp_path / f"{devices}.npz"
        _process([script, tmp_path / "given.npz", out], devices)
    one, eight = (np.load(tmp_path / f"{n}.npz") for n in (1, 8))
    assert sorted(one.files) == sorted(eight.files)
    ended = 0
    for name in one.files:
        np.testing.assert_array_equal(one[name], eight[name], err_msg=name)
        ended += int(name.split()[1] == "19" and one[name].sum())
    total = sum(int(np.prod(size)) for size in sizes.values())
    assert ended >= 4 * int(0.9 * total)  # they do remove


def test_a_job_on_eight_devices_ends_within_half_a_point(tmp_path):
    """The mean over the rows; one image of 360 is 0.28 points."""
    words = [
        *("-m", "experiments.train", "digits", "--only=gradual,swd,gsm"),
        *("--set=batch=64", "--set=model=lenet300", "--set=gradual.sparsity=(0.9,)"),
        *("--set=swd.sparsity=(0.9,)",),
    ]
    found = {}
    for devices in (1, 8):
        out = tmp_path / str(devices)
        _process([*words, f"--out={out}"], devices)
        result = json.loads((out / "result.json").read_text())
        assert result["device"]["count"] == devices
        found[devices] = {row["run"]: row for row in result["rows"]}
    one, eight = found[1], found[8]
    assert one.keys() == eight.keys() and len(one) == 4
    for run, row in one.items():
        assert row["nonzero"] == eight[run]["nonzero"]
        assert eight[run]["after"] == pytest.approx(row["after"], abs=0.005 + 1e-9)
