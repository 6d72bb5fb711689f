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
from jprune import transforms

mesh = jax.make_mesh((jax.device_count(),), ("d",), (AxisType.Auto,))
place, given = NamedSharding(mesh, P("d")), np.load(sys.argv[1])
names = ("a/kernel", "b/kernel", "c/kernel")
sgd = optax.sgd(0.1, 0.9)
# What is not zero in the updates of the first two is their choice.
rules = {
    "swd": transforms.add_selective_decay(1e-3, 10.0, sparsity=0.9),
    "gsm": transforms.mask_by_saliency(sparsity=0.9),
    "gradual": optax.chain(sgd, transforms.prune_gradually(0.9, end=15, every=2)),
    "rigl": transforms.rigl(0.1, sparsity=0.9, total_steps=20, every=3),
    "issp": optax.chain(sgd, transforms.shrink_softly(0.9, end=10)),
}


def at(step, kind=""):
    return {n: jax.device_put(given[f"{kind}{step} {n}"], place) for n in names}


found = {}
for rule, tx in rules.items():
    state, update = jax.jit(tx.init)(at(0)), jax.jit(tx.update)
    zero = {n: False for n in names}
    for step in range(20):
        params = {n: jnp.where(zero[n], 0, p) for n, p in at(step).items()}
        grads = at(step, "g")
        if rule == "swd":
            grads = jax.tree.map(jnp.zeros_like, grads)
        updates, state = update(grads, state, params)
        if rule in ("swd", "gsm"):
            chosen = {n: u != 0 for n, u in updates.items()}
        else:  # what a projection has removed stays removed
            zero = jax.tree.map(lambda p, u: p + u == 0, params, updates)
            chosen = zero
        for n in names:
            found[f"{rule} {step} {n}"] = np.asarray(chosen[n])
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
    counts: dict[str, int] = {}
    for name in one.files:
        np.testing.assert_array_equal(one[name], eight[name], err_msg=name)
        rule, step, _ = name.split()
        key = f"{rule} {step}"
        counts[key] = counts.get(key, 0) + int(one[name].sum())
    total = sum(int(np.prod(size)) for size in sizes.values())
    for rule in ("swd", "gradual", "rigl", "issp"):  # they do choose, to the count
        assert counts[f"{rule} 19"] == pytest.approx(0.9 * total, abs=3), rule
    assert counts["gsm 0"] == total - round(0.9 * total)


def test_a_job_on_eight_devices_ends_within_half_a_point(tmp_path):
    """The mean over the rows; one image of 360 is 0.28 points."""
    words = [
        *("-m", "experiments.train", "digits", "--only=gradual,swd,gsm"),
        *("--set=batch=176", "--set=model=lenet300", "--set=gradual.sparsity=(0.9,)"),
        *("--set=swd.sparsity=(0.9,)", "--set=swd.a_max=1e5", "--set=gsm.epochs=30"),
        *("--set=swd.batch=176", "--set=gradual.batch=176"),
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
