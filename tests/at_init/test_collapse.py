"""Emptied layers, critical sparsity, effective masks and shuffles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models.digits_resnet import DigitsResNet
from jprune import at_init, masks


def chain(params, x):
    for key in sorted(params):
        x = jax.nn.relu(x @ params[key])
    return x


def reachable(mask):
    """Forward from every input and backward from every output, in NumPy."""
    layers = [np.asarray(mask[key]) for key in sorted(mask)]
    ahead = [np.ones(layers[0].shape[0], bool)]
    for m in layers:
        ahead.append((m & ahead[-1][:, None]).any(0))
    behind = [np.ones(layers[-1].shape[1], bool)]
    for m in layers[::-1]:
        behind.append((m & behind[-1][None]).any(1))
    behind.reverse()
    return {
        key: m & ahead[i][:, None] & behind[i + 1][None]
        for i, (key, m) in enumerate(zip(sorted(mask), layers, strict=True))
    }


def test_robust_init_g8():
    """Direct sparsity 0.7, effective 0.8: M1[2,1] feeds a unit that feeds nothing."""
    mask = {
        "a": jnp.array([[1, 0], [0, 0], [0, 1]], bool),
        "b": jnp.array([[1, 0], [0, 0]], bool),
    }
    params = jax.tree.map(lambda m: -jnp.ones(m.shape), mask)
    active = masks.effective(mask, at_init.flow(chain, params, jnp.ones(3)))
    assert float(masks.sparsity(mask)) == np.float32(0.7)
    assert float(masks.sparsity(active)) == np.float32(0.8)
    jax.tree.map(np.testing.assert_array_equal, active, reachable(mask))


def test_flow_and_reachability_agree_however_deep():
    """40 layers of 30 units with 1 weight in 15: no overflow, no underflow."""
    rng = np.random.default_rng(0)
    shapes = {f"{i:02}": (30, 30) for i in range(40)}
    params = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    effective = jax.jit(
        lambda m: masks.effective(m, at_init.flow(chain, params, jnp.ones(30)))
    )
    for share in (0.05, 0.07, 0.5, 1.0):
        mask = {k: rng.random(s) < share for k, s in shapes.items()}
        want = reachable(mask)
        jax.tree.map(np.testing.assert_array_equal, effective(mask), want)


@pytest.mark.slow
def test_flow_of_a_network_with_norms_and_shortcuts():
    """Cutting both branches of a block cuts the network; cutting one does not."""
    net = DigitsResNet(width=4)
    x = jnp.ones((1, 8, 8, 1))
    variables = jax.jit(net.init)(jax.random.key(0), x)
    params, stats = variables["params"], variables["batch_stats"]
    apply = lambda v, x: net.apply(v, x)  # noqa: E731
    scope = masks.prunable(variables)
    whole = jax.tree.map(
        lambda p, t: jnp.ones(p.shape, bool) if t else jnp.array(True), variables, scope
    )
    effective = jax.jit(lambda m: masks.effective(m, at_init.flow(apply, variables, x)))

    def cut(*names):
        mask = {"params": dict(whole["params"]), "batch_stats": whole["batch_stats"]}
        for name in names:
            kernel = jnp.zeros(params[name]["kernel"].shape, bool)
            mask["params"][name] = {"kernel": kernel}
        return mask, effective(mask)

    assert stats and int(masks.count(effective(whole))) == int(masks.count(whole))
    mask, active = cut("Conv_5")  # the shortcut of the second block
    assert at_init.emptied(mask) == ("params/Conv_5/kernel",)
    assert int(masks.count(active)) == int(masks.count(mask))
    mask, active = cut("Conv_3", "Conv_5")
    assert not int(masks.count(active)) and len(at_init.emptied(mask)) == 2
    _, active = cut("Conv_4")  # its second convolution: the first feeds nothing now
    assert at_init.emptied(active) == ("params/Conv_3/kernel", "params/Conv_4/kernel")


def test_robust_init_g9():
    """C's best is the smallest best; 3 of 6 pruned empty C, 2 of 6 empty none."""
    scores = {
        "A": jnp.array([5.0, 4.0]),
        "B": jnp.array([3.0, 0.5, 0.2]),
        "C": jnp.array([1.0]),
    }
    critical = jax.jit(lambda s: at_init.critical_sparsity(s, scope="."))(scores)
    assert float(critical) == 0.5
    empty = masks.unstructured(scores, keep=3, scope=".", min_keep=0)
    assert at_init.emptied(empty) == ("C",)
    below = masks.unstructured(scores, keep=4, scope=".", min_keep=0)
    assert at_init.emptied(below) == ()
    repaired = masks.unstructured(scores, keep=3, scope=".")
    assert at_init.emptied(repaired) == () and int(masks.count(repaired)) == 3


def test_critical_sparsity_is_where_the_ranking_first_empties_a_leaf():
    """Against counting down one weight at a time, plain and signed."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scores = [rng.normal(size=n).astype(np.float32) for n in (9, 5, 3)]
        for signed in (False, True):
            got = float(at_init.critical_sparsity(scores, ".", signed))
            ranks = scores if signed else [np.abs(s) for s in scores]
            order = np.sort(np.concatenate(ranks))
            gone = next(n for n in range(1, 18) if _empties(ranks, order[n - 1]))
            assert got == np.float32(gone / 17)


def _empties(ranks, threshold):
    return any(np.all(r <= threshold) for r in ranks)


def test_emptied_reads_on_the_host():
    with pytest.raises(TypeError, match="`emptied` reads a mask on the host"):
        jax.jit(at_init.emptied)(jnp.ones(3, bool))
    # An array without entries is not an emptied layer, nor is a leaf out of scope.
    assert at_init.emptied({"a": jnp.ones((0, 3), bool), "b": jnp.array(True)}) == ()


def test_shuffle_keeps_the_number_of_each_leaf():
    mask = {
        "a": jnp.arange(12).reshape(3, 4) < 5,
        "b": jnp.zeros((2, 2), bool),
        "bias": jnp.array(True),
    }
    shuffle = jax.jit(at_init.shuffle)
    draws = [shuffle(jax.random.key(i), mask) for i in range(300)]
    for got in draws:
        assert int(got["a"].sum()) == 5 and not np.any(got["b"])
        assert got["bias"].ndim == 0 and bool(got["bias"])
    # Each entry is kept as often as the others: 300 * 5 / 12 = 125, sigma 8.5.
    often = sum(np.asarray(got["a"], int) for got in draws)
    assert np.all(np.abs(often - 125) < 40)
    assert at_init.shuffle(jax.random.key(0), jnp.array(True)).shape == ()


def test_flow_of_a_stack_is_that_of_its_layers():
    layers = 32
    params = {"layers": {"kernel": jnp.ones((layers, 4, 4))}, "out": jnp.ones((4, 1))}

    def scanned(p, x):
        step = lambda h, w: (jax.nn.relu(h @ w), None)  # noqa: E731
        return jax.lax.scan(step, x, p["layers"]["kernel"])[0] @ p["out"]

    def unrolled(p, x):
        for i in range(layers):
            x = jax.nn.relu(x @ p[f"l{i}"])
        return x @ p["out"]

    each = {f"l{i}": jnp.ones((4, 4)) for i in range(layers)}
    x = jnp.ones(4)
    one = at_init.flow(scanned, params, x)(params)
    other = {**each, "out": params["out"]}
    assert float(one) == float(at_init.flow(unrolled, other, x)(other)) == 1
    kept = masks.full(params)
    kept["layers"]["kernel"] = kept["layers"]["kernel"].at[3, :, 1].set(False)
    active = masks.effective(kept, at_init.flow(scanned, params, x))
    # What leads to a dead unit is dead, and what leaves it.
    assert int(masks.count(active)) == int(masks.count(kept)) - 4
