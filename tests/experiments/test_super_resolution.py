"""Super-resolution: the images, the measure, the network, the counts of each method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import build
from experiments.checkpoints import Checkpoints
from experiments.config import Config
from experiments.data import super_resolution as images
from experiments.data.dataset import DataError
from experiments.journal import Journal
from experiments.models import edsr
from experiments.systems import super_resolution as system
from jprune import masks


def test_luma_of_the_primary_colors_by_hand():
    colors = np.array(
        [[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0]]], np.uint8
    )
    expected = np.array([[16, 235, 81.481, 144.553]]) / 255
    np.testing.assert_allclose(images.luma(colors), expected, atol=1e-5)
    np.testing.assert_allclose(
        images.luma(colors[..., 0][:, :2]), expected[:, :2], 1e-5
    )


def test_an_image_is_cut_to_multiples_and_reduced_to_eight_bits():
    large = np.random.default_rng(0).random((11, 14)).astype(np.float32)
    name, small, kept = images.pair("x", large, 3)
    assert name == "x" and small.shape == (3, 4)
    np.testing.assert_array_equal(kept, large[:9, :12])
    np.testing.assert_allclose(small * 255, np.round(small * 255), atol=1e-4)
    flat = images.pair("flat", np.full((8, 8), 0.4, np.float32), 2)
    np.testing.assert_allclose(flat.small, 102 / 255, atol=1e-6)


def test_psnr_by_hand():
    wanted = np.full((6, 6), 100 / 255, np.float32)
    found = wanted + 10 / 255
    found[0] = 1.0  # the border does not count
    assert images.psnr(found, wanted, 1) == pytest.approx(20 * np.log10(255 / 10))
    assert images.psnr(wanted + 0.4 / 255, wanted, 0) == np.inf  # 8 bits


def test_patches_lie_over_one_another():
    large = np.arange(8 * 10, dtype=np.float32).reshape(8, 10) / 80
    one = images.Pair("a", large[::2, ::2], large)
    small, big = images.patches([one], 2, 2)
    assert small.shape == (4, 2, 2) and big.shape == (4, 4, 4)
    np.testing.assert_array_equal(big[:, ::2, ::2], small)


def test_missing_images_say_what_and_how(tmp_path):
    with pytest.raises(DataError, match="no `Set5` in.*--data-dir.*PNG"):
        images.load_set("Set5", 2, str(tmp_path))
    (tmp_path / "Set5").mkdir()
    with pytest.raises(DataError, match="no PNG file in"):
        images.load_set("Set5", 2, str(tmp_path))
    (tmp_path / "Set5" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png cannot be read"):
        images.load_set("Set5", 2, str(tmp_path))


def test_shuffle_against_indices():
    x = np.arange(2 * 3 * 8, dtype=np.float32).reshape(1, 2, 3, 8)
    found = np.asarray(edsr.shuffle(jnp.asarray(x), 2))
    assert found.shape == (1, 4, 6, 2)
    for row in range(4):
        for column in range(6):
            group = 2 * (row % 2) + column % 2
            expected = x[0, row // 2, column // 2, 2 * group : 2 * group + 2]
            np.testing.assert_array_equal(found[0, row, column], expected)


def test_network_counts_by_hand():
    params = jax.eval_shape(
        edsr.EDSR().init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 1), "f4")
    )["params"]
    kernels = 9 * (16 + 9 * 16 * 16 + 16 * 64 + 16)
    assert masks.size(params) == kernels == 30_240


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for name, count in (("T91", 2), ("Set5", 1), ("Set14", 1)):
        (folder / name).mkdir()
        for at in range(count):
            pixels = random.integers(0, 255, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{at}.png")
    config = Config(
        runner="super_resolution",
        data="t91",
        model="edsr",
        batch=2,
        setup={
            "scale": 2,
            "channels": 4,
            "blocks": 1,
            "side": 4,
            "stride": 4,
            "steps": 6,
            "lr": 1e-3,
            "drops_at": (0.7,),
        },
        dense={},
        runs={},
    )
    with Journal(folder) as journal:
        yield build.open_runner(
            config,
            seed=0,
            data_dir=str(folder),
            journal=journal,
            checkpoints=lambda run: Checkpoints(
                folder / "keep" / run.replace(" ", "-"), resume=True, every=1
            ),
            prefix="",
        )


@pytest.fixture(scope="module")
def dense(opened):
    return system.train_dense(opened)[0]


SIZES = (36, 144, 144, 144, 576, 36)
KEPT = sum(n - min(int(np.ceil(0.9 * n)), int(0.995 * n)) for n in SIZES)
METHODS = [
    ("gradual", {"sparsity": 0.9, "end": 0.6, "every": 1}),
    ("one_shot", {"sparsity": 0.9}),
    ("issp", {"sparsity": 0.9, "factors": (0.9, 0.0), "end": 0.6}),
    (
        "issr",
        {"sparsity": 0.9, "increment": 0.1, "every": 1, "limit": 0.5, "end": 0.6},
    ),
]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        pytest.param(*m, marks=[] if m[0] == "one_shot" else pytest.mark.slow, id=m[0])
        for m in METHODS
    ],
)
def test_every_kernel_loses_its_share(name, settings, opened, dense):
    for row in system.RUNNER.methods[name](opened, dense, **settings):
        assert row.nonzero == row.kept == KEPT, row.run
        assert row.after == row.extra["Set5 dB"] / 100


@pytest.mark.slow
def test_n_of_m_keeps_head_and_tail_and_its_budget(opened, dense):
    settings = {"m": 4, "n": 2, "weight": 0.1, "search_epoch": 2}
    sls, uniform = system.n_of_m(opened, dense, **settings)
    assert uniform.nonzero == uniform.kept == 72 + (sum(SIZES) - 72) // 2
    assert {v for k, v in uniform.extra.items() if not k.endswith("dB")} == {2.0}
    assert not {"head", "tail"} & set(sls.extra)
    assert sls.run == "SLS 50%" and sls.nonzero <= sum(SIZES)


def test_a_finished_run_is_read_back(opened, dense):
    again = system.train_dense(opened)[0]
    jax.tree.map(np.testing.assert_array_equal, again.params, dense.params)


def test_turned_patches_are_the_images_own():
    patch = jnp.arange(4.0).reshape(1, 2, 2)
    seen = set()
    for step in range(40):
        _, how = system.draw(jax.random.key(0), step, 5, 1)
        seen.add(np.asarray(system.turned(how, patch)).tobytes())
    plain = np.asarray(patch)
    allowed = {
        np.ascontiguousarray(x).tobytes()
        for x in (
            plain,
            plain[:, :, ::-1],
            plain.transpose(0, 2, 1),
            plain[:, :, ::-1].transpose(0, 2, 1),
        )
    }
    assert seen == allowed
