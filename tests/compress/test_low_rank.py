"""Factorised networks against the truncated ones: uses, layouts, frameworks, errors."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import analysis, compress, surgery, transforms
from jprune.compress import Unfolding


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def drawn(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def folded(kernel: Any, rows: tuple, columns: tuple, each: tuple, rank: int) -> Any:
    """The kernel truncated, in NumPy: the oracle of every test here."""
    kernel = np.asarray(kernel)
    order = (*each, *rows, *columns)
    moved = kernel.transpose(order)
    height = int(np.prod([kernel.shape[a] for a in rows]))
    shape = [kernel.shape[a] for a in each]
    u, s, vt = np.linalg.svd(moved.reshape(*shape, height, -1), full_matrices=False)
    cut = (u[..., :rank] * s[..., None, :rank]) @ vt[..., :rank, :]
    return cut.reshape(moved.shape).transpose(np.argsort(order))


ROWS = {
    "channel": ((0, 1, 2), (3,), ()),
    "spatial": ((0, 2), (1, 3), ()),
    "decoupled": ((2,), (0, 1), (3,)),
}


def conv(p, x, stride=(1, 1), padding: Any = "SAME", lhs=(1, 1), rhs=(1, 1)):
    return jax.lax.conv_general_dilated(
        x, p["kernel"], stride, padding, lhs, rhs, ("NHWC", "HWIO", "NHWC")
    )


def close(got, want, tolerance=1e-10):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        scale = max(float(np.abs(b).max()), 1e-30)
        assert a.shape == b.shape
        assert float(np.abs(np.asarray(a) - np.asarray(b)).max()) <= tolerance * scale


def check(fn, params, leaf, rank, *args, kind="channel", how=ROWS["channel"]):
    """The factorised function is the truncated one, and so are its gradients."""
    thin = compress.low_rank(fn, params, {leaf: rank}, kind=kind)

    def cut_at(path, w):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return jnp.asarray(folded(w, *how, rank)) if name == leaf else w

    cut = jax.tree_util.tree_map_with_path(cut_at, params)
    close(jax.jit(thin.fn)(thin.params, *args), jax.jit(fn)(cut, *args))
    return thin, cut


# -- the numbers of the specification, section (g) -------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", ["channel", "spatial"])
def test_trp_g6_factors_equal_the_truncated_convolution(kind, stride):
    params, x = {"kernel": drawn(0, 3, 3, 4, 6)}, drawn(1, 2, 8, 8, 4)
    dense = jax.jit(lambda p, x: conv(p, x, (stride, stride)))
    for rank in (2, 6):
        thin = compress.low_rank(
            dense, params, {"kernel": rank}, kind=kind, break_even=False
        )
        cut = {"kernel": jnp.asarray(folded(params["kernel"], *ROWS[kind], rank))}
        close(jax.jit(thin.fn)(thin.params, x), dense(cut, x))
    most = {"channel": 6, "spatial": 12}[kind]
    full = compress.low_rank(
        dense, params, {"kernel": most}, kind=kind, break_even=False
    )
    close(jax.jit(full.fn)(full.params, x), dense(params, x))


def test_trp_g7_shapes_and_sizes():
    params = {"kernel": drawn(0, 3, 3, 4, 6)}
    sizes = {}
    for kind in ("channel", "spatial"):
        pair = compress.low_rank(conv, params, {"kernel": 2}, kind=kind).params
        sizes[kind] = [x.shape for x in pair["kernel"]]
        sizes[kind].append(sum(x.size for x in pair["kernel"]))
    assert sizes["channel"] == [(3, 3, 4, 2), (2, 6), 84]
    assert sizes["spatial"] == [(3, 4, 2), (2, 3, 6), 60]
    assert params["kernel"].size == 216


@pytest.mark.parametrize("stride", [1, 2])
def test_trp_g8_decoupled_at_full_rank_is_the_convolution(stride):
    params, x = {"kernel": drawn(0, 3, 3, 4, 6)}, drawn(1, 2, 8, 8, 4)
    dense = jax.jit(lambda p, x: conv(p, x, (stride, stride)))
    full = compress.low_rank(
        dense, params, {"kernel": 4}, kind="decoupled", break_even=False
    )
    close(jax.jit(full.fn)(full.params, x), dense(params, x))
    each = np.array([1, 2, 1, 2, 2, 1])  # one rank for each output
    thin = compress.low_rank(dense, params, {"kernel": each}, kind="decoupled")
    parts = [
        folded(params["kernel"][..., o : o + 1], *ROWS["decoupled"], int(k))
        for o, k in enumerate(each)
    ]
    cut = {"kernel": jnp.asarray(np.concatenate(parts, -1))}
    close(jax.jit(thin.fn)(thin.params, x), dense(cut, x))
    assert thin.ranks == {"kernel": 2}
    assert len(thin.params["kernel"]) == 2  # two factors


# -- layouts and uses ------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(ROWS))
@pytest.mark.parametrize(
    "how",
    [
        {"stride": (2, 3), "padding": "VALID"},
        {"padding": ((2, 0), (1, 3)), "rhs": (1, 2)},
        {"lhs": (2, 1), "padding": ((1, 2), (0, 1)), "rhs": (2, 1)},
    ],
    ids=["valid", "dilated", "transposed"],
)
def test_stride_padding_and_dilation_go_axis_by_axis(kind, how):
    params, x = {"kernel": drawn(0, 3, 2, 4, 6)}, drawn(1, 2, 9, 8, 4)
    check(
        lambda p, x: conv(p, x, **how), params, "kernel", 1, x,
        kind=kind, how=ROWS[kind],
    )  # fmt: skip


def test_other_layouts_and_ranks_of_convolutions():
    x = drawn(1, 2, 4, 9, 8)

    def fn(p, x):
        return jax.lax.conv_general_dilated(x, p["w"], (2, 1), "SAME")  # OIHW

    how = Unfolding((1, 2), (0, 3))
    params = {"w": drawn(0, 6, 4, 3, 3)}
    check(fn, params, "w", 3, x, kind=how, how=how)
    reverse = Unfolding((0, 3), (1, 2))  # the output's side first
    check(fn, params, "w", 3, x, kind=reverse, how=reverse)

    def one(p, x):
        return jax.lax.conv_general_dilated(
            x, p["w"], (2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )

    how = Unfolding((0, 1), (2,))
    check(one, {"w": drawn(2, 3, 4, 6)}, "w", 2, drawn(3, 2, 8, 4), kind=how, how=how)


def test_matrices_however_they_stand():
    """Both operands, transposed, cast, scaled, batched, in either orientation."""
    x = drawn(1, 5, 8)
    plain = ((0,), (1,), ())
    uses: dict[str, Any] = {
        "right": lambda p, x: x @ p["w"],
        "left": lambda p, x: p["w"].T @ x.T,
        "columns": lambda p, x: (x @ p["w"]) @ p["w"].T,
        "scaled": lambda p, x: x @ -(p["w"] * 3.0 / p["c"]),
        "unit axes": lambda p, x: jnp.einsum("bi,ijk->bjk", x, p["w"][:, None]),
        "cast": lambda p, x: x @ jax.lax.stop_gradient(p["w"]).astype(x.dtype),
    }
    params = {"w": drawn(0, 8, 6), "c": jnp.float64(2)}
    for fn in uses.values():
        check(fn, params, "w", 2, x, how=plain)


def test_heads_and_stacks():
    """(d, heads, head) kernels, and layers that a scan runs over."""
    x = drawn(1, 5, 8)
    how = Unfolding((0,), (1, 2))
    check(
        lambda p, x: jnp.einsum("td,dhk->thk", x, p["q"]),
        {"q": drawn(0, 8, 3, 4)}, "q", 2, x, kind=how, how=how,
    )  # fmt: skip

    def stacked(p, x):
        def layer(h, w):
            return jnp.tanh(h @ w), h.sum()

        return jax.lax.scan(layer, x, p["w"])

    how = Unfolding((1,), (2,), (0,))
    check(stacked, {"w": drawn(0, 3, 8, 8)}, "w", 2, x, kind=how, how=how)

    def experts(p, x):
        return jnp.einsum("etd,edf->etf", x, p["w"])

    check(
        experts, {"w": drawn(2, 3, 8, 8)}, "w", 2, drawn(3, 3, 5, 8), kind=how, how=how
    )


def test_control_flow():
    plain = ((0,), (1,), ())
    x = drawn(1, 5, 8)
    params = {"w": drawn(0, 8, 8) / 4}

    def recurrent(p, x):
        def step(h, _):
            return jnp.tanh(h @ p["w"]), None

        return jax.lax.scan(step, x, length=3)[0]

    def branched(p, x):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ p["w"], lambda: 2 * x)

    def repeated(p, x):
        return jax.lax.fori_loop(0, x.shape[0], lambda i, h: jnp.tanh(h @ p["w"]), x)

    def until(p, x):
        return jax.lax.while_loop(
            lambda h: jnp.abs(h @ p["w"]).max() > 0.1, lambda h: 0.5 * (h @ p["w"]), x
        )

    def saved(p, x):
        return jax.checkpoint(lambda w, x: jnp.sin(jax.jit(jnp.matmul)(x, w)))(
            p["w"], x
        )

    for fn in (recurrent, branched, repeated, until, saved):
        check(fn, params, "w", 2, x, how=plain)
    _, cut = check(saved, params, "w", 2, x, how=plain)
    jaxpr = str(jax.make_jaxpr(compress.low_rank(saved, params, {"w": 2}).fn)(cut, x))
    assert "remat" in jaxpr


# -- frameworks, transformations -------------------------------------------------------


class Net(nn.Module):
    """A residual block with batch norm, pooling and a head."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        norm = nn.BatchNorm(use_running_average=not train)
        h = nn.relu(norm(nn.Conv(8, (3, 3), strides=2, use_bias=False)(x)))
        h = h + nn.Conv(8, (3, 3))(h)
        return nn.Dense(5)(h.mean((1, 2)))


@pytest.fixture(scope="module")
def network():
    with jax.enable_x64(True):
        x = drawn(1, 4, 8, 8, 6)
        net = Net()
        variables = jax.tree.map(
            lambda a: jnp.asarray(a, jnp.float64), net.init(jax.random.key(0), x)
        )
        return net.apply, variables, x


def test_a_flax_network_is_a_function_as_before(network):
    apply, variables, x = network
    ranks = {"params/Conv_0/kernel": 3, "params/Conv_1/kernel": 2}
    thin = compress.low_rank(apply, variables, ranks, x, kind="spatial")
    cut = jax.tree.map(lambda a: a, variables)
    for name, k in (("Conv_0", 3), ("Conv_1", 2)):
        kernel = cut["params"][name]["kernel"]
        cut["params"][name]["kernel"] = jnp.asarray(folded(kernel, *ROWS["spatial"], k))
    want = jax.jit(apply)(cut, x)
    close(jax.jit(thin.fn)(thin.params, x), want)
    close(jax.jit(thin.fn)(thin.params, x[:1]), want[:1])  # another batch size
    one = jax.jit(jax.vmap(thin.fn, (None, 0)))(thin.params, x[:, None])
    close(one[:, 0], want)
    got, stats = thin.fn(thin.params, x, train=True, mutable=["batch_stats"])
    want, expected = apply(cut, x, train=True, mutable=["batch_stats"])
    close((got, stats), (want, expected))
    # FLOPs, and the numbers stored, really are fewer
    fewer = analysis.flops(thin.fn)(thin.params, x) / analysis.flops(apply)(cut, x)
    assert fewer < 0.55
    sizes = [sum(a.size for a in jax.tree.leaves(t)) for t in (thin.params, variables)]
    assert sizes[0] < sizes[1]


def test_gradients_are_those_of_the_product(network):
    """dL/dA = (dL/dW) B^T and dL/dB = A^T dL/dW, from the dense gradient."""
    apply, variables, x = network
    name = "params/Conv_1/kernel"
    thin = compress.low_rank(apply, variables, {name: 2})
    pair = thin.params["params"]["Conv_1"]["kernel"]
    cut = jax.tree.map(lambda a: a, variables)
    cut["params"]["Conv_1"]["kernel"] = jnp.tensordot(*pair, 1)

    def loss(fn):
        return lambda v: jnp.sum(jnp.sin(fn(v, x)))

    got = jax.jit(jax.grad(loss(thin.fn)))(thin.params)
    want = jax.jit(jax.grad(loss(apply)))(cut)
    dense = want["params"]["Conv_1"].pop("kernel")
    factors = got["params"]["Conv_1"].pop("kernel")
    close(got, want)
    close(factors.first, jnp.tensordot(dense, pair.second, ([3], [1])))
    close(factors.second, jnp.tensordot(pair.first, dense, ([0, 1, 2], [0, 1, 2])))


@pytest.mark.slow
def test_factors_train_and_shrink_on(network):
    """They are a pytree for Optax, and their common axis is a group for surgery."""
    apply, variables, x = network
    thin = compress.low_rank(apply, variables, {"params/Conv_1/kernel": 3})
    params, rest = thin.params["params"], thin.params["batch_stats"]

    def fn(p, x):
        return thin.fn({"params": p, "batch_stats": rest}, x)

    tx = optax.adam(1e-2)
    state = tx.init(params)
    loss = jax.jit(jax.value_and_grad(lambda p: jnp.mean((fn(p, x) - 1) ** 2)))
    before, grads = loss(params)
    for _ in range(5):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        now, grads = loss(params)
    assert now < before
    deps = surgery.groups(fn)(params, x)
    at = ("Conv_1", "kernel", "second")
    group = next(g for g in deps if any(m.path == at and not m.axis for m in g.members))
    assert group.size == 3
    plan = surgery.plan_from_keep(deps, {group.id: [True, False, True]})
    small = surgery.shrink(fn, plan)(plan.pack(params), x)
    close(small, fn(plan.zero(params), x))


@pytest.mark.slow
def test_haiku_equinox_and_tuples():
    x = drawn(1, 3, 8)
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([8, 8, 4])(x)))
    params = net.init(jax.random.key(0), x)
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)
    plain = ((0,), (1,), ())
    check(net.apply, params, "mlp/~/linear_1/w", 2, x, how=plain)
    check(lambda p, x: x @ p[0] @ p[1], (drawn(0, 8, 8), drawn(2, 8, 3)), "0", 2, x,
          how=plain)  # fmt: skip
    check(lambda p, x: x @ p, drawn(0, 8, 8), "", 2, x, how=plain)
    model = eqx.nn.MLP(8, 4, 8, 2, key=jax.random.key(0), dtype=jnp.float64)
    thin = compress.low_rank(lambda m, x: m(x), model, {"layers/1/weight": 2}, x[0])
    assert thin.fn(thin.params, x[0]).shape == (4,) and thin.ranks


def test_ranks_of_a_trained_state():
    """The state's ranks lead to a network equal to the one at those ranks."""
    rng = np.random.default_rng(0)
    params = {"a": drawn(0, 12, 12), "b": drawn(1, 12, 12), "c": drawn(2, 12)}
    tx = transforms.truncate_rank(
        0.8, every=2, inner=optax.sgd(0.1), nuclear=0.1, end=2
    )
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(3):
        grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)

    def fn(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"] * p["c"][None]

    x = drawn(3, 4, 12)
    thin = compress.low_rank(fn, params, state.ranks, x, break_even=False)
    assert thin.ranks == {k: int(state.ranks[k]) for k in "ab"}
    close(thin.fn(thin.params, x), fn(params, x))


# -- what is refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "why"),
    [
        (lambda p, x: x @ jnp.tanh(p["w"]), "`tanh` reads it"),
        (lambda p, x: x @ p["w"] + (p["w"] ** 2).sum(), "reads it"),
        (lambda p, x: x @ (p["w"] * p["w"]), "`mul` reads it"),
        (lambda p, x: (x @ p["w"], p["w"]), "it is a result"),
        (lambda p, x: x @ p["w"] + p["w"][0][None], "reads it"),
        (lambda p, x: x[:, :4] @ p["w"].reshape(4, 16), "`reshape` reads it"),
        (lambda p, x: x @ (p["w"] @ p["w"]), "another such kernel"),
        (lambda p, x: jnp.einsum("bi,ij,bj->b", x, p["w"], x), ""),
        (lambda p, x: jax.lax.scan(lambda h, w: (h, h @ w), x, p["w"]), "runs over"),
        (lambda p, x: jax.lax.scan(lambda w, _: (w.T, x), p["w"], length=2), "state"),
    ],
    ids=[
        "tanh", "penalty", "square", "result", "row", "reshape", "product", "bilinear",
        "loop", "carry",
    ],
)  # fmt: skip
def test_a_use_that_cannot_be_factored_is_refused(fn, why):
    params, x = {"w": drawn(0, 8, 8)}, drawn(1, 4, 8)
    thin = compress.low_rank(fn, params, {"w": 2})
    if not why:
        close(thin.fn(thin.params, x), fn({"w": jnp.matmul(*thin.params["w"])}, x))
        return
    with pytest.raises(ValueError, match=f"(?s)otherwise than in contra.*w: .*{why}"):
        thin.fn(thin.params, x)
    with pytest.raises(ValueError, match="rank 0"):
        compress.low_rank(fn, params, {"w": 2}, x)


def test_two_uses_of_different_unfoldings_are_refused():
    w = {"kernel": drawn(0, 4, 8, 8)}
    x = drawn(1, 4, 8)

    def fn(p, x):
        return jnp.einsum("hi,hio->o", x, p["kernel"]) + jnp.einsum(
            "hi,hoi->o", x, p["kernel"]
        )

    thin = compress.low_rank(fn, {"kernel": w["kernel"]}, {"kernel": 2},
                             kind=Unfolding((0, 1), (2,)))  # fmt: skip
    with pytest.raises(ValueError, match=r"sums over axes \[0, 2\], neither the rows"):
        thin.fn(thin.params, x)


def test_convolutions_that_are_refused():
    x = drawn(1, 2, 8, 8, 4)

    def grouped(p, x):
        return jax.lax.conv_general_dilated(
            x, p["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )  # fmt: skip

    thin = compress.low_rank(grouped, {"kernel": drawn(0, 3, 3, 2, 6)}, {"kernel": 2})
    with pytest.raises(ValueError, match="grouped convolution"):
        thin.fn(thin.params, x)
    params = {"kernel": drawn(0, 3, 3, 4, 6)}
    for how, why in (
        (Unfolding((0, 1), (2, 3)), "on one side"),
        (Unfolding((0, 1), (3,), (2,)), "only the output channels"),
    ):
        thin = compress.low_rank(conv, params, {"kernel": 1}, kind=how)
        with pytest.raises(ValueError, match=why):
            thin.fn(thin.params, x)


def test_errors():
    def fn(p, x):
        return x @ p["w"]

    params, x = {"w": drawn(0, 8, 8)}, drawn(1, 4, 8)
    with pytest.raises(
        ValueError, match=r"(?s)break-even.*w: rank 4 of 8 x 8 .* at 4.0"
    ):
        compress.low_rank(fn, params, {"w": 4})
    with pytest.raises(ValueError, match="`ranks` names no leaf with .'v'."):
        compress.low_rank(fn, params, {"v": 4})
    with pytest.raises(ValueError, match="at w must be integers from 1 to 8"):
        compress.low_rank(fn, params, {"w": 9})
    with pytest.raises(ValueError, match="at w must be integers from 1 to 8"):
        compress.low_rank(fn, params, {"w": 2.0})
    with pytest.raises(ValueError, match="`ranks` must have exactly the structure"):
        compress.low_rank(fn, params, [2, 3])
    with pytest.raises(ValueError, match="`ranks` must have .*, got a single int"):
        compress.low_rank(fn, params, 3)
    with pytest.raises(ValueError, match="outside of `jit`"):
        jax.jit(lambda k: compress.low_rank(fn, params, {"w": k}).params)(2)
    with pytest.raises(ValueError, match="No default unfolding for q"):
        compress.low_rank(fn, {"q": drawn(0, 2, 2, 2)}, {"q": 1})
    thin = compress.low_rank(fn, params, {"w": 2}, x)
    with pytest.raises(ValueError, match="factors at v, which was not split"):
        thin.fn({"v": thin.params["w"]}, x)
    with pytest.raises(ValueError, match="(?s)differ from those of the truncated"):
        compress.low_rank(fn, params, {"w": 2}, x, tolerance=0.0)
    params = {"v": drawn(2, 8, 8), **params}
    whole = compress.low_rank(fn, params, {"v": 2, "w": 6})
    assert whole.ranks == {"v": 2} and "break-even" in whole.whole["w"]


@pytest.mark.parametrize("few", [X0 := np.zeros((2, 6), "f"), X0 * np.nan, X0[:0]])
def test_outputs_that_show_nothing_are_refused(few):
    params = {"w": drawn(0, 6, 8)}
    with pytest.raises(ValueError, match="`low_rank` compares outputs on `args`"):
        compress.low_rank(lambda p, x: x @ p["w"], params, {"w": 2}, few)
