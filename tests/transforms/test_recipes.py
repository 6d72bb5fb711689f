"""What every recipe refuses: another optimizer in the place of its learning rate."""

import jax
import jax.numpy as jnp
import optax
import pytest

from jprune import transforms
from jprune.surgery import AxisRef, Group

GROUP = Group("a:1", 4, (AxisRef(("a",), 1, "out"),))
RECIPES = {
    "csgd": lambda tx: transforms.csgd(
        tx, [GROUP], {"a:1": [0, 0, 1, 1]}, strength=0.1, weight_decay=0.0
    ),
    "gap": lambda tx: transforms.gap(tx, 0.5, partitions=2, period=2, steps=1),
    "gsm": lambda tx: transforms.gsm(tx, sparsity=0.5, weight_decay=0.0),
    "issp": lambda tx: transforms.issp(tx, sparsity=0.5, total_steps=9),
    "rigl": lambda tx: transforms.rigl(tx, sparsity=0.5, total_steps=9),
    "sparse_evolutionary": lambda tx: transforms.sparse_evolutionary(
        tx, sparsity=0.5, every=1
    ),
    "sr_ste": lambda tx: transforms.sr_ste(tx, 2, 4),
    "static_sparse": lambda tx: transforms.static_sparse(tx, sparsity=0.5),
    "swd": lambda tx: transforms.swd(tx, mu=1e-4, total_steps=9, sparsity=0.5),
    "trp": lambda tx: transforms.trp(tx, every=2),
}


@pytest.mark.parametrize("name", RECIPES)
def test_an_optimizer_is_no_learning_rate(name):
    says = f"`learning_rate` must be a number.*`{name}` is a whole optimizer"
    with pytest.raises(TypeError, match=says):
        RECIPES[name](optax.adam(1e-3))


@pytest.mark.parametrize(
    "build",
    [
        lambda inner: transforms.drop_and_grow(inner, 0.5),
        lambda inner: transforms.grow_and_prune(
            inner, 0.5, partitions=2, period=2, steps=1
        ),
        lambda inner: transforms.truncate_rank(0.9, inner=inner),
    ],
)
def test_what_a_wrapper_stands_around_is_an_optimizer(build):
    for inner in (0.1, optax.adam):
        with pytest.raises(TypeError, match="`inner` must be an Optax transformation"):
            build(inner)
    build(optax.MultiSteps(optax.adam(1e-3), 2))
    with pytest.raises(TypeError, match="`tx` must be an Optax transformation"):
        transforms.check(3, {"w": jnp.ones((2, 2))})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "build, error, message",
    [
        (
            lambda: transforms.grow_and_prune(
                optax.sgd(0.1), 0.5, partitions=2, period=2, steps=1, rate=-1.0
            ),
            ValueError,
            "`rate` must be finite and >= 0, got -1.0",
        ),
        (
            lambda: transforms.trp(0.1, nuclear=float("nan")),
            ValueError,
            "`nuclear` must be finite and >= 0, got nan",
        ),
        (
            lambda: transforms.trp(0.1, min_rank=float("inf")),  # type: ignore[arg-type]
            ValueError,
            "`min_rank` must be a whole number, got inf",
        ),
        (
            lambda: transforms.swd(0.1, mu=0.1, total_steps=4, sparsity=0.5, every=-1),
            ValueError,
            "`every` must be at least 1, got -1",
        ),
        (
            lambda: transforms.add_selective_decay("a", 1.0, sparsity=0.5),  # type: ignore[arg-type]
            TypeError,
            "`mu` must be a number or a schedule, got 'a'",
        ),
        (
            lambda: transforms.rigl(0.1, sparsity=0.5, total_steps=9, key=1.5).init(
                {"w": jnp.ones((4, 4))}
            ),
            TypeError,
            "`key` must be a seed, an integer, or a key of `jax.random`, got 1.5",
        ),
    ],
)
def test_numbers_out_of_range_are_refused_before_the_run(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize(
    "build",
    [
        lambda end, steps: transforms.issp(
            0.1, sparsity=0.5, end=end, total_steps=steps
        ),
        lambda end, steps: transforms.issr(
            0.1, sparsity=0.5, end=end, total_steps=steps
        ),
        lambda end, steps: transforms.gap(
            0.1, 0.5, partitions=2, steps=1, period=end, total_steps=steps
        ),
    ],
    ids=["issp", "issr", "gap"],
)
def test_a_removal_that_comes_after_the_run_is_refused(build):
    """Step `end`, counted from 0, is that of update `end + 1`: it removed nothing."""
    with pytest.raises(ValueError, match="would come after the run|leave an update"):
        build(6, 6)
    keys = jax.random.split(jax.random.key(0))
    params = {
        name: jax.random.normal(k, (4, 8)) for name, k in zip("ab", keys, strict=True)
    }
    tx = build(2, 3)
    state, step = tx.init(params), jax.jit(tx.update)
    for _ in range(3):
        updates, state = step(params, state, params)
        params = optax.apply_updates(params, updates)
    assert [int((w == 0).sum()) for w in params.values()] == [16, 16]
    with pytest.raises(ValueError, match="after the run|period"):
        build(None, 1)


@pytest.mark.parametrize("recipe", ["gsm", "swd", "issp"])
def test_more_steps_than_a_count_holds_are_refused(recipe):
    """SWD looked at the rates of all of them, in tens of gigabytes."""
    how = {"gsm": {"weight_decay": 0.1}, "swd": {"mu": 0.1}, "issp": {}}[recipe]
    make = getattr(transforms, recipe)
    with pytest.raises(ValueError, match="`total_steps` must be at most 2147483647"):
        make(0.1, sparsity=0.5, total_steps=2**31, **how)


def test_a_long_run_of_swd_is_looked_at_in_part():
    """The rates of every step of it would take gigabytes."""
    with pytest.warns(UserWarning, match="unstable at step 2147483646:"):
        transforms.swd(1.0, mu=0.1, sparsity=0.5, total_steps=2**31 - 1)


@pytest.mark.parametrize("last", [2, 3, 6])
def test_a_restored_run_removes_at_its_new_end(last):
    """After 3 steps of 5: at a later end, or at once where the new one has passed."""
    params = {"w": jnp.arange(1.0, 9.0).reshape(2, 4)}
    half = lambda p: {"w": p["w"] > 4}  # noqa: E731

    def zeros(make):
        state, now, seen = make(5).init(params), params, []
        for t in range(8):
            still = jax.tree.map(jnp.zeros_like, now)
            tx = make(5 if t < 3 else last)
            updates, state = tx.update(still, state, now)
            now = optax.apply_updates(now, updates)
            seen.append(int((now["w"] == 0).sum()))
        return seen

    removes = max(last, 3)
    expected = [0] * removes + [4] * (8 - removes)
    assert zeros(lambda n: transforms.prune_once(half, step=n)) == expected
    swd = {"mu": 1e-4, "sparsity": 0.5}
    assert zeros(lambda n: transforms.swd(0.1, total_steps=n + 1, **swd)) == expected
