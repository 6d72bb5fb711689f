"""Models of other libraries: each is a plain function of a pytree, nothing special.

Flax NNX (merge a graph definition with a state), Haiku (`transform_with_state`),
Equinox (combine arrays with static parts), jraph (graph networks by `segment_sum`).
"""

from functools import partial
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import jraph
import numpy as np
from flax import nnx

from tests.surgery.flax_nets import vectors
from tests.surgery.nets import Case, Net, fill, images


class NNXNet(nnx.Module):
    """Two convolutions with batch norm and a residual, a linear head."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.inner = nnx.Conv(8, 12, (3, 3), rngs=rngs)
        self.outer = nnx.Conv(12, 8, (1, 1), rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(x)))
        x = nnx.relu(x + self.outer(nnx.relu(self.inner(x))))
        return self.head(x.mean((1, 2)))


def _nnx(train: bool = False, batch: int = 2) -> Case:
    model = nnx.eval_shape(lambda: NNXNet(nnx.Rngs(0)))
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    variables = fill({"params": params, "stats": stats})

    def apply(variables, x):
        model = nnx.merge(graph, variables["params"], variables["stats"])
        if not train:
            model.eval()
            return model(x)
        model.train()
        return model(x), nnx.state(model, nnx.BatchStat)

    return Case(apply, variables, (images(batch, 6),), "stats" if train else None)


# The stream and the inner width of the block.
NNX = Net("Flax NNX: convolutions", _nnx, 2, 4, train=True)


def _haiku_net(x, train: bool):
    norm = partial(hk.BatchNorm, True, True, 0.9)
    x = jax.nn.relu(norm()(hk.Conv2D(8, 3)(x), train))
    y = jax.nn.relu(norm()(hk.Conv2D(12, 3)(x), train))
    x = jax.nn.relu(x + hk.Conv2D(8, 1)(y))
    return hk.Linear(4)(x.mean((1, 2)))


def _haiku(train: bool = False, batch: int = 2) -> Case:
    x = images(batch, 6)
    model = hk.transform_with_state(_haiku_net)
    shapes = jax.eval_shape(partial(model.init, train=True), jax.random.key(0), x)
    variables = fill(dict(zip(("params", "state"), shapes, strict=True)))

    def apply(variables, x):
        out, state = model.apply(
            variables["params"], variables["state"], None, x, train
        )
        return (out, state) if train else out

    return Case(apply, variables, (x,), "state" if train else None)


# As the NNX network. Eval mode does not read the counters (4) and hidden averages (40).
HAIKU = Net("Haiku: convolutions, keys with '/'", _haiku, 2, 4 + 4 + 40, train=True)


class EquinoxBlock(eqx.Module):
    """A pre-norm transformer block; the norms compute a two-pass variance."""

    norm_1: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    norm_2: eqx.nn.LayerNorm
    mlp: eqx.nn.MLP

    def __init__(self, width: int, key):
        keys = jax.random.split(key)
        self.norm_1 = eqx.nn.LayerNorm(width)
        self.norm_2 = eqx.nn.LayerNorm(width)
        self.attention = eqx.nn.MultiheadAttention(3, width, key=keys[0])
        self.mlp = eqx.nn.MLP(width, width, 20, 1, jax.nn.gelu, key=keys[1])

    def __call__(self, x):
        y = jax.vmap(self.norm_1)(x)
        x = x + self.attention(y, y, y)
        return x + jax.vmap(self.mlp)(jax.vmap(self.norm_2)(x))


class EquinoxNet(eqx.Module):
    """Embedding, one block, a linear head on the mean token."""

    embed: eqx.nn.Linear
    block: EquinoxBlock
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.embed = eqx.nn.Linear(4, 12, key=keys[0])
        self.block = EquinoxBlock(12, keys[1])
        self.head = eqx.nn.Linear(12, 3, key=keys[2])

    def __call__(self, x):
        return self.head(self.block(jax.vmap(self.embed)(x)).mean(0))


def _equinox(train: bool = False, batch: int = 2) -> Case:
    del train
    model = eqx.filter_eval_shape(EquinoxNet, jax.random.key(0))
    shapes, static = eqx.partition(model, lambda v: isinstance(v, jax.ShapeDtypeStruct))

    def apply(arrays, x):
        return jax.vmap(eqx.combine(arrays, static))(x)

    x = vectors(batch * 5, 4).reshape(batch, 5, 4)
    return Case(apply, fill(shapes), (x,))


# The residual width (its two-pass variance needs the removed coordinates: ghosts),
# heads, head dimension of q and k, of v, hidden width.
EQUINOX = Net("Equinox: transformer, two-pass LayerNorm", _equinox, 5, 3)


def _graph(batch: int) -> jraph.GraphsTuple:
    nodes, edges = 4 * batch, 9 * batch
    rng = np.random.default_rng(3)
    features: dict[str, Any] = dict(
        nodes=rng.standard_normal((nodes, 5)),
        edges=rng.standard_normal((edges, 3)),
        senders=rng.integers(0, nodes, edges).astype(np.int32),
        receivers=rng.integers(0, nodes, edges).astype(np.int32),
        n_node=np.full(batch, 4, np.int32),
        n_edge=np.full(batch, 9, np.int32),
        globals=rng.standard_normal((batch, 2)),
    )
    return jraph.GraphsTuple(**features)


def _mlp(variables, *features):
    x = jnp.concatenate([f for f in features if f is not None], -1)
    x = jax.nn.relu(x @ variables["w1"] + variables["b1"][None])
    return x @ variables["w2"] + variables["b2"][None]


def _mlp_shapes(inputs: int, hidden: int, outputs: int):
    array = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    return {
        "w1": array((inputs, hidden)),
        "b1": array((hidden,)),
        "w2": array((hidden, outputs)),
        "b2": array((outputs,)),
    }


def _gcn_apply(variables, graph):
    for index, layer in enumerate(variables["layers"]):
        convolution = jraph.GraphConvolution(
            lambda nodes, layer=layer: nodes @ layer["w"] + layer["b"][None],
            symmetric_normalization=True,
            add_self_edges=True,
        )
        graph = convolution(graph)
        if index < 2:
            graph = graph._replace(nodes=jax.nn.relu(graph.nodes))
    return graph.nodes


def _gcn(train: bool = False, batch: int = 2) -> Case:
    del train
    array = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    widths = (5, 12, 10, 3)
    layers = [
        {"w": array((a, b)), "b": array((b,))}
        for a, b in zip(widths[:-1], widths[1:], strict=True)
    ]
    return Case(_gcn_apply, fill({"layers": layers}), (_graph(batch),))


# Two hidden feature widths, through gather and segment_sum.
GCN = Net("jraph: graph convolution", _gcn, 2, 3, batched=False)


def _message_apply(variables, graph):
    layer = jraph.GraphNetwork(
        update_edge_fn=lambda *f: _mlp(variables["edge"], *f),
        update_node_fn=lambda *f: _mlp(variables["node"], *f),
        update_global_fn=lambda *f: _mlp(variables["global"], *f),
    )
    return _mlp(variables["out"], layer(graph).globals)


def _message(train: bool = False, batch: int = 2) -> Case:
    del train
    shapes = {
        "edge": _mlp_shapes(3 + 5 + 5 + 2, 10, 6),  # edge, sender, receiver, global
        "node": _mlp_shapes(5 + 6 + 6 + 2, 10, 8),  # node, sent, received, global
        "global": _mlp_shapes(8 + 6 + 2, 10, 7),  # nodes, edges, global
        "out": _mlp_shapes(7, 10, 3),
    }
    return Case(_message_apply, fill(shapes), (_graph(batch),))


# Four hidden widths, and the widths of edges, nodes and globals between the updates.
MESSAGE = Net("jraph: message passing", _message, 4 + 3, 3, batched=False)

OTHER_NETS = (NNX, HAIKU, EQUINOX, GCN, MESSAGE)
