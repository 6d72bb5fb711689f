"""The graph convolutional network on features kept as a list of their non-zeros.

A bag of words is 1 % full. Dropout of an entry that is 0 does nothing, so that dropping
the others is the same network at a hundredth of the random numbers and products. The
parameters are those of `experiments.models.gcn.GCN`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Graph(NamedTuple):
    """A graph on the device.

    Attributes:
      values: [nonzeros] the features that are not 0, in the order of their nodes.
      nodes: [nonzeros] the node of each, ascending.
      words: [nonzeros] its column.
      senders: [edges] where an edge comes from; self edges are among them.
      receivers: [edges] where it goes, ascending.
      weights: [edges] 1 / sqrt(out-degree of sender x in-degree of receiver).
      blank: [nodes] zeros; its length is the number of nodes.
    """

    values: jax.Array
    nodes: jax.Array
    words: jax.Array
    senders: jax.Array
    receivers: jax.Array
    weights: jax.Array
    blank: jax.Array


def from_jraph(graph: Any) -> Graph:
    """A `jraph.GraphsTuple` with dense features, as `load_graph` gives it."""
    features = np.asarray(graph.nodes)
    nodes, words = np.nonzero(features)
    order = np.argsort(graph.receivers, kind="stable")
    senders, receivers = graph.senders[order], graph.receivers[order]
    out = np.bincount(senders, minlength=len(features))
    into = np.bincount(receivers, minlength=len(features))
    weights = 1 / np.sqrt(np.maximum(out[senders] * into[receivers], 1))
    return Graph(
        values=jnp.asarray(features[nodes, words]),
        nodes=jnp.asarray(nodes, jnp.int32),
        words=jnp.asarray(words, jnp.int32),
        senders=jnp.asarray(senders),
        receivers=jnp.asarray(receivers),
        weights=jnp.asarray(weights, jnp.float32),
        blank=jnp.zeros(len(features)),
    )


def around(graph: Graph, index: np.ndarray) -> Graph:
    """What the logits of these nodes depend on; the rest is left out, numbers stay.

    Two layers reach two edges far: features of nodes up to two edges away, edges into
    nodes up to one edge away. The logits of the other nodes are then wrong.

    Args:
      graph: the whole graph.
      index: the nodes whose logits are wanted.
    """
    senders, receivers = np.asarray(graph.senders), np.asarray(graph.receivers)

    def reached(nodes: np.ndarray) -> np.ndarray:
        return np.union1d(nodes, senders[np.isin(receivers, nodes)])

    once = reached(np.asarray(index))
    edges = np.isin(receivers, once)
    words = np.isin(np.asarray(graph.nodes), reached(once))
    return Graph(
        graph.values[words],
        graph.nodes[words],
        graph.words[words],
        graph.senders[edges],
        graph.receivers[edges],
        graph.weights[edges],
        graph.blank,
    )


def logits(
    params: Any, graph: Graph, key: jax.Array | None = None, dropout: float = 0.5
) -> jax.Array:
    """The network on every node, [nodes, classes].

    Args:
      params: of `GCN`; the hidden width is theirs.
      graph: the graph.
      key: of dropout, which both layers begin with; None for none.
      dropout: the share dropped.
    """
    values, kernels = graph.values, [params[f"Dense_{i}"]["kernel"] for i in (0, 1)]
    keys = (None, None) if key is None else jax.random.split(key)
    values = _drop(keys[0], values, dropout)
    hidden = _sum(
        values[:, None] * kernels[0][graph.words], graph.nodes, len(graph.blank)
    )
    hidden = _drop(keys[1], jax.nn.relu(_mix(hidden, graph)), dropout)
    return _mix(hidden @ kernels[1], graph)


def _mix(x: jax.Array, graph: Graph) -> jax.Array:
    sent = x[graph.senders] * graph.weights[:, None]
    return _sum(sent, graph.receivers, len(graph.blank))


def _sum(x: jax.Array, segments: jax.Array, count: int) -> jax.Array:
    return jax.ops.segment_sum(x, segments, count, indices_are_sorted=True)


def _drop(key: jax.Array | None, x: jax.Array, share: float) -> jax.Array:
    if key is None:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - share, x.shape), x / (1 - share), 0)
