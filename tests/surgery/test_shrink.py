"""The compact function: composition, meanings, state, and every error it raises."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive

from jprune import surgery
from jprune.surgery import _cells as ce
from jprune.surgery import rules
from jprune.surgery._groups import Frozen
from jprune.surgery.rules import RULES, NoRule, elementwise_axes, positionwise
from tests.surgery.structures import attention, two_pass, two_pass_norm

pytestmark = pytest.mark.usefixtures("double")


def normal(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {k: rng.standard_normal(s) for k, s in sorted(shapes.items())}


SHAPES = {"w": (4, 8), "b": (8,), "g": (8,), "beta": (8,), "v": (8, 3)}
X = np.random.default_rng(9).standard_normal((5, 4))


def make(fn: Any = two_pass_norm, shapes: Any = None, x: Any = X) -> Any:
    params = normal(shapes or SHAPES)
    return params, surgery.groups(fn)(params, x)


def test_keeping_everything_changes_no_bit():
    params, deps = make()
    plan = surgery.plan_from_keep(deps, {})
    small = surgery.shrink(two_pass_norm, plan)
    np.testing.assert_array_equal(
        jax.jit(small)(plan.pack(params), X), jax.jit(two_pass_norm)(params, X)
    )


def test_other_batch_vmap_and_jit_agree():
    params, deps = make()
    plan = surgery.plan_from_keep(deps, {"w:1": [0, 3, 4]})
    small = surgery.shrink(two_pass_norm, plan)
    cp, z = plan.pack(params), plan.zero(params)
    for x in (X[:2], np.concatenate([X, -X])):
        want = two_pass_norm(z, x)
        np.testing.assert_allclose(small(cp, x), want, atol=1e-12)
        np.testing.assert_allclose(jax.jit(small)(cp, x), want, atol=1e-12)
    loss = lambda f: lambda p: jnp.sum(f(p, X) ** 2)  # noqa: E731
    plain, again = jax.jit(
        lambda p: (jax.grad(loss(small))(p), jax.grad(loss(jax.checkpoint(small)))(p))
    )(cp)
    for name, slope in plain.items():
        np.testing.assert_allclose(again[name], slope, rtol=1e-12, atol=1e-12)
    rows = jax.vmap(small, (None, 0))(cp, X[:, None])[:, 0]
    np.testing.assert_allclose(rows, two_pass_norm(z, X), atol=1e-12)
    ensemble = jax.tree.map(lambda a: np.stack([a, 2 * a]), cp)
    both = jax.vmap(small, (0, None))(ensemble, X)
    twice = two_pass_norm(jax.tree.map(lambda a: 2 * a, z), X)
    np.testing.assert_allclose(both[1], twice, atol=1e-12)


def test_shrink_of_shrink_is_the_composed_plan():
    params, deps = make()
    first = surgery.plan_from_keep(deps, {"w:1": [0, 2, 3, 5, 7]})
    small = surgery.shrink(two_pass_norm, first)
    inner = surgery.groups(small)(first.pack(params), X)
    assert [g.id for g in inner] == [g.id for g in deps]
    second = surgery.plan_from_keep(inner, {"w:1": [1, 4]})
    smaller = surgery.shrink(small, second)
    whole = first.then(second)
    assert whole.removed[("w",)] == {1: [0, 1, 3, 4, 5, 6]}
    got = smaller(second.pack(first.pack(params)), X)
    once = surgery.shrink(two_pass_norm, whole)(whole.pack(params), X)
    np.testing.assert_allclose(got, once, atol=1e-12)
    np.testing.assert_allclose(got, two_pass_norm(whole.zero(params), X), atol=1e-12)


def test_mean_compact_is_the_narrower_model():
    """Equal to the same code run on narrower parameters, to the last bit."""
    params, deps = make()
    plan = surgery.plan_from_keep(deps, {"w:1": [0, 3, 4, 6]})
    small = surgery.shrink(two_pass_norm, plan, mean="compact")
    narrow = jax.jit(two_pass_norm)(plan.pack(params), X)
    np.testing.assert_array_equal(jax.jit(small)(plan.pack(params), X), narrow)
    dense = surgery.shrink(two_pass_norm, plan)(plan.pack(params), X)
    assert np.abs(dense - narrow).max() > 1e-2


def test_mean_compact_through_var_and_counts():
    def fn(p, x):
        h = x @ p["w"]
        h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-3)
        return h @ p["v"] + (h.sum(-1) / jnp.ones_like(h).sum(-1))[:, None]

    params = normal({"w": (4, 8), "v": (8, 3)})
    deps = surgery.groups(fn)(params, X)
    plan = surgery.plan_from_keep(deps, {"w:1": [0, 3, 4, 6]})
    small = surgery.shrink(fn, plan, mean="compact")
    np.testing.assert_allclose(
        small(plan.pack(params), X), fn(plan.pack(params), X), atol=1e-13
    )


def test_dropout_mask_is_the_dense_one_or_a_compact_one():
    def fn(p, x, key):
        h = jnp.tanh(x @ p["w"])
        h = jnp.where(jax.random.bernoulli(key, 0.5, h.shape), h / 0.5, 0.0)
        return h @ p["v"] + h.sum(-1, keepdims=True)

    params, key = normal({"w": (4, 8), "v": (8, 3)}), jax.random.key(3)
    deps = surgery.groups(fn)(params, X, key)
    assert deps.exactness["w:1"].way == "zero"
    plan = surgery.plan_from_keep(deps, {"w:1": [0, 3, 4, 6]})
    cp = plan.pack(params)
    dense = jax.jit(fn)
    got = jax.jit(surgery.shrink(fn, plan))(cp, X, key)
    np.testing.assert_allclose(got, dense(plan.zero(params), X, key), atol=1e-12)
    narrow = jax.jit(surgery.shrink(fn, plan, rng="compact"))(cp, X, key)
    np.testing.assert_allclose(narrow, dense(cp, X, key), atol=1e-12)


def test_refinement_makes_a_positional_table_exact():
    table = np.sin(np.arange(40.0).reshape(5, 8))

    def fn(p, x):
        return two_pass(x @ p["w"] + table) @ p["v"]

    params, deps = make(fn, {"w": (4, 8), "v": (8, 3)})
    assert deps.exactness["w:1"].way == "no"
    assert "differs between removed" in deps.exactness["w:1"].why
    plan = surgery.plan_from_keep(deps, {"w:1": [0, 3, 4, 6]})
    want = fn(plan.zero(params), X)
    coarse = surgery.shrink(fn, plan)(plan.pack(params), X)
    fine = surgery.shrink(fn, plan, refine=True)(plan.pack(params), X)
    assert np.abs(coarse - want).max() > 1e-3
    np.testing.assert_allclose(fine, want, atol=1e-12)
    assert not surgery.verify(fn, plan, params, X).ok
    with pytest.raises(ValueError, match="(?s)nothing can be removed.*differs"):
        surgery.select(deps, deps.scores(params), sparsity=0.5, exact=True)


def test_a_constant_on_the_diagonal_of_two_removed_axes_is_caught():
    def fn(p, x):
        h = jax.nn.sigmoid(x @ p["w"])
        pair = h[:, :, None] * h[:, None, :] + jnp.eye(8)
        return jnp.cos(pair).sum((1, 2))[:, None] + h @ p["v"]

    params, deps = make(fn, {"w": (4, 8), "v": (8, 3)})
    assert deps.exactness["w:1"].way == "no"


def test_reference_that_is_not_finite_is_masked():
    """A weight norm without epsilon is 0 / 0 for a removed unit."""

    def fn(p, x):
        w = p["w"] / jnp.sqrt((p["w"] ** 2).sum(0))
        return (x @ w) @ p["v"]

    params, deps = make(fn, {"w": (4, 8), "v": (8, 3)})
    assert deps.exactness["w:1"].nonfinite
    plan = surgery.plan_from_keep(deps, {"w:1": [0, 3, 4, 6]})
    report = surgery.verify(fn, plan, params, X)
    assert not report.ok and report.nonfinite == 1.0  # nothing was compared
    got = surgery.shrink(fn, plan)(plan.pack(params), X)
    w = params["w"] / np.sqrt((params["w"] ** 2).sum(0))
    kept = [0, 3, 4, 6]
    np.testing.assert_allclose(got, X @ w[:, kept] @ params["v"][kept], atol=1e-12)


def test_reduce_max_options():
    def fn(p, x):
        h = x @ p["w"] + 1.0  # a ghost of 1, known
        return h @ p["v"] + h.max(-1, keepdims=True)

    def moving(p, x):
        h = x @ p["w"] + x.sum(-1, keepdims=True)  # a ghost that depends on the input
        return h @ p["v"] + h.max(-1, keepdims=True)

    params = normal({"w": (4, 8), "v": (8, 3)})
    assert len(surgery.groups(fn)(params, X)) == 1
    assert len(surgery.groups(fn, reduce_max="freeze")(params, X)) == 0
    assert len(surgery.groups(moving)(params, X)) == 0
    deps = surgery.groups(moving, reduce_max="drop")(params, X)
    plan = surgery.plan_from_keep(deps, {"w:1": [0, 3]})
    assert surgery.verify(moving, plan, params, X, gradient=True).ok


def test_equations_of_a_model_without_leaks_are_unchanged():
    def fn(p, x):
        h = jax.nn.relu(x @ p["w"] + p["b"])
        return jax.nn.softmax(h @ p["v"])

    params, deps = make(fn, {"w": (4, 8), "b": (8,), "v": (8, 3)})
    plan = surgery.plan_from_keep(deps, {"w:1": [0, 3, 4, 6]})
    small = surgery.shrink(fn, plan)
    names = lambda f, p: [  # noqa: E731
        e.primitive.name for e in jax.make_jaxpr(f)(p, X).jaxpr.eqns
    ]
    assert names(small, plan.pack(params)) == names(fn, params)


def test_mean_compact_is_the_narrower_flax_module():
    """Layer norm, group norm and attention built at the kept width, to the last bit."""

    class Net(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            h = nn.LayerNorm(use_fast_variance=False)(nn.Dense(self.width)(x))
            return nn.Dense(2)(nn.LayerNorm()(h + nn.Dense(self.width)(nn.gelu(h))))

    dense, narrow = Net(8), Net(5)
    variables = jax.jit(dense.init)(jax.random.key(0), X)
    deps = surgery.groups(dense.apply)(variables, X)
    stream = next(g for g in deps if "Dense_0" in g.id)
    plan = surgery.plan_from_keep(deps, {stream.id: [0, 2, 3, 6, 7]})
    small = surgery.shrink(dense.apply, plan, mean="compact")
    packed = plan.pack(variables)
    np.testing.assert_array_equal(
        jax.jit(small)(packed, X), jax.jit(narrow.apply)(packed, X)
    )


def test_side_effects_run_once():
    seen = []

    @jax.jit
    def watched(h, x):
        jax.debug.callback(lambda v: seen.append(float(v)), x.sum())
        return jnp.tanh(h)

    def fn(p, x):
        jax.jit(lambda v: jax.debug.callback(lambda s: seen.append(float(s)), v[0, 0]))(
            x
        )
        return watched(x @ p["w"], x) @ p["v"]

    params, deps = make(fn, {"w": (4, 8), "v": (8, 3)})
    plan = surgery.plan_from_keep(deps, {"w:1": [0, 3]})
    surgery.shrink(fn, plan)(plan.pack(params), X)
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(seen), sorted([X.sum(), X[0, 0]]))


def test_attention_heads_and_head_dims():
    shapes = {"q": (4, 12), "k": (4, 12), "v": (4, 12), "o": (12, 2)}
    params, deps = make(attention, shapes)
    heads = next(g for g in deps if len(g.members) == 4)
    assert heads.size == 3
    plan = surgery.plan_from_keep(deps, {heads.id: [0, 2]})
    assert plan.compact_shapes[("q",)] == (4, 8)
    assert plan.removed[("o",)] == {0: [4, 5, 6, 7]}


# -- unknown primitives and rules of one's own ---------------------------------------


def new_primitive(name: str) -> Any:
    primitive = Primitive(name)
    primitive.def_impl(lambda x: x * 3.0)
    primitive.def_abstract_eval(lambda x: x)
    return primitive


def test_unknown_primitive_freezes_and_is_reported():
    mystery = new_primitive("mystery")

    def fn(p, x):
        return mystery.bind(x @ p["w"]) * p["g"] @ p["v"]

    params, deps = make(fn, {"w": (4, 8), "g": (8,), "v": (8, 3)})
    (frozen,) = [f for f in deps.frozen() if f.path == ("w",) and f.axis == 1]
    assert frozen == Frozen(("w",), 1, 0, 8, "unknown primitive", "mystery")
    # What comes after it is computed at full size and indexed.
    plan = surgery.plan_from_keep(deps, {"g:0": [1, 4]})
    got = surgery.shrink(fn, plan)(plan.pack(params), X)
    np.testing.assert_allclose(got, fn(plan.zero(params), X), atol=1e-12)


def test_register_rule():
    triple = new_primitive("triple")
    fn = lambda p, x: triple.bind(x @ p["w"]) @ p["v"]  # noqa: E731
    params, before = make(fn, {"w": (4, 8), "v": (8, 3)})
    assert "w:1" not in before
    rule = rules.Rule(axes=elementwise_axes, cells=positionwise)
    rules.register_rule(triple, rule)
    assert RULES["triple"] == rule
    try:
        deps = surgery.groups(fn)(params, X)
        plan = surgery.plan_from_keep(deps, {"w:1": [1, 4]})
        got = surgery.shrink(fn, plan)(plan.pack(params), X)
        np.testing.assert_allclose(got, fn(plan.zero(params), X), atol=1e-12)
    finally:
        del RULES["triple"]


def test_a_rule_that_fails_makes_its_equation_opaque():
    broken = new_primitive("broken")

    def axes(site, eqn, ins):
        raise error

    error: Exception = IndexError("list index out of range")
    rule = rules.Rule(axes=axes, cells=positionwise)
    rules.register_rule(broken, rule)
    try:
        fn = lambda p, x: broken.bind(x @ p["w"]) @ p["v"]  # noqa: E731
        with rules.strict(), pytest.raises(IndexError, match="out of range"):
            make(fn, {"w": (4, 8), "v": (8, 3)})
        with rules.strict(False):
            _, deps = make(fn, {"w": (4, 8), "v": (8, 3)})
        (frozen,) = [f for f in deps.frozen() if f.path == ("w",) and f.axis == 1]
        assert "no rule for this form: list index" in frozen.why
        error = NoRule("a form that the rule says it does not cover")
        with rules.strict():
            _, deps = make(fn, {"w": (4, 8), "v": (8, 3)})
        (frozen,) = [f for f in deps.frozen() if f.path == ("w",) and f.axis == 1]
        assert "it does not cover" in frozen.why
    finally:
        del RULES["broken"]


def test_register_rule_refuses_what_is_no_primitive():
    with pytest.raises(TypeError, match="`primitive` must be a JAX primitive"):
        rules.register_rule(3, RULES["tanh"])
    with pytest.raises(TypeError, match="`rule` must be a `rules.Rule`"):
        rules.register_rule("mystery", elementwise_axes)


def test_every_rule_has_both_halves():
    for name, rule in RULES.items():
        assert callable(rule.axes) and callable(rule.cells), name


# -- errors --------------------------------------------------------------------------


def test_wrong_leaf_shape():
    params, deps = make()
    plan = surgery.plan_from_keep(deps, {"w:1": [0, 1]})
    small = surgery.shrink(two_pass_norm, plan)
    with pytest.raises(ValueError, match=r"at b must have the compact shape \(2,\)"):
        small(params, X)
    with pytest.raises(ValueError, match=r"v: expected \(8, 3\), got \(2, 3\)"):
        plan.pack(plan.pack(params))


def test_inconsistent_plan():
    params, deps = make()
    plan = surgery.plan_from_keep(deps, {"w:1": [0, 1]})
    other = surgery.plan_from_keep(deps, {"w:1": [0, 2]})
    mixed = surgery.Plan({**plan.keep, ("v",): other.keep[("v",)]})
    small = surgery.shrink(two_pass_norm, mixed)
    with pytest.raises(ValueError, match="plan does not fit .* different coordinates"):
        small(mixed.pack(params), X)


def test_pruned_output():
    params, deps = make()
    keep = dict(surgery.plan_from_keep(deps, {}).keep)
    keep[("v",)] = (np.ones(8, bool), np.array([True, True, False]))
    plan = surgery.Plan(keep)
    with pytest.raises(ValueError, match="v axis 1: it may not shrink: model output"):
        surgery.shrink(two_pass_norm, plan)(plan.pack(params), X)


def test_an_error_of_a_primitive_names_it():
    def fail(*arrays):
        raise TypeError("sub got incompatible shapes")

    cell = ce.compute(fail, name="sub")
    with pytest.raises(TypeError, match="incompatible") as caught:
        ce.emit([cell], {})
    assert caught.value.__notes__ == ["[jprune] in `sub` rewritten at compact shapes."]


def test_plan_for_another_model():
    params, deps = make()
    plan = surgery.plan_from_keep(deps, {"w:1": [0, 1]})
    with pytest.raises(ValueError, match="other: not in the plan"):
        plan.pack({"other": np.ones(3)})
    small = surgery.shrink(two_pass_norm, plan)
    with pytest.raises(ValueError, match="has the leaf other, which the plan has not"):
        small({"other": np.ones(3)}, X)
    packed = plan.pack(params)
    del packed["w"]
    with pytest.raises(ValueError, match="lacks leaves that the plan has: w"):
        small(packed, X)


def test_groups_are_a_sequence():
    _, deps = make()
    assert isinstance(deps, Sequence) and deps[:] == list(deps)
    assert deps[0] is deps[deps[0].id] and deps[0].id in deps
    assert deps.index(deps[0]) == 0


def test_wrong_options():
    _, deps = make()
    plan = surgery.plan_from_keep(deps, {})
    with pytest.raises(ValueError, match='`mean` must be "dense" or "compact"'):
        surgery.shrink(two_pass_norm, plan, mean="zeroed")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`reduce_max` must be"):
        surgery.groups(two_pass_norm, reduce_max="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no group 'nope'"):
        surgery.plan_from_keep(deps, {"nope": [0]})
    with pytest.raises(ValueError, match=r"indices in 0\.\.7"):
        surgery.plan_from_keep(deps, {"w:1": [8]})
    with pytest.raises(ValueError, match=r"must have shape \(8,\)"):
        surgery.plan_from_keep(deps, {"w:1": np.ones(3, bool)})
