"""The graph convolutional network of Kipf & Welling, with jraph.

References:
  Kipf & Welling, Semi-Supervised Classification with Graph Convolutional Networks,
  ICLR 2017, equation 9.
"""

from typing import Any

import flax.linen as nn
import jax
import jraph


class GCN(nn.Module):
    """Two graph convolutions with dropout before each.

    The graph brings its self edges and both directions of every edge.

    Attributes:
      classes: number of logits of a node.
      hidden: width of the hidden layer.
      dropout: share of the inputs of each layer set to 0 in training.
    """

    classes: int
    hidden: int = 16
    dropout: float = 0.5

    @nn.compact
    def __call__(self, graph: Any, train: bool = False) -> jax.Array:
        def convolve(graph: Any, width: int) -> Any:
            drop = nn.Dropout(self.dropout, deterministic=not train)
            layer = jraph.GraphConvolution(
                update_node_fn=nn.Dense(width, use_bias=False),
                add_self_edges=False,
                symmetric_normalization=True,
            )
            return layer(graph._replace(nodes=drop(graph.nodes)))

        graph = convolve(graph, self.hidden)
        graph = graph._replace(nodes=nn.relu(graph.nodes))
        return convolve(graph, self.classes).nodes
