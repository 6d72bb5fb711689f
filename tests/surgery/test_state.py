"""State that a function returns is tied where it is the update of a parameter."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import surgery

X = np.random.default_rng(9).standard_normal((5, 4))


pytestmark = pytest.mark.usefixtures("double")


def normal(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {k: rng.standard_normal(s) for k, s in sorted(shapes.items())}


def bn_net(p: Any, x: Any, train: bool) -> Any:
    """Batch norm with running statistics in a collection of its own."""
    v, stats = p["params"], p["stats"]
    h = x @ v["w"]
    mean = h.mean(0) if train else stats["mean"]
    var = h.var(0) if train else stats["var"]
    new = {
        "mean": 0.9 * stats["mean"] + 0.1 * mean,
        "var": 0.9 * stats["var"] + 0.1 * var,
    }
    h = (h - mean) / jnp.sqrt(var + 1e-3) * v["scale"]
    return jax.nn.relu(h) @ v["v"], {"stats": new}


def bn_params() -> Any:
    shapes = {"w": (4, 8), "scale": (8,), "v": (8, 3)}
    return {
        "params": normal(shapes),
        "stats": {"mean": np.full(8, 0.3), "var": np.linspace(1.0, 2.0, 8)},
    }


@pytest.mark.parametrize("train", [False, True])
def test_state_comes_back_compact(train: bool):
    params = bn_params()
    fn = lambda p, x: bn_net(p, x, train)  # noqa: E731
    deps = surgery.groups(fn)(params, X)
    tied = {out[-1] for out, _ in deps.program.ties}
    assert tied == {"mean", "var"} and "stats/mean" in deps.table()
    plan = surgery.plan_from_keep(deps, {deps[0].id: [1, 2, 6]})
    y, new = surgery.shrink(fn, plan)(plan.pack(params), X)
    want, dense = fn(plan.zero(params), X)
    np.testing.assert_allclose(y, want, atol=1e-12)
    packed = plan.pack(dense["stats"], at="stats")
    for k in ("mean", "var"):
        np.testing.assert_allclose(new["stats"][k], packed[k], atol=1e-12)


@pytest.mark.parametrize("named", [True, False])
def test_a_plan_made_on_evaluation_shrinks_the_training_step(named: bool, tmp_path):
    """Which outputs are state is looked for in the function that is shrunk."""

    def evaluate(p, x):
        return bn_net(p, x, False)[0]

    def train(p, x):
        y, new = bn_net(p, x, True)
        return (y, new) if named else (y, new["stats"])

    params = bn_params()
    deps = surgery.groups(evaluate)(params, X)
    plan = surgery.plan_from_keep(deps, {deps[0].id: [1, 2, 6]})
    plan.save(tmp_path / "plan.json")
    plan = surgery.load_plan(tmp_path / "plan.json")
    y, new = jax.jit(surgery.shrink(train, plan))(plan.pack(params), X)
    want, dense = train(plan.zero(params), X)
    np.testing.assert_allclose(y, want, atol=1e-12)
    got, wanted = (new, dense) if not named else (new["stats"], dense["stats"])
    for k in ("mean", "var"):
        np.testing.assert_allclose(got[k], wanted[k][[1, 2, 6]], atol=1e-12)
    assert surgery.verify(train, plan, params, X, gradient=True).ok
    with pytest.raises(ValueError, match="may not shrink: model output"):
        surgery.shrink(train, plan, state_outputs=False)(plan.pack(params), X)


def test_outputs_named_like_a_collection_are_not_its_update():
    """They have its structure, shapes and dtypes, but not its axes."""

    def fn(p, x):
        h = x @ p["w"] - p["stats"]["mean"]
        z = (x @ p["u"]).sum(0)
        return h @ p["v"], {"mean": z, "var": z + p["stats"]["var"].sum()}

    params = normal({"w": (4, 6), "u": (4, 6), "v": (6, 2)})
    params["stats"] = {"mean": np.ones(6), "var": np.ones(6)}
    deps = surgery.groups(fn)(params, X)
    assert not deps.program.ties
    plan = surgery.plan_from_keep(deps, {"w:1": [0, 3]})
    _, out = surgery.shrink(fn, plan)(plan.pack(params), X)
    assert out["mean"].shape == (6,)


def test_a_single_output_that_resembles_a_parameter_is_not_tied():
    """The output `feat` beside the parameter `feat`."""

    def fn(p, x):
        h = x @ p["w"] + p["feat"]
        return {"feat": jnp.tanh(h).sum(0), "y": h @ p["v"]}

    params = normal({"w": (4, 6), "feat": (6,), "v": (6, 2)})
    deps = surgery.groups(fn)(params, X)
    assert len(deps) == 0 and not deps.program.ties
    assert any(f.why == "model output" for f in deps.frozen())
    free = surgery.groups(fn, free_outputs=[("feat",)])(params, X)
    plan = surgery.plan_from_keep(free, {free[0].id: [0, 1]})
    out = surgery.shrink(fn, plan)(plan.pack(params), X)
    assert out["feat"].shape == (2,) and out["y"].shape == (5, 2)


def test_state_is_tied_to_the_longest_path():
    """`bn/mean` and `zz/bn/mean`."""

    def fn(p, x):
        a = x @ p["w"] - p["bn"]["mean"]
        b = x @ p["u"] - p["zz"]["bn"]["mean"]
        new = {
            "zz": {"bn": {"mean": p["zz"]["bn"]["mean"] * 0.9, "n": p["zz"]["bn"]["n"]}}
        }
        return a @ p["v"] + b @ p["v"], new

    params = normal({"w": (4, 6), "u": (4, 6), "v": (6, 2)})
    params["bn"] = {"mean": np.ones(6), "n": np.ones(())}
    params["zz"] = {"bn": {"mean": np.ones(6), "n": np.ones(())}}
    deps = surgery.groups(fn)(params, X)
    assert deps.program.ties[0] == ((1, "zz", "bn", "mean"), ("zz", "bn", "mean"))


def test_state_outputs_can_be_declared_and_forbidden():
    params = bn_params()
    fn = lambda p, x: bn_net(p, x, True)  # noqa: E731
    none = surgery.groups(fn, state_outputs=False)(params, X)
    assert len(none) == 0
    declared = surgery.groups(fn, state_outputs=[(1, "stats")])(params, X)
    assert len(declared) == 1
    with pytest.raises(ValueError, match="declares the output 0, but no parameter"):
        surgery.groups(fn, state_outputs=[(0,)])(params, X)
