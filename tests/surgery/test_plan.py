"""Plans as data: pack, unpack, zero, then, save, masks, optimizer states."""

import collections
import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import masks, surgery, transforms


def fn(p: Any, x: Any) -> Any:
    """Two layers inside a collection, with a norm scale and heads of three units."""
    v = p["params"]
    h = (x @ v["in"]["kernel"] + v["in"]["bias"][None]) * v["scale"][None]
    h = jnp.tanh(h).reshape(-1, 2, 3)
    return jnp.einsum("bhd,hdo->bo", h, v["out"]["kernel"])


def make() -> Any:
    rng = np.random.default_rng(0)
    shapes = {
        "in": {"kernel": (4, 6), "bias": (6,)},
        "scale": (6,),
        "out": {"kernel": (2, 3, 2)},
    }
    params = {
        "params": jax.tree.map(
            lambda s: rng.standard_normal(s).astype(np.float32),
            shapes,
            is_leaf=lambda s: isinstance(s, tuple),
        )
    }
    x = rng.standard_normal((5, 4)).astype(np.float32)
    return params, x, surgery.groups(fn)(params, x)


HEADS, DIMS = "params/in/kernel:1", "params/in/kernel:1#1"
KEPT = [0, 2]  # of the flattened axis, with heads [0] and dims [0, 2]


def plan_of(deps: Any) -> Any:
    return surgery.plan_from_keep(deps, {HEADS: [0], DIMS: [0, 2]})


def test_hand_counted_pack_unpack_zero():
    params, _, deps = make()
    assert [(g.id, g.size) for g in deps] == [(HEADS, 2), (DIMS, 3)]
    plan = plan_of(deps)
    cp = plan.pack(params)["params"]
    kernel = params["params"]["in"]["kernel"]
    np.testing.assert_array_equal(cp["in"]["kernel"], kernel[:, KEPT])
    assert cp["out"]["kernel"].shape == (1, 2, 2)
    dense = plan.zero(params)
    np.testing.assert_array_equal(dense["params"]["in"]["kernel"][:, [1, 3, 4, 5]], 0)
    again = plan.unpack(plan.pack(params))
    jax.tree.map(np.testing.assert_array_equal, again, dense)
    assert plan.removed[("params", "scale")] == {0: [1, 3, 4, 5]}


def test_pack_is_jittable_and_takes_sub_trees_and_abstract_leaves():
    params, _, deps = make()
    plan = plan_of(deps)
    jitted, packed = jax.jit(plan.pack)(params), plan.pack(params)
    jax.tree.map(np.testing.assert_array_equal, jitted, packed)
    sub = plan.pack(params["params"], at="params")
    assert sub["scale"].shape == (2,)
    shapes = plan.pack(jax.eval_shape(lambda: params))
    assert shapes["params"]["in"]["kernel"].shape == (4, 2)
    with pytest.raises(ValueError, match=r"(?s)at='params'.*scale: not in the plan"):
        plan.pack(params["params"])


def test_where_a_sub_tree_belongs_is_said():
    pair = ({"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}, {"mean": jnp.zeros((1, 8))})
    fn = lambda p, x: ((x @ p[0]["a"]) - p[1]["mean"]) @ p[0]["b"]  # noqa: E731
    deps = surgery.groups(fn)(pair, jnp.ones((1, 3)))
    plan = surgery.plan_from_keep(deps, {"0/a:1": [0, 1]})
    for index in (0, 1):
        with pytest.raises(ValueError, match=f"`at={index}`"):
            plan.pack(pair[index])
        plan.pack(pair[index], at=index)
    with pytest.raises(TypeError, match=r"`at` must be a key.*\(params, state\)"):
        plan.pack(*pair)


def test_save_and_load(tmp_path):
    params, x, deps = make()
    plan = plan_of(deps)
    plan.save(tmp_path / "plan.json")
    again = surgery.load_plan(tmp_path / "plan.json")
    assert again.removed == plan.removed and again.dense_shapes == plan.dense_shapes
    a = surgery.shrink(fn, again)(again.pack(params), x)
    b = surgery.shrink(fn, plan)(plan.pack(params), x)
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("format"),
        lambda d: d.update(format="other"),
        lambda d: d["leaves"][0].pop("keep"),
        lambda d: d["leaves"][0].update(keep=[[99]]),
        lambda d: d["leaves"][0].update(keep=[[0, 0]]),
    ],
)
def test_corrupt_plan_file(tmp_path, damage):
    _, _, deps = make()
    path = tmp_path / "plan.json"
    plan_of(deps).save(path)
    data = json.loads(path.read_text())
    damage(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="is not a plan written by"):
        surgery.load_plan(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not a plan written by"):
        surgery.load_plan(path)


GOOD = {
    "format": "jprune-plan-1",
    "leaves": [{"path": ["w"], "shape": [4, 8], "keep": [None, [0, 1, 5]]}],
    "ties": [],
    "free": [],
    "declared": False,
}


@pytest.mark.parametrize(
    "leaf",
    [
        {"keep": [None, [1.7, 2.2]]},
        {"keep": [None, ["0", "3"]]},
        {"keep": [None, [True, False]]},
        {"keep": [None, 3]},
        {"keep": [None, [[0, 1]]]},
        {"keep": [None, [2**63]]},
        {"keep": [None, [-1]]},
        {"keep": [None]},
        {"path": "w1"},
        {"path": [1.5]},
        {"shape": [4, 10**13], "keep": [None, None]},
        {"shape": [4, -8], "keep": [None, None]},
        {"shape": [4.0, 8], "keep": [None, None]},
    ],
    ids=str,
)
def test_a_plan_file_of_other_types_is_refused(tmp_path, leaf):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(GOOD))
    assert surgery.load_plan(path).compact_shapes == {("w",): (4, 3)}
    path.write_text(json.dumps({**GOOD, "leaves": [{**GOOD["leaves"][0], **leaf}]}))
    with pytest.raises(ValueError, match=f"{path}.*is not a plan written by"):
        surgery.load_plan(path)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000 + "]" * 100_000,
        json.dumps({**GOOD, "declared": "no"}),
        json.dumps({**GOOD, "leaves": GOOD["leaves"] * 2}),
        json.dumps({**GOOD, "ties": [[["a"]]]}),
        json.dumps(GOOD)[:-20],
        "[]",
        "\x00",
    ],
    ids=["deep", "declared", "twice", "tie", "cut short", "list", "binary"],
)
def test_a_damaged_plan_file_is_refused(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path}.*is not a plan written by"):
        surgery.load_plan(path)


def test_a_plan_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    _, _, deps = make()
    path, plan = tmp_path / "plan.json", plan_of(deps)
    path.write_text("the old one")
    with monkeypatch.context() as broken:
        broken.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            plan.save(path)
    assert path.read_text() == "the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    plan.save(path)
    assert surgery.load_plan(path).compact_shapes == plan.compact_shapes


def test_a_packed_leaf_has_a_buffer_of_its_own():
    """Also one that loses nothing: a donated step leaves the dense tree alone."""
    params, _, deps = make()
    params = jax.tree.map(jnp.asarray, params)
    whole = surgery.plan_from_keep(deps, {})
    packed = whole.pack(params)
    jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)(packed)
    assert all(bool(jnp.isfinite(p).all()) for p in jax.tree.leaves(params))
    host = jax.tree.map(np.asarray, params)
    for make_own in (whole.pack, whole.zero, whole.unpack):
        for a, b in zip(*map(jax.tree.leaves, (make_own(host), host)), strict=True):
            assert not np.shares_memory(a, b)


def test_packed_leaves_lie_where_the_leaves_did():
    """NumPy's stay NumPy's; of JAX's, those put on a device on purpose stay there."""
    params, _, deps = make()
    plan, (_, second, *_) = plan_of(deps), jax.devices()
    tree = params["params"]
    tree["in"] = jax.device_put(tree["in"], second)
    tree["out"] = jax.tree.map(jnp.asarray, tree["out"])
    packed = plan.pack(params)["params"]
    assert type(packed["scale"]) is np.ndarray
    for name, leaf in packed["in"].items():
        assert leaf.committed and leaf.devices() == {second}, name
    free, bias = packed["out"]["kernel"], tree["in"]["bias"][jnp.array(KEPT)]
    assert not free.committed and free.devices() == {jax.devices()[0]}
    np.testing.assert_array_equal(free, tree["out"]["kernel"][:1, [0, 2]])
    np.testing.assert_array_equal(packed["in"]["bias"], bias)


def test_then_needs_the_shapes_it_left():
    _, _, deps = make()
    plan = plan_of(deps)
    with pytest.raises(ValueError, match="`other` must be a plan for the compact"):
        plan.then(plan)


def test_then_keeps_what_only_the_second_plan_declared():
    """A vocabulary, an output that shortens, a cache: found on the compact function."""

    def fn(p, tokens, cache):
        h = jax.nn.relu(p["emb"][tokens] @ p["in"] + cache)
        return jax.nn.relu(h @ p["mid"]) @ p["out"], h

    keys = jax.random.split(jax.random.key(0), 5)
    shapes = {"emb": (9, 6), "in": (6, 8), "mid": (8, 7), "out": (7, 3)}
    p = {
        name: jax.random.normal(k, shape)
        for k, (name, shape) in zip(keys, shapes.items(), strict=False)
    }
    call = jnp.array([0, 2]), jax.random.normal(keys[4], (2, 8))
    first = surgery.plan_from_keep(surgery.groups(fn)(p, *call), {"mid:1": [0, 1, 4]})
    small, packed = surgery.shrink(fn, first), first.pack(p)
    declared = {"lookups": ["emb:0"], "state": {2: 1}}
    deps = surgery.groups(small, **declared)(packed, *call)
    keep = {"emb:0": [0, 2, 5], "emb:1": [0, 1], "in:1": [3, 4]}
    second = surgery.plan_from_keep(deps, keep)
    both = first.then(second)
    twice = second.pack(packed)
    cache = second.pack(call[1], argument=2)
    got = surgery.shrink(fn, both)(twice, jnp.array([0, 1]), cache)
    want = surgery.shrink(small, second)(twice, jnp.array([0, 1]), cache)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert got[1].shape == (2, 2) and both.lookups == second.lookups
    np.testing.assert_array_equal(both.pack(call[1], argument=2), cache)


# -- masks ---------------------------------------------------------------------------


def masks_with(params: Any, **zeros: Any) -> Any:
    masks = jax.tree.map(lambda _: np.asarray(True), params)
    kernel = np.ones((4, 6), bool)
    kernel[:, zeros.get("columns", [])] = False
    masks["params"]["in"]["kernel"] = kernel
    out = np.ones((2, 3, 2), bool)
    out[tuple(zeros.get("rows", ([], [])))] = False
    masks["params"]["out"]["kernel"] = out
    return masks


def test_plan_from_producer_masks_and_from_a_sub_tree():
    params, _, deps = make()
    masks = masks_with(params, columns=[1, 4])
    plan = surgery.plan_from_masks(deps, masks)
    assert plan.removed[("params", "in", "kernel")] == {1: [1, 4]}
    again = surgery.plan_from_masks(deps, masks["params"])
    assert again.removed == plan.removed


def test_plan_from_consumer_masks():
    params, _, deps = make()
    plan = surgery.plan_from_masks(
        deps, masks_with(params, rows=([1, 1, 1], [0, 1, 2]))
    )
    assert plan.removed[("params", "in", "kernel")] == {1: [3, 4, 5]}


def test_masks_that_remove_no_coordinate_are_an_error():
    params, _, deps = make()
    with pytest.raises(
        ValueError, match="no coordinate of any group altogether.*deps.table"
    ):
        surgery.plan_from_masks(deps, masks_with(params, columns=[1]))
    with pytest.raises(ValueError, match="masks remove all 2 coordinates"):
        surgery.plan_from_masks(deps, masks_with(params, columns=list(range(6))))
    with pytest.raises(ValueError, match="0 places fit"):
        surgery.plan_from_masks(deps, {"nope": np.asarray(True)})
    bad = masks_with(params)
    bad["params"]["scale"] = np.ones(3, bool)
    with pytest.raises(ValueError, match=r"scale must have shape \(6,\)"):
        surgery.plan_from_masks(deps, bad)


def test_masks_that_keep_everything_are_told():
    params, _, deps = make()
    with pytest.warns(UserWarning, match="keep everything, so the plan removes noth"):
        plan = surgery.plan_from_masks(deps, masks_with(params))
    assert plan.removed == {}


def test_masks_of_a_plan_are_its_zeros():
    params, _, deps = make()
    plan = plan_of(deps)
    masks = plan.masks(params)
    np.testing.assert_array_equal(
        np.asarray(masks["params"]["scale"]), np.isin(np.arange(6), KEPT)
    )
    assert surgery.plan_from_masks(deps, masks).removed == plan.removed


# -- optimizer states ----------------------------------------------------------------


def bias_mask(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)


def labels(params: Any) -> Any:
    return jax.tree.map(lambda p: "a" if p.ndim > 1 else "b", params)


OPTIMIZERS = {
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "masked": optax.masked(optax.adam(1e-2), bias_mask),
    "partition": optax.partition(
        {"a": optax.adam(1e-2), "b": optax.sgd(0.1, 0.9)}, labels
    ),
    "MultiSteps": optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
    "inject_hyperparams": optax.inject_hyperparams(optax.adamw)(learning_rate=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("whole", [True, False], ids=["variables", "params"])
def test_state_continues_as_the_zeroed_dense_run(name: str, whole: bool):
    """Two more steps compact equal two more steps dense, packed."""
    params, x, deps = make()
    params = jax.tree.map(jnp.asarray, params)
    plan, tx = plan_of(deps), OPTIMIZERS[name]
    at = None if whole else "params"
    small = surgery.shrink(fn, plan)
    wrap = (lambda p: p) if whole else (lambda p: {"params": p})
    tree = params if whole else params["params"]

    def loss(f: Any) -> Any:
        return lambda p: (f(wrap(p), x) ** 2).mean()

    @functools.partial(jax.jit, static_argnums=0)
    def step(f: Any, p: Any, s: Any) -> Any:
        updates, s = tx.update(jax.grad(loss(f))(p), s, p)
        return optax.apply_updates(p, updates), s

    p, s = plan.zero(tree, at=at), tx.init(plan.zero(tree, at=at))
    p, s = step(fn, p, s)
    p, s = step(fn, plan.zero(p, at=at), s)
    p = plan.zero(p, at=at)
    cp, cs = plan.pack(p, at=at), plan.pack_state(s, p, at=at)
    fresh = tx.init(cp)
    assert jax.tree.structure(cs) == jax.tree.structure(fresh)
    assert jax.tree.map(jnp.shape, cs) == jax.tree.map(jnp.shape, fresh)
    cp, cs = step(small, cp, cs)
    p, s = step(fn, p, s)
    for a, b in zip(
        jax.tree.leaves(cp), jax.tree.leaves(plan.pack(p, at=at)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize(
    "tx",
    [
        transforms.rigl(0.1, sparsity=0.5, every=2, end=9, key=3),
        transforms.swd(
            0.1, mu=1e-4, a_max=1e2, total_steps=9, sparsity=0.5, ranking="leaf"
        ),
        optax.chain(
            optax.sgd(0.1), transforms.prune_gradually(0.5, end=9, ranking="leaf")
        ),
        optax.chain(optax.sgd(0.1), transforms.keep_masked(masks.from_zeros)),
    ],
    ids=["rigl", "swd", "gradual", "keep_masked"],
)
def test_states_of_our_own_are_packed(tx: Any):
    """Masks as the parameters they are of; keys and starts of searches as they are."""
    params, x, deps = make()
    params, plan = jax.tree.map(jnp.asarray, params), plan_of(deps)
    small = plan.pack(params)
    state = plan.pack_state(tx.init(params), params)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, tx.init(small))
    if hasattr(state, "kept"):  # RigL's counts are those of the compact masks
        found = [int(m.sum()) for m in jax.tree.leaves(state.mask) if m.ndim]
        assert state.kept.tolist() == found
    step = jax.jit(tx.update)
    for _ in range(4):
        updates, state = step(jax.tree.map(jnp.ones_like, small), state, small)
        small = optax.apply_updates(small, updates)
    assert all(bool(jnp.all(jnp.isfinite(p))) for p in jax.tree.leaves(small))


@pytest.mark.parametrize("name", ["muon", "mechanize"])
def test_constants_of_an_optimizer_stay(name: str):
    """With `tx=` by themselves; else a rule is asked, also where no parameter lies."""
    params, _, deps = make()
    params, plan = jax.tree.map(jnp.asarray, params), plan_of(deps)
    tx = {
        "muon": optax.contrib.muon(0.1),
        "mechanize": optax.contrib.mechanize(optax.sgd(0.1, 0.9)),
    }[name]
    state = tx.init(params)
    fresh = jax.tree.map(jnp.shape, tx.init(plan.pack(params)))
    assert jax.tree.map(jnp.shape, plan.pack_state(state, params, tx=tx)) == fresh
    ruled = plan.pack_state(
        state, params, rule=lambda _, leaf, m: leaf if m is None else m
    )
    assert jax.tree.map(jnp.shape, ruled) == fresh
    with pytest.raises(ValueError, match="belongs to no parameter"):
        plan.pack_state(state, params)


def test_a_flat_copy_of_the_parameters_is_refused():
    params, _, deps = make()
    params = jax.tree.map(jnp.asarray, params)
    state = optax.flatten(optax.adam(0.1)).init(params)
    with pytest.raises(ValueError, match="mu .*: belongs to no parameter"):
        plan_of(deps).pack_state(state, params)


def test_a_state_of_other_parameters_says_which_to_give():
    """Variables for the parameters among them, a training state for its optimizer's."""
    Training = collections.namedtuple("Training", "opt_state stats")
    params, _, deps = make()
    params = jax.tree.map(jnp.asarray, params)
    variables = {"params": params, "stats": {"mean": jnp.ones(3)}}
    keep = {("params", *path): masks for path, masks in plan_of(deps).keep.items()}
    keep["stats", "mean"] = (np.ones(3, bool),)
    plan = dataclasses.replace(plan_of(deps), keep=keep)
    state = optax.adam(0.1).init(params)
    with pytest.raises(ValueError, match="trains 'params' alone: .* `at='params'`"):
        plan.pack_state(state, variables)
    with pytest.raises(ValueError, match=r"got Training: give its `.opt_state`"):
        plan.pack_state(Training(state, jnp.ones(3)), params, at="params")
    assert plan.pack_state(state, params, at="params")


def test_factored_states_are_refused():
    params, _, deps = make()
    tx = optax.adafactor(1e-2, min_dim_size_to_factor=2)
    state = tx.init(jax.tree.map(jnp.asarray, params))
    with pytest.raises(ValueError, match="belongs to no parameter|factored moments"):
        plan_of(deps).pack_state(state, params)


def test_a_rule_takes_factored_states():
    """Adafactor's row and column moments of a matrix are means over one of its axes."""
    params, _, deps = make()
    params = jax.tree.map(jnp.asarray, params)
    tx = optax.adafactor(1e-2, min_dim_size_to_factor=2, momentum=0.9)
    plan = plan_of(deps)
    asked = []

    def rule(path: Any, leaf: Any, masks: Any) -> Any:
        asked.append(path)
        if leaf.shape == (1,):  # a placeholder beside the full or the factored moment
            return leaf
        order = np.argsort([m.size for m in masks])  # the two largest are factored
        drop = order[-2] if "v_col" in path else order[-1]
        for axis, mask in enumerate(np.delete(np.array(masks, object), drop)):
            leaf = jnp.compress(mask.astype(bool), leaf, axis=axis)
        return leaf

    state = plan.pack_state(tx.init(params), params, rule=rule)
    assert any("v_row" in path for path in asked)
    fresh = tx.init(plan.pack(params))
    rows = lambda s: s[0].v_row["params"]["in"]["kernel"].shape  # noqa: E731
    columns = lambda s: s[0].v_col["params"]["in"]["kernel"].shape  # noqa: E731
    assert {rows(state), columns(state)} == {(4,), (2,)}
    assert {rows(fresh), columns(fresh)} == {(4,), (2,)}
    with pytest.raises(ValueError, match="Give a `rule` for these leaves"):
        plan.pack_state(tx.init(params), params, rule=lambda *_: None)
