"""The default ranking by loops; and the axes that products sum over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import surgery
from tests.surgery.test_select import DEPS, SIZES, random_scores


@pytest.mark.parametrize("seed", range(3))
def test_balanced_takes_the_same_share_of_every_group(seed: int):
    """By loops: half of a share is counted in coordinates, half in squared scores."""
    scores = random_scores(seed)
    scores["a:1"][:3] = 0  # dead: they go before others lose a quarter
    keys = {}
    for name, v in scores.items():
        worst = sorted(range(len(v)), key=lambda i: (v[i], -i))
        keys[name] = np.zeros(len(v))
        for n, c in enumerate(worst):
            energy = sum(v[i] ** 2 for i in worst[: n + 1]) / sum(v**2)
            share = ((n + 1) / len(v) + energy) / 2
            keys[name][c] = share * (2 if name == "c:1" else 1)  # two layers write it
    for share in (0.8, 0.5, 0.3):
        kept = surgery.choose(DEPS, scores, flops=share)
        want = surgery.choose(DEPS, keys, flops=share, ranking="global")
        for name in want:
            np.testing.assert_array_equal(kept[name], want[name])
    assert not surgery.choose(DEPS, scores, sparsity=0.4)["a:1"][:3].any()


def test_balanced_of_scores_without_worth():
    """All 0, or below 0: coordinates alone count, in the order of the scores."""
    for name in SIZES:
        scores = random_scores(0) | {name: -random_scores(1)[name]}
        kept = surgery.choose(DEPS, scores, sparsity=0.5)[name]
        assert 1 < kept.sum() < kept.size
        order = np.argsort(-scores[name], kind="stable")
        assert set(np.flatnonzero(kept)) == set(order[: kept.sum()])
        equal = scores | {name: np.zeros(SIZES[name])}
        np.testing.assert_array_equal(
            surgery.choose(DEPS, equal, sparsity=0.5)[name].sum(), kept.sum()
        )


def test_contraction_axes_of_one_input_and_of_a_part():
    """A first convolution on gray images, in a pair (params, state)."""
    spec = ("NHWC", "HWIO", "NHWC")

    def net(variables, x):
        p, state = variables
        y = jax.lax.conv_general_dilated(
            x, p["kernel"], (1, 1), "SAME", dimension_numbers=spec
        )
        y = y - state["mean"][None, None, None]
        return y.mean((1, 2)) @ p["head"]["w"].T + p["bias"]

    p = {"kernel": jnp.ones((3, 3, 1, 8)), "head": {"w": jnp.ones((1, 8))}}
    p |= {"bias": jnp.ones((1, 1))}
    variables = (p, {"mean": jnp.ones(8)})
    deps = surgery.groups(net)(variables, jnp.ones((2, 4, 4, 1)))
    whole = surgery.contraction_axes(deps)
    assert whole == ({"bias": None, "head": {"w": 1}, "kernel": 2}, {"mean": None})
    assert surgery.contraction_axes(deps, at=0) == whole[0]
    assert surgery.contraction_axes(deps, at=(0, "head")) == {"w": 1}
    assert surgery.contraction_axes(deps, at=(0, "head", "w")) == 1
    with pytest.raises(ValueError, match=r"`at` \(0, 'body'\) is not there"):
        surgery.contraction_axes(deps, at=(0, "body", "w"))
