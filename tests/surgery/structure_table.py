"""What is expected of each structure, by hand: groups, and how they are proved."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from tests.surgery.structures import (
    attention,
    batched_gather,
    complex_rotation,
    concat_norm,
    cond_leak,
    constant_chain,
    constant_scale,
    counts,
    dead_slice,
    depthwise,
    device_put,
    flatten_norm,
    fourier_over_space,
    gram,
    grouped,
    interleaved,
    kl_term,
    linear_attention,
    logsumexp_units,
    max_abs_scale,
    mixer,
    mlp,
    moving_carry,
    outer_product,
    pad_with_one,
    positional_sum,
    product_units,
    ragged,
    remat_scan,
    rolled,
    scan_norms,
    scatter_set,
    segment,
    sigmoid_pool,
    softmax_units,
    tile_and_repeat,
    token_mask,
    two_pass_norm,
    uneven_group_norm,
    vmapped_heads,
    weight_standardization,
    while_loop,
    whole_row_gather,
)


class Structure(NamedTuple):
    """A function and what is known of it by hand.

    Attributes:
      name: of the test.
      fn: `fn(params, x)`.
      shapes: of the parameters.
      x: shape of the input.
      sizes: sizes of the coupled groups, sorted.
      way: the worst way of the certificate over the groups.
    """

    name: str
    fn: Callable[..., Any]
    shapes: dict[str, tuple[int, ...]]
    x: tuple[int, ...]
    sizes: tuple[int, ...]
    way: str = "zero"


MLP = {"w": (4, 6), "b": (6,), "v": (6, 3)}
W = (4, 6)
STRUCTURES = (
    *(
        Structure(f"mlp {name}", mlp(act), MLP, (3, 4), (6,))
        for name, act in {
            "relu": jax.nn.relu,
            "silu": jax.nn.silu,
            "gelu": jax.nn.gelu,
            "sigmoid": jax.nn.sigmoid,
            "softplus": jax.nn.softplus,
        }.items()
    ),
    Structure(
        "two-pass norm",
        two_pass_norm,
        {**MLP, "g": (6,), "beta": (6,)},
        (3, 4),
        (6,),
        "ghost",
    ),
    Structure("sigmoid pooling", sigmoid_pool, MLP, (3, 4), (6,), "constant"),
    Structure("softmax over units", softmax_units, MLP, (3, 4), (6,), "ghost"),
    Structure("logsumexp over units", logsumexp_units, MLP, (3, 4), (6,), "ghost"),
    Structure("product over units", product_units, MLP, (3, 4), (6,), "constant"),
    Structure("max-abs scale", max_abs_scale, MLP, (3, 4), (6,), "constant"),
    Structure(
        "elu+1 attention",
        linear_attention,
        {"q": W, "k": W, "v": (4, 5), "o": (5, 2)},
        (3, 4),
        (5, 6),
        "ghost",
    ),
    Structure("gram matrix by broadcast", gram, MLP, (3, 4), (6,), "ghost"),
    Structure("outer product of sigmoids", outer_product, MLP, (3, 4), (6,), "ghost"),
    Structure(
        "pad with one",
        pad_with_one,
        {"w": W, "b": (6,), "c": (9,), "u": (9, 2)},
        (3, 4),
        (6,),
        "constant",
    ),
    Structure(
        "token mixing before a norm",
        mixer,
        {**MLP, "mix": (3, 3), "mb": (3,)},
        (3, 4),
        (6,),
        "ghost",
    ),
    Structure(
        "weight standardization",
        weight_standardization,
        {"w": W, "v": (6, 5), "u": (5, 2)},
        (3, 4),
        (5, 6),
        "ghost",
    ),
    Structure("counts by the program", counts, MLP, (3, 4), (6,)),
    Structure("KL term", kl_term, {"w": W, "v": W, "u": (6, 2)}, (3, 4), (6,)),
    Structure("token mask", token_mask, MLP, (3, 4), (6,)),
    Structure(
        "scan of two-pass norms",
        scan_norms,
        {**MLP, "ws": (2, 6, 5), "vs": (2, 5, 6)},
        (3, 4),
        (5, 6),
        "ghost",
    ),
    Structure(
        "scan and remat",
        remat_scan,
        {**MLP, "ws": (2, 6, 5), "vs": (2, 5, 6)},
        (3, 4),
        (5, 6),
        "ghost",
    ),
    Structure("moving carry", moving_carry, MLP, (3, 4), (6,), "ghost"),
    Structure("cond", cond_leak, MLP, (3, 4), (6,), "ghost"),
    Structure(
        "flatten and norm",
        flatten_norm,
        {"w": W, "b": (6,), "f": (18, 2)},
        (3, 4),
        (6,),
        "ghost",
    ),
    Structure(
        "norm over a concatenation",
        concat_norm,
        {"w": W, "b": (6,), "v": (4, 5), "u": (15, 2)},
        (3, 4),
        (5, 6),
        "ghost",
    ),
    Structure("constant scale", constant_scale, MLP, (3, 4), (6,)),
    Structure(
        "attention, norm over merged heads",
        attention,
        {"q": (4, 12), "k": (4, 12), "v": (4, 12), "o": (12, 2)},
        (5, 4),
        (3, 4, 4),
        "ghost",
    ),
    Structure(
        "vmapped heads", vmapped_heads, {"w": (3, 4, 5), "v": (3, 5, 2)}, (2, 4), (3, 5)
    ),
    Structure("segment sum", segment, MLP, (3, 4), (6,)),
    Structure("scatter set and max", scatter_set, MLP, (3, 4), (6,)),
    Structure("positional psum", positional_sum, MLP, (3, 4), (6,)),
    Structure("batched gather", batched_gather, {"w": W, "v": (6, 2)}, (6, 4), (6,)),
    Structure(
        "gather of whole rows",
        whole_row_gather,
        {"table": (3, 6), "w": W, "v": (6, 2)},
        (3, 4),
        (6,),
    ),
    Structure("device_put and barrier", device_put, MLP, (3, 4), (6,)),
    Structure(
        "complex numbers", complex_rotation, {"w": W, "v": W, "u": (6, 2)}, (3, 4), (6,)
    ),
    Structure("Fourier over space", fourier_over_space, MLP, (4, 4), (6,)),
    Structure("constants as generators", constant_chain, MLP, (3, 4), (6,)),
    Structure(
        "uneven group norm",
        uneven_group_norm,
        {"w": (4, 12), "v": (4, 8), "u": (20, 2)},
        (3, 4),
        (2, 3),
        "ghost",
    ),
    Structure(
        "interleaved pairs", interleaved, {"w": (4, 8), "v": (8, 2)}, (3, 4), (4,)
    ),
    Structure(
        "ragged dot",
        ragged,
        {"w": W, "e": (2, 6, 5), "v": (5, 2)},
        (3, 4),
        (5, 6),
    ),
    Structure("dead slice", dead_slice, MLP, (3, 4), (6,)),
    Structure(
        "depthwise with moving ghosts",
        depthwise,
        {"w": W, "k": (3, 3, 1, 6), "v": (6, 2)},
        (1, 4, 4, 4),
        (6,),
        "constant",
    ),
    Structure(
        "grouped convolution",
        grouped,
        {"w": W, "k": (3, 3, 2, 9), "v": (9, 2)},
        (1, 4, 4, 4),
        (2, 3, 3),
    ),
    Structure(
        "tile and repeat",
        tile_and_repeat,
        {"w": W, "v": (12, 2), "u": (12, 2)},
        (3, 4),
        (6,),
    ),
    Structure("roll by half", rolled, {"w": W, "v": (6, 2)}, (3, 4), (3,)),
    Structure("fori loop", while_loop, MLP, (3, 4), (6,), "ghost"),
)


def parameters(structure: Structure, seed: int = 0) -> tuple[dict[str, Any], Any]:
    """Random float64 parameters and input."""
    rng = np.random.default_rng(seed)
    params = {
        k: 0.5 * rng.standard_normal(s) for k, s in sorted(structure.shapes.items())
    }
    return params, rng.standard_normal(structure.x)
