"""Influence of blocks: against NumPy, and the same in a scan and unrolled."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jprune import analysis, surgery

LAYERS, WIDTH, INNER = 5, 6, 8


def stacks(seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    size = np.array([1.0, 0.1, 0.5, 0.2, 2.0])[:, None, None]  # of each block
    return {
        "up": jnp.asarray(rng.standard_normal((LAYERS, WIDTH, INNER))),
        "down": jnp.asarray(size * rng.standard_normal((LAYERS, INNER, WIDTH))),
    }


def block(h: Any, p: Any) -> Any:
    return h + jax.nn.silu(h @ p["up"]) @ p["down"]


def scanned(p: Any, x: Any) -> Any:
    return lax.scan(jax.checkpoint(lambda h, q: (block(h, q), None)), x, p)[0]


def unrolled(layers: Any, x: Any) -> Any:
    for p in layers:
        x = block(x, p)
    return x


def batches() -> list[Any]:
    rng = np.random.default_rng(1)
    return [jnp.asarray(rng.standard_normal((n, 3, WIDTH))) for n in (2, 2)]


def by_hand(p: Any, data: Any) -> np.ndarray:
    """1 - cosine in NumPy, block by block."""
    found = []
    for x in map(np.asarray, data):
        row = []
        for up, down in zip(np.asarray(p["up"]), np.asarray(p["down"]), strict=True):
            a = x @ up
            y = x + (a * (1 + np.tanh(a / 2)) / 2) @ down
            lengths = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
            row.append(1 - ((x * y).sum(-1) / lengths).mean())
            x = y
        found.append(row)
    return np.mean(found, axis=0)


def test_influence_in_a_scan_and_unrolled_removes_the_same_layers():
    with jax.enable_x64(True):
        p, data = stacks(), batches()
        want = by_hand(p, data)
        deps = surgery.groups(scanned)(p, data[0])
        (rounds,) = [g for g in deps if g.kind == "depth"]
        found = analysis.block_influence(scanned, deps, p, data)
        np.testing.assert_allclose(found.rounds[rounds.id], want, rtol=1e-10)
        assert not found.branches
        plan = surgery.select(deps, found.rounds, sparsity=0.4, kinds=("depth",))
        kept = plan.keep["down",][0]
        assert kept.tolist() == [True, False, True, False, True]

        layers = [{n: leaf[i] for n, leaf in p.items()} for i in range(LAYERS)]
        loose = surgery.groups(unrolled)(layers, data[0])
        apart = analysis.block_influence(unrolled, loose, layers, data)
        np.testing.assert_allclose(list(apart.branches.values()), want, rtol=1e-10)
        branches = analysis.residual_branches(unrolled, loose, layers, data[0]).branches
        worst = sorted(apart.branches, key=apart.branches.__getitem__)[:2]
        assert worst == ["1/down", "3/down"]
        gone = {g.id: np.zeros(g.size, bool) for n in worst for g in branches[n].inner}
        other = surgery.plan_from_keep(loose, gone)
        np.testing.assert_allclose(
            surgery.shrink(unrolled, other)(other.pack(layers), data[0]),
            surgery.shrink(scanned, plan)(plan.pack(p), data[0]),
            rtol=1e-10,
        )


@pytest.mark.slow
def test_influence_in_scans_of_scans_is_summed_over_the_outer_rounds():
    with jax.enable_x64(True):
        p = jax.tree.map(lambda *x: jnp.stack(x), stacks(0), stacks(1))
        x = batches()[0]
        step = lambda h, q: (scanned(q, h), None)  # noqa: E731
        fn = lambda p, x: lax.scan(step, x, p)[0]  # noqa: E731
        deps = surgery.groups(fn)(p, x)
        found = analysis.block_influence(fn, deps, p, [x]).rounds
        outer, inner = sorted(
            (g for g in deps if g.kind == "depth"), key=lambda g: g.size
        )
        first = jax.tree.map(lambda leaf: leaf[0], p)
        between = scanned(first, x)
        second = jax.tree.map(lambda leaf: leaf[1], p)
        rows = [by_hand(first, [x]), by_hand(second, [between])]
        np.testing.assert_allclose(found[inner.id], np.mean(rows, 0), rtol=1e-9)
        assert found[outer.id].shape == (2,)


def test_influence_needs_data_and_blocks():
    p = {"a": jnp.ones((3, 3))}
    fn = lambda p, x: x @ p["a"]  # noqa: E731
    deps = surgery.groups(fn)(p, jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="`batches` is empty"):
        analysis.block_influence(fn, deps, p, [])
    with pytest.raises(ValueError, match="no rounds of a scan"):
        analysis.block_influence(fn, deps, p, [jnp.ones((1, 3))])


def test_one_array_is_no_list_of_batches():
    p, (x, _) = stacks(), batches()
    deps = surgery.groups(scanned)(p, x)
    with pytest.raises(TypeError, match=r"got one array, float.*\[2, 3, 6\].*`\[x\]`"):
        analysis.block_influence(scanned, deps, p, x)
