"""How many kernels write a group: what the default ranking divides a share by."""

from typing import Any

import jax
import jax.numpy as jnp

from jprune import surgery


def test_a_depthwise_kernel_writes_no_stream():
    """`x + point(depth(x))`: the stem, of one channel, and `point` write the stream."""
    conv = lambda x, k, groups=1: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (1,), "SAME", None, None, ("NHC", "HIO", "NHC"), groups
    )

    def net(p: Any, x: Any) -> Any:
        h = conv(x, p["stem"])
        h = h + conv(conv(h, p["depth"], 6), p["point"])
        return h.mean(1) @ p["out"]

    shapes = {"stem": (3, 1, 6), "depth": (3, 1, 6), "point": (1, 6, 6), "out": (6, 2)}
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    deps = surgery.groups(net)(params, jnp.ones((1, 4, 1)))
    assert [deps.writers[g.id] for g in deps if g.kind == "coupled"] == [2]


def test_writers_of_a_scan_are_those_of_its_layers():
    def net(p: Any, x: Any) -> Any:
        def layer(h: Any, w: Any) -> Any:
            return h + jnp.tanh(h @ w["up"]) @ w["down"], None

        return jax.lax.scan(layer, x @ p["a"], p["layers"])[0] @ p["o"]

    shapes = {"a": (5, 4), "o": (4, 2)}
    stack = {"up": (3, 4, 6), "down": (3, 6, 4)}
    abstract = lambda s: jax.ShapeDtypeStruct(s, jnp.float32)  # noqa: E731
    params = {k: abstract(s) for k, s in shapes.items()}
    params["layers"] = {k: abstract(s) for k, s in stack.items()}
    deps = surgery.groups(net)(params, jnp.ones((2, 5)))
    widths = {g.size: deps.writers[g.id] for g in deps if g.kind == "coupled"}
    assert widths == {4: 4, 6: 3}
