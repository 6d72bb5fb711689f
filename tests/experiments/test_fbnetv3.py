"""FBNetV3: the published counts by abstract evaluation, and surgery on its blocks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import build
from experiments.config import ConfigError
from experiments.methods import compact_convnets
from experiments.methods.dense import train_dense
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
    pytest.param(
        *("C", 9_973_800, 9_907_136, 555_578_368, 556_969_904), marks=pytest.mark.slow
    ),
    pytest.param(
        *("E", 10_772_872, 10_699_464, 759_952_160, 762_046_336), marks=pytest.mark.slow
    ),
    pytest.param(
        *("G", 16_623_888, 16_513_648, 2_125_187_200, 2_129_656_384),
        marks=pytest.mark.slow,
    ),
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


def _two():
    """Layer X: two weights of cost 4; layer Y: two of cost 1."""
    params = {
        "x": {"kernel": jnp.array([[2.1, 1.9]])},
        "y": {"kernel": jnp.array([[2.0, 1.0]])},
    }
    costs = {"x": {"kernel": 4}, "y": {"kernel": 1}}
    scope = jax.tree.map(lambda _: True, params)
    return params, costs, scope


def test_compact_convnets_g5_one_share_for_a_budget():
    params = {
        name: jnp.ones((size, 1)) for name, size in (("a", 4), ("b", 4), ("c", 5))
    }
    costs, scope = {"a": 25, "b": 75, "c": 10}, {"a": True, "b": True, "c": False}
    assert compact_convnets.share_for(params, costs, scope, 250) == 0.5
    with pytest.raises(ValueError, match="`budget` is 50"):
        compact_convnets.share_for(params, costs, scope, 50)
    mask = compact_convnets.one_share(params, costs, scope, 250)
    assert compact_convnets.sparse_cost(mask, costs, params) == 250


def test_compact_convnets_g6_energy_for_each_multiply_add():
    params, costs, scope = _two()
    found = {
        per: compact_convnets.largest_within(params, costs, scope, 6, per_cost=per)
        for per in (True, False)
    }
    assert found[True]["x"]["kernel"].tolist() == [[True, False]]
    assert found[True]["y"]["kernel"].tolist() == [[True, True]]
    assert found[False]["y"]["kernel"].tolist() == [[True, False]]
    spent = [compact_convnets.sparse_cost(m, costs, params) for m in found.values()]
    assert spent == [6, 5]


def test_costs_of_weights_sum_to_the_multiply_adds():
    model, variables, image = _shapes(fbnetv3.TINY, 10)
    costs = fbnetv3.weight_costs(model, variables, image)
    each = jax.tree.map(lambda c, leaf: c * leaf.size, costs, variables["params"])
    assert sum(jax.tree.leaves(each)) == 17_758_080
    assert costs["stem"]["kernel"] == 32 * 32 and costs["head"]["kernel"] == 16


@pytest.fixture(scope="module")
def rows(tmp_path_factory, open_tiny, tiny):
    smaller = SMALL._replace(stem=8, stages=(SMALL.stages[0], SMALL.stages[1]))
    with pytest.MonkeyPatch.context() as patch:
        for name, member in (("toy", SMALL), ("toy_smaller", smaller)):
            patch.setitem(fbnetv3.MEMBERS, name, member)
            patch.setitem(build.MODELS, name, partial(FBNetV3, member))
        lab = open_tiny(tmp_path_factory.mktemp("fbnetv3"), model="toy")
        settings = {
            "smaller": "toy_smaller",
            "rules": compact_convnets.RULES,
            "spare": "stem|depthwise",
            "epochs": 1,
            "lr": 0.01,
            "momentum": 0.9,
            "weight_decay": 1e-4,
        }
        dense = train_dense(lab, **{**tiny.dense, "epochs": 1})
        found = compact_convnets.compact_convnets(lab, dense, **settings)
        image = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
        whole = compact_convnets.multiply_adds("toy", 10, image)
        part = compact_convnets.multiply_adds("toy_smaller", 10, image)
        yield list(found), part / whole


@pytest.mark.slow
def test_compact_convnets_g8_every_rule_keeps_the_budget(rows):
    found, share = rows
    assert [row.run for row in found] == list(compact_convnets.RULES)
    for row in found:
        assert 0.5 * share < row.extra["flops"] <= share + 1e-9, row.run
        if row.run.startswith("weights"):  # after training, as before it
            assert row.nonzero == row.kept


def test_unknown_rules_are_named():
    settings = dict.fromkeys(("smaller", "spare", "epochs", "lr", "momentum"))
    with pytest.raises(ConfigError, match="unknown rule `channels by magnitud`"):
        next(
            compact_convnets.compact_convnets(
                None,
                None,
                **settings,
                rules=("channels by magnitud",),
                weight_decay=0.0,
            )
        )
