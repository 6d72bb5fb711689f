"""FBNetV3: the published counts by abstract evaluation, and surgery on its blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models import fbnetv3
from experiments.models.fbnetv3 import FBNetV3
from jprune import analysis, surgery


def _shapes(definition, classes, side=None, colors=3):
    side = side or definition.image
    model = FBNetV3(definition, classes)
    image = jax.ShapeDtypeStruct((1, side, side, colors), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return model, variables, image


def _count(tree, only=None):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return sum(
        leaf.size for path, leaf in leaves if only is None or path[-1].key == only
    )


def test_compact_convnets_g1_rounding_to_eight():
    wanted = {60: 64, 12: 16, 24: 24, 100: 104, 10: 16, 3: 8}
    assert {n: fbnetv3.by_eight(n) for n in wanted} == wanted


MEMBERS = [
    ("A", 8_598_464, 8_542_224, 355_514_328, 356_598_280),
    ("C", 9_973_800, 9_907_136, 555_578_368, 556_969_904),
    ("E", 10_772_872, 10_699_464, 759_952_160, 762_046_336),
    ("G", 16_623_888, 16_513_648, 2_125_187_200, 2_129_656_384),
]


@pytest.mark.parametrize(("name", "trained", "kernels", "macs", "zoo"), MEMBERS)
def test_compact_convnets_g2_counts_of_the_zoo(name, trained, kernels, macs, zoo):
    definition = getattr(fbnetv3, name)
    model, variables, image = _shapes(definition, 1000)
    params = variables["params"]
    assert _count(params) == trained and _count(params, "kernel") == kernels
    assert analysis.flops(model.apply)(variables, image) == 2 * macs
    side = definition.image
    assert macs + fbnetv3.pooled(definition, side, side) == zoo


@pytest.mark.parametrize(
    ("side", "colors", "trained", "kernels", "macs"),
    [(32, 3, 563_650, 553_152, 17_758_080), (28, 1, 563_362, 552_864, 14_172_648)],
)
def test_compact_convnets_g3_tiny(side, colors, trained, kernels, macs):
    model, variables, image = _shapes(fbnetv3.TINY, 10, side, colors)
    params = variables["params"]
    assert _count(params) == trained and _count(params, "kernel") == kernels
    assert analysis.flops(model.apply)(variables, image) == 2 * macs
    assert jax.eval_shape(model.apply, variables, image).shape == (1, 10)


def test_compact_convnets_g4_sizes_of_the_maps():
    model, variables, image = _shapes(fbnetv3.A, 1000)
    _, found = jax.eval_shape(
        lambda v, x: model.apply(v, x, capture_intermediates=True), variables, image
    )
    maps = found["intermediates"]
    rows = [f"stage{row}_0" for row in range(12)]
    sides = [maps["stem"]["__call__"][0].shape[1]]
    sides += [maps[row]["__call__"][0].shape[1] for row in rows]
    assert list(dict.fromkeys(sides)) == [112, 56, 28, 13, 6]


SMALL = fbnetv3.Definition(
    8,
    (
        fbnetv3.Stage(3, 8, 1, 1, 1),
        fbnetv3.Stage(5, 16, 2, 2, 2, True),
        fbnetv3.Stage(3, 16, 1, 1, 3),
    ),
    8,
    head=2,
    features=24,
    stem_stride=1,
)


def _small(zero_last):
    model = FBNetV3(SMALL, 10, zero_last)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    return model, model.init(jax.random.key(0), x), x


def test_compact_convnets_g7_zero_scales_hide_their_block():
    model, variables, x = _small(zero_last=True)
    params = variables["params"]
    before = model.apply(variables, x)

    def noise(leaf):
        return leaf + jax.random.normal(jax.random.key(2), leaf.shape)

    def changed(block):
        new = {**params[block], "expand": jax.tree.map(noise, params[block]["expand"])}
        return {**variables, "params": {**params, block: new}}

    same = model.apply(changed("stage2_0"), x)  # stride 1, 16 -> 16: a residual
    np.testing.assert_array_equal(same, before)
    other = model.apply(changed("stage1_0"), x)  # stride 2: none
    assert float(jnp.abs(other - before).max()) > 1e-3


def test_channels_leave_depthwise_and_excited_blocks():
    model, variables, x = _small(zero_last=False)

    def apply(variables, x):
        return model.apply(variables, x)

    deps = surgery.groups(apply)(variables, x)
    plan = surgery.select(deps, deps.scores(variables), flops=0.5)
    compact = plan.pack(variables)
    small, wanted = surgery.shrink(apply, plan), apply(plan.zero(variables), x)
    np.testing.assert_allclose(jax.jit(small)(compact, x), wanted, atol=1e-5)
    assert analysis.flops(small)(compact, x) <= analysis.flops(apply)(variables, x) / 2
    assert _count(compact["params"]) < _count(variables["params"])
    block, whole = (v["params"]["stage1_1"] for v in (compact, variables))
    left = block["depthwise"]["kernel"].shape[-1]
    assert left < whole["depthwise"]["kernel"].shape[-1]
    assert block["expand"]["kernel"].shape[-1] == left
    assert block["squeeze"]["kernel"].shape[2] == left
    assert block["excite"]["kernel"].shape[-1] == left
    assert block["project"]["kernel"].shape[2] == left
