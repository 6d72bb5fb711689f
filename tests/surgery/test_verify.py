"""The check of a plan, and what the report says of a group."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jprune import surgery
from tests.surgery.structures import two_pass

X = np.random.default_rng(9).standard_normal((5, 4))
NHWC = ("NHWC", "HWIO", "NHWC")


pytestmark = pytest.mark.usefixtures("double")


def normal(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {k: rng.standard_normal(s) for k, s in sorted(shapes.items())}


def deep(p: Any, x: Any) -> Any:
    """Four groups; in the third a table differs between coordinates before a norm."""
    h = jnp.tanh(x @ p["a"])
    h = jnp.tanh(h @ p["b"])
    h = two_pass(h @ p["c"] + np.sin(np.arange(40.0)).reshape(5, 8))
    return jnp.tanh(h @ p["d"]) @ p["e"]


DEEP = {"a": (4, 6), "b": (6, 7), "c": (7, 8), "d": (8, 5), "e": (5, 2)}


def test_the_failing_group_is_found_among_others():
    params = normal(DEEP)
    deps = surgery.groups(deep)(params, X)
    plan = surgery.plan_from_keep(
        deps, {g.id: np.arange(g.size) % 2 == 0 for g in deps}
    )
    report = surgery.verify(deep, plan, params, X)
    assert not report.ok and report.way == "no" and report.groups == ("c:1",)
    assert "FAILED" in str(report) and "failing groups: c:1" in str(report)
    assert "not exact: reduce_sum: a constant differs" in str(report)
    good = surgery.plan_from_keep(deps, {"a:1": [0, 3], "d:1": [1]})
    report = surgery.verify(deep, good, params, X, gradient=True)
    assert report.ok and report.way == "zero" and report.groups == ()
    assert str(report).startswith("verified: relative error")


def test_against_the_dense_model_it_says_what_removal_changes():
    params = normal(DEEP)
    params["d"][:, [0, 2]] = 0.0  # tanh(0) = 0: without effect
    deps = surgery.groups(deep)(params, X)
    silent = surgery.plan_from_keep(deps, {"d:1": [1, 3, 4]})
    assert surgery.verify(deep, silent, params, X, reference="dense").ok
    loud = surgery.plan_from_keep(deps, {"d:1": [0, 1, 2]})
    assert not surgery.verify(deep, loud, params, X, reference="dense").ok
    assert surgery.verify(deep, loud, params, X).ok


def test_the_table_shows_the_smallest_removable_chunk():
    """Heads of width 4 make every coordinate of q removable, four at a time."""

    def fn(p: Any, x: Any) -> Any:
        h = jnp.sort((x @ p["q"]).reshape(5, 3, 4), -1)  # head_dim is frozen
        return h.reshape(5, 12) @ p["o"]

    deps = surgery.groups(fn)(normal({"q": (4, 12), "o": (12, 2)}), X)
    assert [g.size for g in deps] == [3]
    text = deps.table()
    assert "smallest removable chunk" in text
    assert "  q:1  4 of 12" in text and "  o:0  4 of 12" in text


def test_grouped_convolution_of_moving_ghosts_on_both_sides_is_flagged():
    """Section 13: in-group inputs whose ghosts move meet a standardized kernel."""

    def fn(p: Any, x: Any) -> Any:
        h = jax.nn.sigmoid(x @ p["w"])  # a ghost of 1/2
        k = p["k"] - p["k"].mean(2, keepdims=True)  # a ghost of -mean
        y = lax.conv_general_dilated(
            h, k, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=2
        )
        return jnp.tanh(y) @ p["v"]

    params = normal({"w": (4, 6), "k": (3, 3, 3, 4), "v": (4, 2)})
    x = np.random.default_rng(1).standard_normal((2, 4, 4, 4))
    deps = surgery.groups(fn)(params, x)
    inner = next(g for g in deps if g.size == 3)
    assert deps.exactness[inner.id].way == "no"
    assert "a grouped convolution of removed channels" in deps.exactness[inner.id].why
    plan = surgery.plan_from_keep(deps, {inner.id: [0, 2]})
    assert not surgery.verify(fn, plan, params, x).ok  # flagged with reason


def test_groups_of_the_batch_are_opaque():
    """The form that appears in gradients of grouped convolutions."""

    def fn(p: Any, x: Any) -> Any:
        h = (x @ p["w"]).transpose(3, 1, 2, 0)  # features as the batch
        y = lax.conv_general_dilated(
            h, p["k"], (1, 1), "SAME", dimension_numbers=NHWC, batch_group_count=2
        )
        return y.reshape(-1) @ p["v"]

    params = normal({"w": (4, 6), "k": (1, 1, 2, 4), "v": (3 * 4 * 4 * 4, 2)})
    deps = surgery.groups(fn)(params, np.zeros((2, 4, 4, 4)))
    frozen = [f for f in deps.frozen() if (f.path, f.axis) == (("w",), 1)]
    assert [f.primitive for f in frozen] == ["conv_general_dilated"]
    assert "no rule for this form: batch groups" in frozen[0].why


def test_a_mapped_region_shrinks_with_the_rest():
    mesh = jax.make_mesh((2,), ("d",))
    spec = jax.sharding.PartitionSpec()
    twice = jax.shard_map(lambda a: 2 * a, mesh=mesh, in_specs=spec, out_specs=spec)

    def fn(p: Any, x: Any) -> Any:
        return jnp.tanh(twice(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]) @ p["d"]

    params = normal({"a": (4, 6), "b": (6, 5), "c": (5, 7), "d": (7, 2)})
    deps = surgery.groups(fn)(params, X)
    assert [g.id for g in deps if g.kind == "coupled"] == ["a:1", "b:1", "c:1"]
    keep = {"a:1": [0, 3], "b:1": [0, 2, 4], "c:1": [1, 2, 6]}
    plan = surgery.plan_from_keep(deps, keep)
    report = surgery.verify(fn, plan, params, X, gradient=True)
    assert report.ok, str(report)


def rms(p: Any, x: Any) -> Any:
    """A norm over what is removed: the two meanings of a mean differ."""
    h = x @ p["a"]
    h = h / jnp.sqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-6) * p["g"]
    return {"y": h @ p["b"], "norm": (h**2).mean()}


RMS = {"a": (4, 8), "g": (8,), "b": (8, 3)}


def test_a_function_of_the_packed_parameters_is_told_its_meaning():
    params = normal(RMS)
    deps = surgery.groups(lambda p, x: rms(p, x)["y"])(params, X)
    plan = surgery.plan_from_keep(deps, {"a:1": [0, 2, 3]})
    fn = lambda p, x: rms(p, x)["y"]  # noqa: E731
    report = surgery.verify(fn, plan, params, X, compact=fn)  # the class, narrower
    want, got = fn(plan.zero(params), X), fn(plan.pack(params), X)
    gap = float(jnp.abs(want - got).max() / jnp.abs(want).max())
    assert report.compact and report.compact["compact"] < 1e-12
    assert report.compact["dense"] == pytest.approx(gap, rel=1e-9) and gap > 0.1
    assert not report.ok and report.error < 1e-12  # surgery is right, the class differs
    text = f"equals mean='compact', differs from mean='dense' by {gap:.1e}"
    assert text in str(report)
    assert surgery.verify(fn, plan, params, X, compact=fn, mean="compact").ok
    small = surgery.shrink(fn, plan)
    assert surgery.verify(fn, plan, params, X, compact=small, gradient=True).ok


def test_a_function_that_cannot_run_or_gives_something_else():
    params = normal(RMS)
    fn = lambda p, x: rms(p, x)["y"]  # noqa: E731
    deps = surgery.groups(fn)(params, X)
    plan = surgery.plan_from_keep(deps, {"a:1": [0, 2, 3]})
    with pytest.raises(ValueError, match="cannot run on the packed parameters: TypeEr"):
        surgery.verify(
            fn, plan, params, X, compact=lambda p, x: x @ p["a"] @ params["b"]
        )
    with pytest.raises(ValueError, match=r"must give what the dense function gives"):
        surgery.verify(fn, plan, params, X, compact=lambda p, x: p["a"])


def test_where_nothing_is_compared_nothing_is_verified():
    """L2 over tokens without an epsilon: the zeroed model is 0 / 0 everywhere."""

    def fn(p: Any, x: Any) -> Any:
        q = x @ p["q"]
        return jax.nn.softmax(q / jnp.linalg.norm(q, axis=0), -1) @ p["o"]

    params = normal({"q": (4, 6), "o": (6, 3), "u": (3, 5), "v": (5, 2)})

    def deeper(p: Any, x: Any) -> Any:
        return jnp.tanh(fn(p, x) @ p["u"]) @ p["v"]

    deps = surgery.groups(deeper)(params, X)
    keep = {g.id: np.arange(g.size) > 0 for g in deps}
    report = surgery.verify(deeper, surgery.plan_from_keep(deps, keep), params, X)
    assert report.nonfinite == 1.0 and not report.ok
    assert report.groups == ("q:1",)  # by the certificate: u:1 is innocent
    assert "nothing was compared" in str(report)


def test_zeros_on_both_sides_verify_nothing():
    """A last layer that starts at 0 makes any two functions equal."""

    def net(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"]

    p = {"a": jnp.arange(1.0, 13).reshape(3, 4), "b": jnp.zeros((4, 2))}
    x = jnp.ones((2, 3))
    plan = surgery.plan_from_keep(surgery.groups(net)(p, x), {"a:1": [0, 2]})

    def wrong(p, x):
        return jnp.cos(x @ p["a"]) @ p["b"]

    for report in (
        surgery.verify(net, plan, p, x),
        surgery.verify(net, plan, p, x, compact=wrong),
    ):
        assert report.zero and not report.ok
        assert "the reference is 0 in every entry" in str(report)
    assert surgery.verify(net, plan, p, x, gradient=True).ok  # that of `b` is not 0
    trained = p | {"b": jnp.ones((4, 2))}
    report = surgery.verify(net, plan, trained, x)
    assert report.ok and not report.zero


def test_the_inexact_group_is_blamed_before_noise():
    """In float32 with a tolerance that an exact group of large sums crosses as well."""
    params = normal(DEEP)
    deps = surgery.groups(deep)(params, X)
    plan = surgery.plan_from_keep(deps, {g.id: np.arange(g.size) > 1 for g in deps})
    report = surgery.verify(deep, plan, params, X, tolerance=0.0)
    assert report.groups == ("c:1",)
    assert deps.exactness["c:1"].way == "no"


def test_the_search_ends_at_its_limit_and_tells_its_steps():
    params = normal(DEEP)
    deps = surgery.groups(deep)(params, X)
    plan = surgery.plan_from_keep(deps, {g.id: np.arange(g.size) > 1 for g in deps})
    report = surgery.verify(deep, plan, params, X, limit=0.0)
    assert not report.ok and report.stopped and report.groups == ("c:1",)
    assert "failing groups, among (time was up): c:1" in str(report)
    lines: list[str] = []
    surgery.verify(deep, plan, params, X, progress=lines.append)
    assert lines and lines[0].startswith("1 groups from c:1: error ")


def test_leaves_that_are_no_arrays_pass():
    params = {"f": jnp.tanh, "flag": True, **normal({"a": (4, 6), "b": (6, 3)})}

    def fn(p: Any, x: Any) -> Any:
        assert p["flag"] is True
        return p["f"](x @ p["a"]) @ p["b"], "a name"

    deps = surgery.groups(lambda p, x: fn(p, x)[0])(params, X)
    plan = surgery.plan_from_keep(deps, {"a:1": [1, 2]})
    first = lambda p, x: fn(p, x)[0]  # noqa: E731
    assert surgery.verify(first, plan, params, X, gradient=True).ok


@pytest.mark.parametrize(
    "beside",
    [jnp.int32(7_000_000), jnp.float32(5e7), jnp.zeros(3), jnp.array([True, False])],
    ids=["counter", "energy", "zeros", "flags"],
)
def test_each_output_is_measured_by_its_own_scale(beside):
    """A large output beside it must not make a wrong one look small, nor a zero."""

    def net(p: Any, x: Any) -> Any:
        y = two_pass(x @ p["a"] + np.sin(np.arange(40.0)).reshape(5, 8))
        return {"y": y @ p["b"], "beside": beside}

    params = normal({"a": (4, 8), "b": (8, 2)})
    deps = surgery.groups(net)(params, X)
    report = surgery.verify(
        net, surgery.plan_from_keep(deps, {"a:1": range(4)}), params, X, tolerance=1e-4
    )
    want = np.asarray(net({**params, "a": params["a"] * (np.arange(8) < 4)}, X)["y"])
    assert not report.ok and report.error > 0.01 and np.abs(want).max() > 0.1
    assert report.differs == {"y": report.error}
    assert f"differs: y by {report.error:.1e}" in str(report)


def test_integers_must_be_equal():
    """Token 30001 for token 30000 is another word, not an error of 3e-5."""

    def net(p: Any, x: Any) -> Any:
        y = two_pass(x @ p["a"] + np.sin(np.arange(40.0)).reshape(5, 8)) @ p["b"]
        return y, 30_000 + jnp.argmax(y, -1), y > 0

    params = normal({"a": (4, 8), "b": (8, 60)})
    deps = surgery.groups(net)(params, X)
    plan = surgery.plan_from_keep(deps, {"a:1": range(4)})
    report = surgery.verify(net, plan, params, X, tolerance=0.9)
    assert not report.ok and set(report.differs) == {"1", "2"}
    assert min(report.differs.values()) >= 1


def test_rounding_in_a_leaf_that_is_zero_is_no_error():
    """The gradient of a bias in front of a norm is 0 but for rounding; float32."""

    def net(p: Any, x: Any) -> Any:
        h = jnp.tanh(x @ p["a"]) @ p["b"] + p["bias"]
        h = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5)
        return {"y": 100 * h @ p["c"], "zero": h.mean(0)}

    shapes = {"a": (4, 6), "b": (6, 5), "bias": (5,), "c": (5, 3)}
    params = {k: np.float32(v) for k, v in normal(shapes).items()}
    x = np.float32(X)
    deps = surgery.groups(net)(params, x)
    plan = surgery.plan_from_keep(deps, {"a:1": [0, 2, 3]})
    report = surgery.verify(net, plan, params, x, gradient=True)
    assert report.ok and not report.differs, str(report)
    mean = np.asarray(net(params, x)["zero"])
    assert 0 < np.abs(mean).max() < 1e-6  # rounding alone
