"""A tree that is no mask of the parameters is refused, wherever a mask is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import analysis, at_init, masks, transforms

KERNEL = jnp.arange(1.0, 17).reshape(4, 4)
PARAMS = {"kernel": KERNEL, "bias": jnp.ones(4)}
KEY = jax.random.key(0)

WITHIN = {
    "unstructured": lambda m: masks.unstructured(PARAMS, 0.5, within=m),
    "output": lambda m: masks.unstructured(PARAMS, 0.5, ranking="output", within=m),
    "layers": lambda m: masks.unstructured(
        PARAMS, 0.5, ranking="leaf", stacked={"kernel": 0}, within=m
    ),
    "n_of_m": lambda m: masks.n_of_m(PARAMS, 2, 4, within=m),
    "channels": lambda m: masks.channels(PARAMS, 0.5, within=m),
    "blocks": lambda m: masks.blocks(PARAMS, (2, 2), 0.5, within=m),
    "above": lambda m: masks.above(PARAMS, 4.0, within=m),
    "k_starts": lambda m: at_init.k_starts(
        KEY, PARAMS, PARAMS, 0.5, k=2, share="channel", within=m
    ),
}

GIVEN = {
    "pattern": lambda m: at_init.k_starts(
        KEY, PARAMS, PARAMS, 0.5, k=2, pattern=lambda *_, **__: m
    ),
    "shrink_softly": lambda m: transforms.shrink_softly(select=lambda _: m, end=2).init(
        PARAMS
    ),
    "prune_once": lambda m: transforms.prune_once(lambda _: m, step=0).init(PARAMS),
}

NO_MASKS = {
    "scores": (np.eye(4), "must hold bools"),
    "a row": (np.ones((1, 4), bool), "must have the shape of each parameter"),
    "a vector": (np.ones(4, bool), "must have the shape of each parameter"),
    "other rows": (np.ones((2, 4), bool), "must have the shape of each parameter"),
    "None": (None, "must have exactly the structure"),
}


@pytest.mark.parametrize("no_mask", NO_MASKS)
@pytest.mark.parametrize("name", WITHIN | GIVEN)
def test_what_is_no_mask_is_refused(name, no_mask):
    leaf, message = NO_MASKS[no_mask]
    what = "within" if name in WITHIN else ""
    with pytest.raises(ValueError, match=f"{what}.*` {message}(?s:.*)kernel"):
        (WITHIN | GIVEN)[name]({"kernel": leaf, "bias": np.True_})


@pytest.mark.parametrize("name", WITHIN)
def test_a_mask_of_any_kind_of_bool_is_taken(name):
    """Of NumPy, of Python, of integers; and at full size where scores are 0-d."""
    lower = np.tri(4, dtype=bool)
    want = WITHIN[name]({"kernel": jnp.asarray(lower), "bias": jnp.array(True)})
    for leaf in (lower, lower.astype(int)):
        got = WITHIN[name]({"kernel": leaf, "bias": np.ones(4, bool)})
        np.testing.assert_array_equal(got["kernel"], want["kernel"])
    whole = WITHIN[name]({"kernel": True, "bias": True})
    everything = WITHIN[name](masks.full(PARAMS))
    np.testing.assert_array_equal(whole["kernel"], everything["kernel"])


@pytest.mark.parametrize(
    "read",
    [
        lambda m: at_init.shuffle(KEY, m),
        at_init.emptied,
        lambda m: masks.effective(m, lambda w: w["kernel"].sum()),
    ],
    ids=["shuffle", "emptied", "effective"],
)
def test_weights_in_place_of_a_mask(read):
    with pytest.raises(ValueError, match="`mask` must hold bools.*\n  kernel: float32"):
        read({"kernel": KERNEL})


def test_true_of_python_is_a_leaf_out_of_scope():
    mask = {"kernel": np.tri(4, dtype=bool), "bias": True}
    assert analysis.report(PARAMS, mask).in_scope.kept == 10
    tx = transforms.prune_once(lambda _: mask, step=0)
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["bias"], PARAMS["bias"])
    soft = transforms.shrink_softly(select=lambda _: mask, end=2)
    state = soft.update(PARAMS, soft.init(PARAMS), PARAMS)[1]
    assert state.mask["bias"].dtype == bool and state.mask["bias"].ndim == 0
