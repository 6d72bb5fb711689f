"""Cora and Citeseer, the citation graphs of the Planetoid split, as jraph graphs.

Words of a document are its node's features, divided by their sum; a self edge is added
to every node, so that `jraph.GraphConvolution(add_self_edges=False,
symmetric_normalization=True)` is the renormalized convolution of Kipf & Welling.

References:
  Yang et al., Revisiting Semi-Supervised Learning with Graph Embeddings, ICML 2016.
  Kipf & Welling, Semi-Supervised Classification with Graph Convolutional Networks,
  ICLR 2017, section 2.2.
"""

from typing import Any, Literal

import numpy as np

from experiments.data.dataset import (
    DataError,
    Dataset,
    checked,
    find_folder,
    reading,
)

_HOW = (
    "`python -m experiments.data.planetoid RAW OUT` writes it from the files "
    "`ind.{name}.*` of the Planetoid repository (kimiyoung/planetoid, folder data)."
)


def load_graph(
    name: Literal["cora", "citeseer"], data_dir: str | None = None
) -> Dataset:
    """One citation graph; the training nodes are the 20 labelled ones of each class."""
    file = f"{name}.npz"
    folder = find_folder(data_dir, file, _HOW.format(name=name))
    with reading(folder / file):
        with (folder / file).open("rb") as opened:
            arrays = dict(np.load(opened, allow_pickle=False))
        _check_edges(arrays)
        return checked(_dataset(name, arrays), folder / file)


def _check_edges(arrays: dict[str, np.ndarray]) -> None:
    """Raises if rows or columns of the compressed matrices lie outside of them."""
    nodes, words = (int(size) for size in arrays["x_shape"])
    for name, limit in (("x", words), ("adj", nodes)):
        rows, columns = arrays[f"{name}_indptr"], arrays[f"{name}_indices"]
        if len(rows) != nodes + 1 or rows[0] != 0 or rows[-1] != len(columns):
            raise ValueError(f"`{name}_indptr` does not count `{name}_indices`")
        if (np.diff(rows) < 0).any():
            raise ValueError(f"`{name}_indptr` falls")
        if len(columns) and not 0 <= columns.min() <= columns.max() < limit:
            raise ValueError(f"an entry of `{name}_indices` is outside of {limit:,}")


def _dataset(name: str, arrays: dict[str, np.ndarray]) -> Dataset:
    return Dataset(
        name=name,
        inputs=_graphs_tuple(arrays),
        labels=arrays["labels"].astype(np.int32),
        train=arrays["idx_train"].astype(np.int32),
        test=arrays["idx_test"].astype(np.int32),
        classes=int(arrays["num_classes"]),
        mean=np.float32(0),
        std=np.float32(1),
        kind="nodes",
    )


def _graphs_tuple(arrays: dict[str, np.ndarray]):
    try:
        import jraph
    except ImportError as error:
        raise DataError(
            "reading a graph needs jraph: "
            'install the extra with `pip install -e ".[experiments,data]"`.'
        ) from error
    nodes = _features(arrays)
    graph: Any = jraph.GraphsTuple  # its fields are annotated as jax arrays
    each = np.arange(len(nodes), dtype=np.int32)
    receivers = np.repeat(each, np.diff(arrays["adj_indptr"]))
    return graph(
        nodes=nodes,
        edges=None,
        senders=np.concatenate([arrays["adj_indices"], each]).astype(np.int32),
        receivers=np.concatenate([receivers, each]).astype(np.int32),
        globals=None,
        n_node=np.array([len(nodes)], np.int32),
        n_edge=np.array([len(receivers) + len(nodes)], np.int32),
    )


def _features(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The bag of words, dense, each row over its sum; an empty row stays 0."""
    dense = np.zeros(arrays["x_shape"], np.float32)
    rows = np.repeat(np.arange(len(dense)), np.diff(arrays["x_indptr"]))
    dense[rows, arrays["x_indices"]] = arrays["x_data"]
    return dense / np.maximum(dense.sum(axis=1, keepdims=True), 1)
