"""Methods chained: a few hundred steps on digits, and the sparsity stays exact."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import masks, reparam, transforms
from tests.digits_net import STEPS, accuracy, loss, run, start, train


def kept(params):
    """Kernel weights that are not zero, and how many a sparsity of 90 % leaves."""
    scope = masks.prunable(params)
    count = int(masks.count(masks.from_zeros(params), scope=scope))
    return count, masks.kept_count(masks.size(params), 0.9)


@pytest.mark.slow
def test_swd_with_powerpropagation():
    r = reparam.powerpropagation(2)
    tx = transforms.swd(0.1, mu=1e-4, a_max=1e3, total_steps=STEPS, sparsity=0.9)
    theta = r.init(start())
    transforms.check(tx, theta)
    params, mask = r.export(train(tx, theta, objective=reparam.wrap(loss, r)))
    count, want = kept(params)
    assert count == want == int(masks.count(mask))
    assert accuracy(params) > 0.9


def averaged(inner):
    """The inner steps, with a running mean of the parameters in the state."""

    def init(params):
        return inner.init(params), params

    def update(updates, state, params):
        updates, following = inner.update(updates, state[0], params)
        moved = optax.apply_updates(params, updates)
        return updates, (following, optax.incremental_update(moved, state[1], 0.02))

    return optax.GradientTransformation(init, update)


def ema():
    gradual = transforms.prune_gradually(0.9, end=200, every=10)
    params, state = run(averaged(optax.chain(optax.adam(0.01), gradual)), start())
    count, want = kept(params)
    assert count == want  # the iterates are sparse
    return state[1]


def schedule_free():
    tx = optax.contrib.schedule_free(optax.adam(0.01, b1=0.0), 0.01, b1=0.9)
    params, state = run(tx, start())
    return optax.contrib.schedule_free_eval_params(state, params)


@pytest.mark.parametrize("mean", [ema, schedule_free])
def test_averaged_weights_are_masked_again_by_finish(mean):
    """A mean of sparse iterates is not sparse; `finish` makes it so, to the count."""
    params = mean()
    count, want = kept(params)
    assert count > want
    final, mask = transforms.finish(params, lambda p: masks.unstructured(p, 0.9))
    assert kept(final)[0] == want == int(masks.count(mask))
    same = jax.tree.map(lambda a, b: bool(np.all((a == 0) | (a == b))), final, params)
    assert all(jax.tree.leaves(same)) and accuracy(params) > 0.9


@pytest.mark.slow
def test_gradual_n_of_m_then_fine_tuning_under_its_mask():
    """Two chains, two optimizers: the first reaches 2:4, the second keeps it."""
    first = optax.chain(
        optax.sgd(0.1, 0.9), transforms.prune_to_n_of_m(2, 4, begin=50, end=200)
    )
    pruned, state = run(first, start(), 250)
    mask = masks.from_zeros(pruned)
    jax.tree.map(np.testing.assert_array_equal, mask, state[1].mask)
    second = optax.chain(
        optax.adamw(0.01, weight_decay=0.01), transforms.keep_masked(mask)
    )
    transforms.check(second, pruned)
    tuned = train(second, pruned)
    kept_now = masks.from_zeros(tuned)
    jax.tree.map(np.testing.assert_array_equal, kept_now, mask)
    assert masks.is_n_of_m(kept_now, 2, 4)
    assert int(masks.count(kept_now)) == masks.size(tuned) // 2
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), pruned, tuned)
    assert all(jax.tree.leaves(moved)) and accuracy(tuned) > 0.95


@pytest.mark.parametrize(
    "method", ["rigl", pytest.param("set", marks=pytest.mark.slow)]
)
def test_a_moving_mask_under_multisteps(method):
    """Gradients of two steps make one; the mask moves every fifth of those."""
    settings = {"sparsity": 0.9, "every": 5, "momentum": 0.9, "key": 1}
    if method == "rigl":
        inner = transforms.rigl(0.2, end=100, **settings)
    else:
        inner = transforms.sparse_evolutionary(0.2, end=100, **settings)
    tx = optax.MultiSteps(inner, 2)
    first = jax.jit(tx.init)(start()).inner_opt_state.mask
    params, state = run(tx, start())
    mask = state.inner_opt_state.mask
    _, want = kept(params)
    assert int(masks.count(mask)) == want
    outside = jax.tree.map(lambda p, m: bool(np.all((p == 0) | m)), params, mask)
    assert all(jax.tree.leaves(outside))
    assert kept(params)[0] > 0.8 * want  # grown where nothing flows, some are still 0
    stayed = jax.tree.map(lambda a, b: a & b, first, mask)
    assert 0 < int(masks.count(stayed)) < want
    assert int(state.inner_opt_state.count) == 150 and accuracy(params) > 0.85


def test_check_warns_of_a_chain_that_climbs():
    """A recipe behind an optimizer turns the sign twice; so does no learning rate."""
    params = {"kernel": jnp.arange(1.0, 65.0).reshape(8, 8)}
    recipe = transforms.swd(0.1, mu=1e-4, total_steps=5, sparsity=0.5)
    prune = transforms.prune_gradually(0.5, end=3)
    for wrong in (
        optax.chain(optax.adam(1e-3), recipe),
        optax.chain(optax.scale_by_adam(), prune),
        optax.chain(optax.sgd(0.1), recipe),
        optax.MultiSteps(optax.chain(optax.adam(1e-3), recipe), 3),
    ):
        with pytest.warns(UserWarning, match="the loss will climb.*in place of"):
            transforms.check(wrong, params, steps=6)
    for right in (recipe, prune, optax.chain(optax.adam(1e-3), prune)):
        transforms.check(right, params, steps=6)  # a warning is an error here


def test_check_looks_at_the_slow_weights_of_lookahead():
    """They are averages of what the projection left; `finish` removes from them."""
    params = optax.LookaheadParams.init_synced({"w": jnp.arange(1.0, 17).reshape(4, 4)})
    chain = optax.chain(optax.sgd(0.1), transforms.prune_gradually(0.5, end=4))
    with pytest.raises(ValueError, match="Removed weights do not end at exactly 0"):
        transforms.check(optax.lookahead(chain, 3, 0.5), params, steps=6)
