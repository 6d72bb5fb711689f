"""From the Planetoid pickles to one `.npz` per graph.

    python -m experiments.data.planetoid RAW OUT

`RAW` holds `ind.cora.x`, `ind.cora.tx`, ... The test rows `tx` come in the order of the
lines of `test.index`, not in the order of the nodes; in Citeseer that range has 15
gaps, which stay rows without words and get the label -1. The adjacency is made
symmetric and loses its self loops and repeats. Only unpickle files that you trust.

References:
  Yang et al., Revisiting Semi-Supervised Learning with Graph Embeddings, ICML 2016.
"""

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse


def convert(raw: Path, name: str) -> dict[str, np.ndarray]:
    """The arrays that `experiments.data.graphs.load_graph` reads.

    Args:
      raw: the folder of the `ind.*` files.
      name: "cora" or "citeseer".

    Returns:
      Features and adjacency in compressed rows, labels, and the three index lists.
    """
    y, tx, ty, allx, ally, graph = (
        _unpickle(raw / f"ind.{name}.{part}")
        for part in ("y", "tx", "ty", "allx", "ally", "graph")
    )
    order = np.loadtxt(raw / f"ind.{name}.test.index", dtype=np.int32)
    first, count = int(order.min()), len(graph)
    features = sparse.lil_matrix((count, allx.shape[1]), dtype=np.float32)
    features[:first], features[order] = allx, tx
    features = features.tocsr()
    features.sort_indices()
    onehot = np.zeros((count, ally.shape[1]), np.int32)
    onehot[:first], onehot[order] = ally, ty
    labels = np.where(onehot.any(axis=1), onehot.argmax(axis=1), -1)
    adjacency = _adjacency(graph, count)
    return {
        "x_data": features.data,
        "x_indices": features.indices.astype(np.int32),
        "x_indptr": features.indptr.astype(np.int32),
        "x_shape": np.array(features.shape),
        "labels": labels.astype(np.int32),
        "adj_indices": adjacency.indices.astype(np.int32),
        "adj_indptr": adjacency.indptr.astype(np.int32),
        "idx_train": np.arange(len(y), dtype=np.int32),
        "idx_val": np.arange(len(y), len(y) + 500, dtype=np.int32),
        "idx_test": np.sort(order),
        "num_classes": np.array(onehot.shape[1]),
    }


def _unpickle(path: Path) -> Any:
    with path.open("rb") as file:
        return pickle.load(file, encoding="latin1")


def _adjacency(graph: dict[int, list[int]], count: int) -> sparse.csr_matrix:
    pairs = np.array([(a, b) for a, near in graph.items() for b in near if a != b])
    both = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)
    ones = np.ones(len(both), np.float32)
    matrix = sparse.csr_matrix((ones, (both[:, 0], both[:, 1])), (count, count))
    matrix.sort_indices()
    return matrix


def main(raw: str, out: str) -> None:
    """Writes `cora.npz` and `citeseer.npz`, those of the two that `raw` holds."""
    names = [n for n in ("cora", "citeseer") if (Path(raw) / f"ind.{n}.x").exists()]
    if not names:
        raise SystemExit(f"no ind.cora.x or ind.citeseer.x in {raw}")
    for name in names:
        target = Path(out) / f"{name}.npz"
        arrays: Any = convert(Path(raw), name)
        np.savez_compressed(target, **arrays)
        print(f"wrote {target}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m experiments.data.planetoid RAW OUT")
    main(*sys.argv[1:])
