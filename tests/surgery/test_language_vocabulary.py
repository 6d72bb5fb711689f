"""Rows of an embedding that go on request: tokens, their numbers, the logits."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import surgery
from tests.surgery.language_nets import VOCABULARY, Form, decoder, parameters
from tests.surgery.nets import tokens
from tests.surgery.proof import QUICK, random_plan

TIED = Form(kv=2, rotary="halves", mlp="gated", tied=True)
FORMS = {"tied": (TIED, ["embedding:0"])}
FORMS["untied"] = (TIED._replace(tied=False), [("embedding:0", "head:1")])
KEPT = (0, 1, 3, 5, 8, 9, 10)
TEXT = tokens(2, 6, VOCABULARY)
jit = partial(jax.jit, compiler_options=QUICK)


pytestmark = pytest.mark.usefixtures("double")


def found(name: str, fn: Any = None) -> tuple:
    form, lookups = FORMS[name]
    params, fn = parameters(form), fn or partial(decoder, form=form)
    return fn, params, surgery.groups(fn, lookups=lookups)(params, TEXT)


def losses(logits: Any, labels: Any) -> Any:
    """Cross entropy, as a training step has it."""
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)
    return -picked.mean()


@pytest.mark.parametrize(
    "name", ["tied", pytest.param("untied", marks=pytest.mark.slow)]
)
def test_logits_equal_the_dense_ones_at_the_kept_tokens(name: str):
    fn, params, deps = found(name)
    (group,) = deps.find("embedding:0")
    assert (group.size, group.kind) == (VOCABULARY, "coupled")
    assert {m.path[0] for m in group.members} == (
        {"embedding"} if name == "tied" else {"embedding", "head"}
    )
    plan = random_plan(deps)  # everything at once
    plan = surgery.Plan.from_json(plan.to_json())
    report = surgery.verify(fn, plan, params, TEXT, gradient=True, limit=1.0)
    assert report.ok and max(report.error, report.gradient_error or 0) < 1e-10, report
    old = plan.numbering().old
    assert 0 < old.size < VOCABULARY
    got = jit(surgery.shrink(fn, plan))(plan.pack(params), TEXT)
    dense = jit(fn)
    want = dense(plan.zero(params), TEXT)
    np.testing.assert_allclose(got, want[..., old], atol=1e-10)
    # Nothing but tokens removed: at kept tokens the model itself is unchanged.
    plan = surgery.plan_from_keep(deps, {group.id: KEPT})
    text = np.asarray(KEPT)[TEXT % len(KEPT)]
    got = jit(surgery.shrink(fn, plan))(plan.pack(params), text)
    np.testing.assert_allclose(got, dense(params, text)[..., KEPT], atol=1e-10)


def test_losses_of_a_reduced_vocabulary():
    """Removed tokens are zero logits, or (mean="compact") were never there."""
    form, _ = FORMS["tied"]

    def loss(p: Any, text: Any) -> Any:
        return losses(decoder(p, text[:, :-1], form=form), text[:, 1:])

    _, params, deps = found("tied", loss)
    plan = surgery.plan_from_keep(deps, {"embedding:0": KEPT})
    assert not set(TEXT.reshape(-1)) <= set(KEPT)  # removed ones occur
    packed, report = plan.pack(params), surgery.verify(loss, plan, params, TEXT)
    assert report.ok and report.error < 1e-10 and report.way != "no"
    text = np.asarray(KEPT)[TEXT % len(KEPT)]
    never = jit(surgery.shrink(loss, plan, mean="compact"))
    logits = jit(partial(decoder, form=form))(params, text[:, :-1])
    want = losses(logits[..., KEPT], plan.numbering().compact(text[:, 1:]))
    np.testing.assert_allclose(never(packed, text), want, rtol=1e-10)
    assert np.isnan(never(packed, TEXT))


def look_up(mode: str | None) -> Any:
    def fn(p: Any, ids: Any) -> Any:
        table = jnp.asarray(p["table"])
        rows = table.at[ids].get(mode=mode) if mode else table[ids]
        return jnp.tanh(rows) @ p["v"]

    return fn


@pytest.mark.parametrize("mode", [None, "clip", "fill"])
@pytest.mark.parametrize("kept", [(1, 2, 4), ()])
def test_every_number_finds_what_the_zeroed_table_holds(mode: Any, kept: tuple):
    """Kept, removed, negative and out of range, in each mode of a gather."""
    rng = np.random.default_rng(0)
    params = {"table": rng.standard_normal((6, 4)), "v": rng.standard_normal((4, 3))}
    ids = np.array([[0, 1, 2, 3], [4, 5, -1, -2], [6, 40, -9, 1]])
    fn = look_up(mode)
    deps = surgery.groups(fn, lookups=["table:0"])(params, ids)
    keep = {"table:0": list(kept), "table:1": [0, 2, 3]}
    plan = surgery.plan_from_keep(deps, keep)
    for dtype in (np.int32, np.int64, np.int8):
        got = jit(surgery.shrink(fn, plan))(plan.pack(params), ids.astype(dtype))
        want = fn(plan.zero(params), ids.astype(dtype))
        np.testing.assert_allclose(got, want, atol=1e-12)


def test_without_the_request_the_rows_stay():
    form, _ = FORMS["tied"]
    deps = surgery.groups(partial(decoder, form=form))(parameters(form), TEXT)
    whys = {f.why for f in deps.frozen() if f.path == ("embedding",) and f.axis == 0}
    assert not deps.find("embedding:0") and whys == {"indexed"}


def test_numbers_before_and_after():
    _, params, deps = found("tied")
    plan = surgery.plan_from_keep(deps, {"embedding:0": KEPT})
    numbers = plan.numbering()
    assert numbers.new.tolist() == [0, 1, -1, 2, -1, 3, -1, -1, 4, 5, 6]
    assert numbers.old.tolist() == list(KEPT)
    for other in (
        plan.numbering("embedding:0"),
        surgery.Plan.from_json(plan.to_json()),
    ):
        same = other.numbering() if isinstance(other, surgery.Plan) else other
        np.testing.assert_array_equal(same.new, numbers.new)
    new = numbers.compact(np.array([[8, 3]]))
    assert new.tolist() == [[4, 2]] and numbers.dense(new).tolist() == [[8, 3]]
    with pytest.raises(ValueError, match=r"removed or out of range.*\[2, 11\]"):
        numbers.compact([2, 3, 11])
    assert numbers.compact([2, 3], unknown=1).tolist() == [1, 2]
    with pytest.raises(ValueError, match="must be a number that is kept"):
        numbers.compact([2], unknown=2)
    with pytest.raises(ValueError, match=r"out of range.*\[7\]"):
        numbers.dense([7])
    traced = jax.jit(lambda i: (numbers.compact(i), numbers.dense(i)))
    compact, dense = traced(jnp.array([2, 3, 7, -1]))
    assert compact.tolist() == [-1, 2, -1, -1] and dense.tolist() == [3, 5, -1, -1]
    with pytest.raises(ValueError, match="must be a parameter's path"):
        plan.numbering("embedding:2")
    without = surgery.groups(lambda p, x: x @ p)(params["norm"], np.ones(12))
    with pytest.raises(ValueError, match="the plan has 0 axes"):
        surgery.plan_from_keep(without, {}).numbering()


@pytest.mark.parametrize(
    ("lookups", "match"),
    [
        ("embedding:0", "must be a list"),
        (["embed:0"], "must be a parameter's path"),
        (["embedding"], "must be a parameter's path"),
        (["embedding:2"], "must be a parameter's path"),
        (["(embedding:0"], "regular expression"),
        ([("embedding:0", "norm:0")], "are not one axis: sizes"),
    ],
)
def test_errors_of_the_request(lookups: Any, match: str):
    form, _ = FORMS["tied"]
    with pytest.raises(ValueError, match=match):
        surgery.groups(partial(decoder, form=form), lookups=lookups)(
            parameters(form), TEXT
        )


def test_lookups_that_name_no_axis_list_those_near_first():
    shapes = {f"a{i}": jnp.ones((2, 2)) for i in range(20)}
    params = {**shapes, "wte": {"embedding": jnp.ones((5, 2))}}
    with pytest.raises(ValueError, match=r"of these:\n  wte/embedding:0\n"):
        surgery.groups(lambda p, ids: p["wte"]["embedding"][ids], lookups=["wte:0"])(
            params, jnp.zeros(3, int)
        )


@pytest.mark.slow
def test_a_model_object_loses_tokens():
    """Flax NNX: an embedding that also makes the logits."""
    from flax import nnx

    from jprune.frameworks import nnx as jnnx

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.embed = nnx.Embed(11, 6, rngs=rngs)
            self.inner = nnx.Linear(6, 6, rngs=rngs)

        def __call__(self, ids: Any) -> Any:
            return self.embed.attend(jnp.tanh(self.inner(self.embed(ids))))

    model = Net(nnx.Rngs(0))
    named = jax.tree_util.tree_leaves_with_path(nnx.state(model))
    paths = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in named]
    (path,) = [p for p in paths if "embed" in p]
    deps = jnnx.groups(model, TEXT, lookups=[f"{path}:0"])
    (group,) = deps.find(f"{path}:0$")
    plan = surgery.plan_from_keep(deps, {group.id: KEPT})
    small = jnnx.shrink(model, plan)
    assert small.embed.embedding.shape == (7, 6)
    text = np.asarray(KEPT)[TEXT % len(KEPT)]
    np.testing.assert_allclose(small(text), model(text)[..., KEPT], atol=1e-5)
