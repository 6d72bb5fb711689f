"""LASSO selection and least squares, against scikit-learn, NumPy and brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from sklearn.linear_model import Lasso

from jprune import compress, surgery
from jprune.compress._lasso import (
    lasso,
    least_squares,
    normal_form,
    select_channels,
    squared_error,
)
from jprune.compress._stages import residual_target

ENERGY = np.array([4.0, 1.0, 0.25])
ORTHOGONAL = np.array(
    [[1, 1, 1], [1, -1, 1], [1, 1, -1], [1, -1, -1]], float
) * np.sqrt(ENERGY)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (0.2, [0.95, 0.8, 0.2]),
        (0.25, [0.9375, 0.75, 0]),
        (0.5, [0.875, 0.5, 0]),
        (1.0, [0.75, 0, 0]),
    ],
)
def test_lasso_g1_closed_form(alpha, expected):
    y = ORTHOGONAL.sum(1)
    beta = lasso(ORTHOGONAL.T @ ORTHOGONAL / 4, ORTHOGONAL.T @ y / 4, alpha)
    np.testing.assert_allclose(beta, expected, atol=1e-9)


def test_lasso_g2_search():
    y = ORTHOGONAL.sum(1)
    found = select_channels(ORTHOGONAL.T @ ORTHOGONAL / 4, ORTHOGONAL.T @ y / 4, 2)
    assert 0.25 <= found.alpha < 1 and found.keep.tolist() == [True, True, False]


def test_lasso_g3_exact_absorption():
    x = np.array([[1.0, 2], [2, 4], [-1, -2]])
    found = fitted(x, np.array([1.0, 0.5]), [True, False])
    np.testing.assert_allclose(found.variables["b"][:, 0], [2, 0], rtol=1e-4)
    assert found.layers["b"].fitted < 1e-8


def test_lasso_g4_no_op():
    x, p = normal(0, 50, 3), {"a": normal(1, 3, 4), "b": normal(2, 4, 2)}
    p["c"] = normal(3, 1, 2)
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"] + p["c"]  # noqa: E731
    deps = surgery.groups(fn)(p, x)
    found = compress.reconstruct(fn, deps, p, [x], {"a:1": 4})
    assert all(found.keep["a:1"])
    for name in p:
        np.testing.assert_array_equal(found.variables[name], p[name])


@pytest.mark.parametrize("seed", range(3))
def test_lasso_g5_least_squares_never_hurts(seed):
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(60, 6)), rng.normal(size=(6, 3))
    y, keep = x @ w, rng.permutation(6) < 3
    gram, cross = (x.T @ x)[None], (x.T @ y)[None]
    total = float((y * y).sum())
    new = least_squares(gram, cross, w[None], keep, 0.0)
    old = keep[None, :, None] * w[None]
    errors = [squared_error(gram, cross, total, v) for v in (new, old)]
    assert errors[0] < errors[1]
    direct = np.linalg.lstsq(x[:, keep], y, rcond=None)[0]
    np.testing.assert_allclose(new[0][keep], direct, rtol=1e-9)
    np.testing.assert_allclose(errors[0], ((y - x[:, keep] @ direct) ** 2).sum())


def test_lasso_g5_equality_for_an_orthogonal_channel():
    x = np.array([[1.0, 1], [1, -1], [2, 0], [0, 1]])
    y = x @ [2.0, 1.0]
    np.testing.assert_allclose(x[:, 0] @ x[:, 1], 0)
    gram, cross = (x.T @ x)[None], (x.T @ y)[None, :, None]
    w, keep = np.array([2.0, 1.0])[None, :, None], np.array([True, False])
    new = least_squares(gram, cross, w, keep)
    np.testing.assert_allclose(new[0, :, 0], [2, 0], rtol=1e-6)
    assert squared_error(gram, cross, float(y @ y), new) == pytest.approx(3.0)


def test_lasso_g7_residual_target():
    found = residual_target(
        np.array([3.0, 3]), np.array([1.0, 2]), np.array([0.5, 2.5]), np.ones(2)
    )
    np.testing.assert_allclose(found, [3.5, 2.5])
    halved = residual_target(np.zeros(2), np.ones(2), np.zeros(2), np.array([2.0, 0.0]))
    np.testing.assert_allclose(halved, [0.5, 0.0])


def test_lasso_g8_intercept():
    """y = 2 x1 + x2 + the bias, and x2 is always 3: it goes into the bias."""
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(size=40), np.full(40, 3.0)], 1)
    fn = lambda p, x: (x @ p["a"]) @ p["b"] + p["c"]  # noqa: E731
    p = {"a": np.eye(2), "b": np.array([[2.0], [1.0]]), "c": np.array([[0.5]])}
    p = jax.tree.map(jnp.float32, p)
    keep = {"a:1": np.array([True, False])}
    found = compress.reconstruct(fn, surgery.groups(fn)(p, x), p, [x], keep)
    np.testing.assert_allclose(found.variables["b"][0, 0], 2.0, rtol=1e-4)
    np.testing.assert_allclose(found.variables["c"][0, 0], 3.5, rtol=1e-4)


def test_lasso_g9_gram_form_is_row_form():
    rng = np.random.default_rng(1)
    n, taps, c, m, alpha = 200, 9, 5, 3, 2.0
    x, w = rng.normal(size=(n, taps * c)), rng.normal(size=(taps * c, m))
    w *= np.tile([0.3, 0.3, 1, 1, 1], taps)[:, None]
    y, channels = x @ w + rng.normal(size=(n, m)), np.tile(np.arange(c), taps)
    a, b = normal_form((x.T @ x)[None], (x.T @ y)[None], w[None], channels, c)
    beta = lasso(a / (n * m), b / (n * m), alpha)
    z = np.stack(
        [(x[:, channels == i] @ w[channels == i]).ravel() for i in range(c)], 1
    )
    theirs = Lasso(alpha=alpha, fit_intercept=False, tol=1e-12, max_iter=10**6)
    theirs.fit(z, y.ravel())
    assert 0 < np.count_nonzero(beta) < c
    np.testing.assert_allclose(beta, theirs.coef_, atol=1e-8)


def test_lasso_g10_noise_does_not_survive():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(100, 1))
    z = np.concatenate([x, x, 1e-3 * rng.normal(size=(100, 1))], 1)
    y = z.sum(1)
    found = select_channels(z.T @ z / 100, z.T @ y / 100, 1)
    assert found.keep.sum() == 1 and not found.keep[2]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("keep", [2, 3, 5])
def test_the_choice_is_close_to_the_best_subset(seed, keep):
    """Against every subset: within 30 % of its error, far better than the worst."""
    rng = np.random.default_rng(seed)
    x, c = rng.normal(size=(80, 7)) @ rng.normal(size=(7, 7)), 7
    w = rng.normal(size=(c, 2)) * rng.uniform(0.1, 2, size=(c, 1))
    y = x @ w
    gram, cross, total = (x.T @ x)[None], (x.T @ y)[None], float((y * y).sum())
    a, b = normal_form(gram, cross, w[None], np.arange(c), c)

    def error(mask):
        new = least_squares(gram, cross, w[None], mask, 0.0)
        return squared_error(gram, cross, total, new) / total

    subsets = [np.isin(np.arange(c), s) for s in itertools.combinations(range(c), keep)]
    errors = sorted(map(error, subsets))
    found = select_channels(a / 160, b / 160, keep)
    assert found.keep.sum() == keep
    assert error(found.keep) <= np.median(errors)


def test_counts_are_exact_even_with_dead_and_equal_channels():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3))
    z = np.concatenate([x, x, np.zeros((50, 2))], 1)
    a, b = z.T @ z, z.T @ z.sum(1)
    for keep in range(1, 9):
        assert select_channels(a, b, keep).keep.sum() == keep


# Networks


def fitted(x, w, keep):
    fn = lambda p, x: (x @ p["a"]) @ p["b"]  # noqa: E731
    p = {"a": jnp.eye(2), "b": jnp.asarray(w, jnp.float32)[:, None]}
    deps = surgery.groups(fn)(p, x)
    return compress.reconstruct(fn, deps, p, [x], {"a:1": np.array(keep)})


def conv(x, w, stride=1):
    return lax.conv_general_dilated(
        x, w, (stride,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def norm(p, x):
    row = {n: v[None, None, None] for n, v in p.items()}
    scale = row["scale"] * lax.rsqrt(row["var"] + 1e-3)
    return (x - row["mean"]) * scale + row["bias"]


def resnet(p, x):
    """Stem, an identity block, a block with projection, flatten, dense."""
    x = jax.nn.relu(norm(p["n0"], conv(x, p["stem"])))
    y = jax.nn.relu(norm(p["n1"], conv(x, p["a1"])))
    x = jax.nn.relu(x + norm(p["n2"], conv(y, p["a2"])))
    y = jax.nn.relu(norm(p["n3"], conv(x, p["b1"], 2)))
    y = norm(p["n4"], conv(y, p["b2"]))
    x = jax.nn.relu(norm(p["n5"], conv(x, p["proj"], 2)) + y)
    return x.reshape(x.shape[0], -1) @ p["head"] + p["bias"][None]


def resnet_params(width=6):
    shapes = {
        "stem": (3, 3, 2, width),
        "a1": (3, 3, width, width),
        "a2": (3, 3, width, width),
        "b1": (3, 3, width, 2 * width),
        "b2": (3, 3, 2 * width, 2 * width),
        "proj": (1, 1, width, 2 * width),
        "head": (4 * 4 * 2 * width, 3),
        "bias": (3,),
    }
    p = {n: 0.3 * normal(i, *s) for i, (n, s) in enumerate(shapes.items())}
    for i, w in enumerate((width,) * 3 + (2 * width,) * 3):
        p[f"n{i}"] = {
            "scale": 1 + 0.3 * normal(20 + i, w),
            "bias": 0.3 * normal(30 + i, w),
            "mean": 0.2 * normal(40 + i, w),
            "var": 1 + 0.3 * normal(50 + i, w) ** 2,
        }
    return p


@pytest.mark.slow
def test_a_residual_network_loses_less_than_by_plain_removal():
    p, batches = resnet_params(), [normal(60 + i, 8, 8, 8, 2) for i in range(3)]
    deps = surgery.groups(resnet)(p, batches[0])
    keep = {"a1:3": 3, "b1:3": 6}
    found = compress.reconstruct(resnet, deps, p, batches, keep)
    assert {g: int(k.sum()) for g, k in found.keep.items()} == keep
    assert sorted(found.layers) == ["a2", "b2"]
    assert all(fit.fitted < fit.removed for fit in found.layers.values())
    small = surgery.shrink(resnet, found.plan)
    x = batches[0]
    zeroed = resnet(found.plan.zero(found.variables), x)
    compact = small(found.plan.pack(found.variables), x)
    np.testing.assert_allclose(compact, zeroed, rtol=1e-3, atol=1e-3)
    plain = resnet(found.plan.zero(p), x)
    dense = resnet(p, x)
    assert distance(compact, dense) < 0.8 * distance(plain, dense)
    # Only the refitted kernels and the running means behind them have changed.
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), p, found.variables)
    names = {
        "/".join(str(k.key) for k in path)
        for path, on in jax.tree_util.tree_leaves_with_path(changed)
        if on
    }
    assert names == {"a2", "b2", "n2/mean", "n4/mean"}


def distance(y, reference):
    return float(jnp.linalg.norm(y - reference) / jnp.linalg.norm(reference))


def test_a_layer_is_fitted_by_the_normal_equations_of_what_it_reads():
    """The first block's second layer, recomputed in NumPy with all rows."""
    p, x = resnet_params(), normal(60, 8, 8, 8, 2)
    deps = surgery.groups(resnet)(p, x)
    mask = np.arange(6) % 2 == 0
    found = compress.reconstruct(resnet, deps, p, [x], {"a1:3": mask}, ridge=0.0)
    h = jax.nn.relu(norm(p["n0"], conv(x, p["stem"])))
    y = jax.nn.relu(norm(p["n1"], conv(h, p["a1"])))
    rows = lax.conv_general_dilated_patches(
        y, (3, 3), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    rows = np.asarray(rows, np.float64).reshape(-1, 6, 9)[:, mask].reshape(-1, 27)
    target = np.asarray(conv(y, p["a2"]), np.float64).reshape(-1, 6)
    ones = np.ones((len(rows), 1))
    best = np.linalg.lstsq(np.concatenate([rows, ones], 1), target, rcond=None)[0]
    kernel = best[:-1].reshape(3, 3, 3, 6).transpose(1, 2, 0, 3)
    np.testing.assert_allclose(found.variables["a2"][:, :, mask], kernel, atol=2e-3)
    np.testing.assert_allclose(
        found.variables["n2"]["mean"], p["n2"]["mean"] - best[-1], atol=2e-3
    )


def test_the_last_layer_before_a_sum_makes_up_for_the_stream():
    """The stream is changed by the first block; the second one aims at the old sum."""
    p, x = resnet_params(), normal(60, 16, 8, 8, 2)
    deps = surgery.groups(resnet)(p, x)
    keep = {"a1:3": np.arange(6) < 2, "proj": np.arange(6) < 6}

    def stream(p):
        # the sum behind the projection, the last summand of the program
        h = jax.nn.relu(norm(p["n0"], conv(x, p["stem"])))
        y = jax.nn.relu(norm(p["n1"], conv(h, p["a1"])))
        h = jax.nn.relu(h + norm(p["n2"], conv(y, p["a2"])))
        y = jax.nn.relu(norm(p["n3"], conv(h, p["b1"], 2)))
        return norm(p["n5"], conv(h, p["proj"], 2)) + norm(p["n4"], conv(y, p["b2"]))

    keep |= {"proj": np.arange(6) != 5}
    found = compress.reconstruct(resnet, deps, p, [x], keep)
    assert found.sampled.keys() == {"proj"}
    alone = compress.reconstruct(resnet, deps, p, [x], {"a1:3": keep["a1:3"]})
    masked = dict(alone.variables)
    masked["proj"] = masked["proj"].at[:, :, 5].set(0)
    old = stream(p)
    assert distance(stream(found.variables), old) < distance(stream(masked), old)


def test_a_whole_stream_is_chosen_once_for_all_its_readers():
    p, x = resnet_params(), normal(60, 8, 8, 8, 2)
    deps = surgery.groups(resnet)(p, x)
    (stream,) = [g.id for g in deps if sum(r.role == "in" for r in g.members) == 3]
    found = compress.reconstruct(resnet, deps, p, [x], {stream: 4})
    assert found.keep[stream].sum() == 4
    assert sorted(found.layers) == ["a1", "b1", "proj"]
    packed = found.plan.pack(found.variables)
    assert packed["stem"].shape == (3, 3, 2, 4)
    compact = surgery.shrink(resnet, found.plan)(packed, x)
    plain = surgery.shrink(resnet, found.plan)(found.plan.pack(p), x)
    assert distance(compact, resnet(p, x)) < distance(plain, resnet(p, x))


def attention(p, x):
    q, k, v = (jnp.einsum("bsd,dhe->bshe", x, p[n]) for n in "qkv")
    a = jax.nn.softmax(jnp.einsum("bshe,bthe->bhst", q, k))
    y = jnp.einsum("bhst,bthe->bshe", a, v)
    return jnp.einsum("bshe,hed->bsd", y, p["o"]) + p["ob"][None, None]


def test_heads_and_head_dimensions_are_channels_of_the_output_projection():
    p = {n: normal(i, 6, 4, 3) for i, n in enumerate("qkv")}
    p |= {"o": normal(3, 4, 3, 6), "ob": normal(4, 6)}
    x = normal(5, 8, 7, 6)
    deps = surgery.groups(attention)(p, x)
    heads = next(
        g for g in deps if ("o",) in [r.path for r in g.members] and g.size == 4
    )
    width = next(
        g for g in deps if ("o",) in [r.path for r in g.members] and g.size == 3
    )
    found = compress.reconstruct(attention, deps, p, [x], {heads.id: 2, width.id: 2})
    packed = found.plan.pack(found.variables)
    assert packed["o"].shape == (2, 2, 6)
    small = surgery.shrink(attention, found.plan)
    plain = small(found.plan.pack(p), x)
    dense = attention(p, x)
    assert distance(small(packed, x), dense) < distance(plain, dense)
    assert found.layers["o"].kept == 4 and found.layers["o"].of == 12


def test_a_flattened_map_is_read_channel_by_channel():
    def fn(p, x):
        h = jax.nn.relu(conv(x, p["c"]))
        return h.reshape(h.shape[0], -1) @ p["d"] + p["b"][None]

    p = {"c": normal(0, 3, 3, 2, 4), "d": normal(1, 9 * 4, 3), "b": normal(2, 3)}
    x = normal(3, 90, 3, 3, 2)
    deps = surgery.groups(fn)(p, x)
    found = compress.reconstruct(fn, deps, p, [x], {"c:3": 2})
    assert found.layers["d"].kept == 18
    packed = found.plan.pack(found.variables)
    small = surgery.shrink(fn, found.plan)
    y = fn(p, x)
    plain = small(found.plan.pack(p), x)
    assert distance(small(packed, x), y) < 0.7 * distance(plain, y)


def test_what_cannot_be_reconstructed_is_an_error():
    p, x = resnet_params(), normal(60, 2, 8, 8, 2)
    deps = surgery.groups(resnet)(p, x)
    run = lambda keep, b=(x,): compress.reconstruct(resnet, deps, p, b, keep)  # noqa: E731
    with pytest.raises(ValueError, match="neither a group nor a parameter"):
        run({"a9": 3})
    with pytest.raises(ValueError, match="count from 1 to 6"):
        run({"a1:3": 7})
    with pytest.raises(ValueError, match="`keep` is empty"):
        run({})
    with pytest.raises(ValueError, match="`batches` is empty"):
        run({"a1:3": 3}, [])
    with pytest.raises(ValueError, match="one shape"):
        run({"a1:3": 3}, [x, x[:1]])
    tied = lambda p, x: jnp.tanh(jnp.tanh(x @ p["a"]) @ p["w"]) @ p["w"]  # noqa: E731
    q = {"a": normal(0, 3, 4), "w": normal(1, 4, 4)}
    found = surgery.groups(tied)(q, x[0, 0, :, :1].repeat(3, 1))
    for group in found:
        with pytest.raises(ValueError, match="several places"):
            compress.reconstruct(tied, found, q, [normal(2, 5, 3)], {group.id: 2})


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_data_that_is_not_finite_is_refused(value):
    """One such example in a thousand would make every weight NaN, or any choice."""

    def net(p, x):
        return x @ p["a"] @ p["b"]

    p = {"a": jnp.eye(4), "b": jnp.ones((4, 2))}
    x = jnp.ones((5, 4)).at[2, 1].set(value)
    deps = surgery.groups(net)(p, x)
    for call in (
        lambda: compress.reconstruct(net, deps, p, [x], {"a:1": 2}),
        lambda: compress.wanda(net, p, [jnp.ones((5, 4)), x], sparsity=0.5),
        lambda: compress.sparse_gpt(net, p, [x], sparsity=0.5),
    ):
        with pytest.raises(ValueError, match="must give finite .* [ab] reads"):
            call()
    with pytest.raises(ValueError, match="`keep` must be a mapping by group id"):
        compress.reconstruct(net, deps, p, [x], None)  # type: ignore[arg-type]


def test_a_fit_to_fewer_rows_than_inputs_is_a_warning():
    def net(p, x):
        return (x @ p["a"]) @ p["b"]

    rng = np.random.default_rng(0)
    p = {"a": rng.standard_normal((6, 12)), "b": rng.standard_normal((12, 3))}
    p = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), p)
    x = rng.standard_normal((8, 6)).astype(np.float32)
    deps = surgery.groups(net)(p, x)
    with pytest.warns(UserWarning, match="(?s)fewer rows.*b: 8 rows for 9 inputs"):
        compress.reconstruct(net, deps, p, [x], {"a:1": 9})
    compress.reconstruct(net, deps, p, [x], {"a:1": 8})  # a warning is an error here
