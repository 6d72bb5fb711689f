"""The network of the gates' tests.

It is residual, with an affine map where a norm would be: `x <- relu(x +
outer(relu(inner(x))))` for each block, between a stem and a head.
"""

from functools import cache

import jax

from jprune import reparam, surgery

WIDTH, INNER, BLOCKS = 5, 6, ("0", "1")
CLOSED, OPEN = -5.0, 5.0


def affine(p, x):
    return (x @ p["kernel"]) * p["scale"][None] + p["bias"][None]


def block(p, x):
    return jax.nn.relu(x + affine(p["outer"], jax.nn.relu(affine(p["inner"], x))))


def network(params, x):
    x = jax.nn.relu(affine(params["stem"], x))
    for name in BLOCKS:
        x = block(params[name], x)
    return x @ params["head"]


def start():
    return jax.tree.map(lambda x: x, _start())


@cache
def _start():
    keys = iter(jax.random.split(jax.random.key(0), 20))

    def layer(rows, columns):
        kernel = jax.random.normal(next(keys), (rows, columns))
        scale = 1 + jax.random.uniform(next(keys), (columns,))
        bias = 0.3 * jax.random.normal(next(keys), (columns,))
        return {"kernel": kernel, "scale": scale, "bias": bias}

    blocks = {
        b: {"inner": layer(WIDTH, INNER), "outer": layer(INNER, WIDTH)} for b in BLOCKS
    }
    head = jax.random.normal(next(keys), (WIDTH, 3))
    return {"stem": layer(4, WIDTH), **blocks, "head": head}


@cache
def found():
    """The groups of the network, its inner ones, and its branches."""
    deps = surgery.groups(network)(start(), inputs())
    inner = {name: deps[f"{name}/inner/kernel:1"] for name in BLOCKS}
    leaves = {b: (f"{b}/outer/scale", f"{b}/outer/bias") for b in BLOCKS}
    branches = {b: reparam.Branch(leaves[b], (inner[b],)) for b in BLOCKS}
    return deps, [*inner.values()], branches


def inputs(count=7):
    return jax.random.normal(jax.random.key(1), (count, 4))


def compact(r, theta):
    """Logits of the gated network, of the compact one, and the plan between them."""
    deps, x = found()[0], inputs()
    params, mask = r.export(theta)
    plan = surgery.plan_from_masks(deps, mask, allow_empty=True)
    small = jax.jit(surgery.shrink(network, plan))(plan.pack(params), x)
    return jax.jit(network)(r.apply(theta), x), small, plan
