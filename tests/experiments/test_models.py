"""The networks of the experiments: the weight counts of the papers, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.build import MODELS
from experiments.models import fbnetv3, residual_mlp
from jprune import masks

IMAGES = {
    "cifar_resnet14": (
        (16, 16, 3),
        9 * (24 + 4 * 64 + 128 + 3 * 256 + 512 + 3 * 1024) + 320,
    ),
    "deep_tanh": ((8, 8, 1), 64 * 128 + 19 * 128 * 128 + 128 * 10),
    "digits_resnet": ((8, 8, 1), 77_072),
    "digits_resnet14": (
        (8, 8, 1),
        9 * (16 + 6 * 256 + 512 + 5 * 1024) + 512 + 32 * 10,
    ),
    "lenet300": ((28, 28, 1), 784 * 300 + 300 * 100 + 100 * 10),
    "lenet5": ((28, 28, 1), 25 * 20 + 25 * 20 * 50 + 800 * 500 + 500 * 10),
    **{
        f"resnet{6 * n + 2}": ((32, 32, 3), 9 * (2608 + 512 * n + 5120 * (2 * n - 1)))
        for n in (3, 5, 9, 18)
    },
    "densenet40": (
        (32, 32, 3),
        27 * 16  # the stem; then 12 layers on 16, 160 and 304 channels, two transitions
        + 108 * sum(width + 12 * i for width in (16, 160, 304) for i in range(12))
        + 160**2
        + 304**2
        + 448 * 10,
    ),
    **{
        name: ((28, 28, 1), 784 * 100 + 10 * 100 * 100 + 100 * 10)
        for name in ("residual_mlp", "stable_mlp")
    },
    "vgg16": (
        (32, 32, 3),
        9 * 64 * 64 * 399 + 27 * 64 + 512 * 10,
    ),
}


def test_every_model_is_counted():
    elsewhere = {"gcn", "resnet50", *fbnetv3.MEMBERS}
    assert set(MODELS) == {*IMAGES, *elsewhere}


@pytest.mark.parametrize("name", IMAGES)
def test_kernel_weights(name):
    shape, count = IMAGES[name]
    head = 64 * 10 if name.startswith("resnet") else 0
    model, image = MODELS[name](10), jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert masks.size(variables["params"]) == count + head
    logits = jax.eval_shape(model.apply, variables, image)
    assert getattr(logits, "shape", None) == (2, 10)


def test_scaled_branches_grow_as_the_paper_says():
    """Four blocks y + y / 2: 1.5**4; the stable network of ten has 10**-0.5."""
    net = residual_mlp.ResidualMLP(classes=1, blocks=4, width=1, branch_scale=0.5)
    x = jnp.ones((1, 1))
    params = jax.tree.map(jnp.ones_like, net.init(jax.random.key(0), x))
    params = jax.tree.map(lambda leaf: leaf * (leaf.ndim == 2), params)  # no biases
    assert net.apply(params, x) == 1.5**4
    assert MODELS["stable_mlp"](10).branch_scale == 10**-0.5


def test_gcn_is_the_renormalized_convolution():
    jraph = pytest.importorskip("jraph", reason="graphs need jraph")
    edges = np.array([(0, 1), (1, 0), (1, 2), (2, 1), (0, 0), (1, 1), (2, 2)], np.int32)
    features = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    graph = jraph.GraphsTuple(
        nodes=features,
        edges=None,
        senders=edges[:, 0],
        receivers=edges[:, 1],
        globals=None,
        n_node=np.array([3]),
        n_edge=np.array([7]),
    )
    model = MODELS["gcn"](2)
    variables = model.init(jax.random.key(0), graph)
    adjacency = np.zeros((3, 3))
    adjacency[edges[:, 0], edges[:, 1]] = 1
    root = np.diag(adjacency.sum(1) ** -0.5)
    mix = root @ adjacency @ root
    first, second = (np.asarray(leaf) for leaf in jax.tree.leaves(variables))
    expected = mix @ np.maximum(mix @ features @ first, 0) @ second
    found = np.asarray(model.apply(variables, graph))
    np.testing.assert_allclose(found, expected, atol=1e-5)
