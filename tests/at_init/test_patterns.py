"""Blocks, channels and surgery's groups from the scores before training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import at_init, masks, scores, surgery


def net(params, x):
    h = jax.nn.relu(x @ params["one"]["kernel"] + params["one"]["bias"][None])
    return h @ params["two"]["kernel"]


def loss(params, x):
    return jnp.mean((net(params, x) - 1) ** 2)


def problem():
    rng = np.random.default_rng(0)
    draw = lambda *s: jnp.float32(rng.normal(size=s))  # noqa: E731
    params = {
        "one": {"kernel": draw(6, 8), "bias": jnp.zeros(8)},
        "two": {"kernel": draw(8, 4)},
    }
    return params, draw(16, 6)


def test_blocks_of_signed_scores_are_ranked_by_their_sums():
    """Sums -5, 4, 3, 0 of the four 2 x 2 blocks: by magnitude -5 would be kept."""
    s = jnp.array([[-5.0, 0, 9, -5], [0, 0, 0, 0], [1, 1, 2, -2], [1, 0, -1, 1]])
    mask = masks.blocks({"kernel": s}, (2, 2), 0.5, signed=True)["kernel"]
    np.testing.assert_array_equal(mask, [[0, 0, 1, 1]] * 2 + [[1, 1, 0, 0]] * 2)
    plain = masks.blocks({"kernel": s}, (2, 2), 0.5)["kernel"]
    np.testing.assert_array_equal(plain, [[0, 0, 1, 1]] * 4)
    # Ragged: sums 5, -9, -2, -2; of the last two the first.
    ragged = masks.blocks({"kernel": -s[:3, :3]}, (2, 2), keep=2, signed=True)
    np.testing.assert_array_equal(ragged["kernel"], [[1, 1, 0]] * 3)


def test_channels_of_signed_scores_are_ranked_by_their_sums():
    s = {"kernel": jnp.array([[-9.0, 1, 2], [1, 1, -1]])}  # sums -8, 2, 1
    kept = masks.channels(s, keep=2, signed=True)["kernel"]
    np.testing.assert_array_equal(kept, [[0, 1, 1]] * 2)
    mean = masks.channels(s, keep=1, signed=True, reduce="mean")["kernel"]
    np.testing.assert_array_equal(mean, [[0, 1, 0]] * 2)
    for pattern in (masks.channels, lambda *a, **k: masks.blocks(a[0], (1, 2), **k)):
        with pytest.raises(ValueError, match="Signed scores need `reduce` 'sum'"):
            pattern(s, keep=1, signed=True, reduce="max")


@pytest.mark.parametrize(
    "criterion",
    [
        pytest.param("snip", marks=pytest.mark.slow),
        "grasp",
        pytest.param("synflow", marks=pytest.mark.slow),
    ],
)
def test_units_of_groups_go_from_every_member(criterion):
    """Scores to groups to masks to a smaller network, equal to the masked one."""
    params, x = problem()
    deps = surgery.groups(net)(params, x)
    found = {
        "snip": lambda: at_init.snip(loss, params, x),
        "grasp": lambda: at_init.grasp(loss, params, x),
        "synflow": lambda: at_init.synflow(net, params, jnp.ones((1, 6))),
    }[criterion]()
    signed = criterion == "grasp"
    groups = [g for g in deps if g.size == 8]
    units = scores.over_groups(found, groups, norm="l1", raw=True, signed=signed)
    value = found if signed else jax.tree.map(jnp.abs, found)
    by_hand = value["one"]["kernel"].sum(0) + value["two"]["kernel"].sum(1)
    (name,) = units
    np.testing.assert_allclose(units[name], by_hand, rtol=1e-5, atol=1e-6)
    keep = masks.unstructured(units, keep=5, scope=".", signed=signed)
    assert set(np.argsort(-np.asarray(by_hand))[:5]) == set(np.flatnonzero(keep[name]))
    mask = masks.from_groups(params, groups, keep)
    plan = surgery.plan_from_masks(deps, mask)
    small = surgery.shrink(net, plan)(plan.pack(params), x)
    want = net(masks.apply(mask, params), x)
    np.testing.assert_allclose(small, want, rtol=1e-5, atol=1e-6)


def test_signed_groups_need_order_one():
    params, x = problem()
    groups = list(surgery.groups(net)(params, x))
    with pytest.raises(ValueError, match="Signed scores need `norm=.l1.`, got 'l2'"):
        scores.over_groups(params, groups, signed=True)
