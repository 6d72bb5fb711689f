"""From a transformation to a smaller network: what was trained is what remains.

A residual network on the 8 x 8 digits, small enough to train in seconds; the groups,
the merge and the cut are the library's own.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import compress, masks, surgery, transforms
from tests.digits_net import STEPS, accuracy, digits, net, start, train

IMAGES = digits()[0]


@pytest.mark.slow
def test_the_merged_network_is_the_trained_one():
    """C-SGD in groups with a residual stream; then magnitude among its survivors."""
    deps = surgery.groups(net)(start(), IMAGES[:4])
    groups = [g for g in deps if g.kind == "coupled"]
    assert sorted(g.size for g in groups) == [16, 24]
    dense = train(optax.sgd(0.1, 0.9), start())
    clusters = compress.find_clusters(dense, groups, sparsity=0.375)
    tx = transforms.csgd(
        0.05,
        groups,
        clusters,
        strength=0.2,
        weight_decay=1e-4,
        vector_multiplier=0.7,
        total_steps=STEPS,
    )
    trained = train(tx, dense)
    merged = compress.merge(net, deps, trained, clusters, IMAGES[:32])
    small = surgery.shrink(net, merged.plan)
    assert max(merged.deviation.values()) < 1e-5
    assert merged.variables["b"]["kernel"].shape == (10, 15)
    np.testing.assert_allclose(
        small(merged.variables, IMAGES), net(trained, IMAGES), atol=1e-4
    )
    assert accuracy(merged.variables, small) > 0.97
    # What stays can be pruned further like any parameters, to the exact count.
    finer, mask = transforms.finish(
        merged.variables, lambda p: masks.unstructured(p, 0.5)
    )
    size = 64 * 10 + 10 * 15 + 15 * 10 + 10 * 10
    assert int(masks.count(masks.from_zeros(finer))) == size - size // 2
    assert float(masks.sparsity(mask)) == 0.5
    assert np.all(np.isfinite(small(finer, IMAGES)))


@pytest.mark.slow
def test_masksparsity_under_partition():
    """Scales by penalized SGD, the rest by Adam; one removal for both; then the cut."""
    deps = surgery.groups(net)(start(), IMAGES[:4])
    groups = [g for g in deps if g.kind == "coupled"]
    keeps = {g.id: jnp.arange(g.size) % 3 != 0 for g in groups}
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: "scale" if path[-1].key == "scale" else "rest", start()
    )
    scales = optax.chain(
        transforms.add_masked_l1(
            0.5, lambda p: masks.from_groups(p, groups, keeps, roles=("scale",))
        ),
        optax.sgd(0.02),
    )
    tx = optax.chain(
        optax.partition({"scale": scales, "rest": optax.adam(0.01)}, labels),
        transforms.prune_once(
            lambda p: masks.from_groups(p, groups, keeps), step=STEPS - 1
        ),
    )
    transforms.check(tx, start())
    before = train(tx, start(), STEPS - 1)
    after = train(tx, start())
    for name in "ab":
        group = next(g for g in groups if g.size == before[name]["scale"].size)
        keep = keeps[group.id]
        scale = np.abs(np.asarray(before[name]["scale"]))
        assert scale[~np.asarray(keep)].max() < 0.02 < scale[np.asarray(keep)].min()
        np.testing.assert_array_equal(after[name]["scale"] != 0, keep)
    plan = surgery.plan_from_keep(deps, keeps)
    small = surgery.shrink(net, plan)
    np.testing.assert_allclose(
        small(plan.pack(after), IMAGES), net(after, IMAGES), atol=1e-4
    )
    assert accuracy(before) > 0.95  # what the shifts carried is not kept


def test_tpp_then_cut_then_fine_tune():
    """The chain ends pruned; the cut changes nothing; the compact network trains on."""
    deps = surgery.groups(net)(start(), IMAGES[:4])
    [inner] = [g for g in deps if g.size == 24]
    dense = train(optax.sgd(0.1, 0.9), start())
    keeps = transforms.keep_large_filters(dense, [inner], 0.5)
    tx = transforms.tpp(
        0.01,
        [inner],
        keeps,
        total_steps=300,
        end=200,
        every=1,
        interval=20,
        gram=100.0,
        weight_decay=1e-4,
    )
    transforms.check(tx, dense)
    ready = train(tx, dense)
    plan = surgery.plan_from_keep(deps, keeps)
    small, packed = surgery.shrink(net, plan), plan.pack(ready)
    np.testing.assert_allclose(small(packed, IMAGES), net(ready, IMAGES), atol=1e-4)
    assert packed["b"]["kernel"].shape == (16, 12)
    assert accuracy(packed, small) > 0.97
