"""From the Planetoid pickles to one `.npz` per graph.

    python -m experiments.data.planetoid RAW OUT

`RAW` holds `ind.cora.x`, `ind.cora.tx`, ... The test rows `tx` come in the order of the
lines of `test.index`, not in the order of the nodes; in Citeseer that range has 15
gaps, which stay rows without words and get the label -1. The adjacency is made
symmetric and loses its self loops and repeats.

A pickle can run code. So every file is compared with its published SHA-256 before it is
opened, and then only arrays, sparse matrices and plain containers are made of it.

References:
  Yang et al., Revisiting Semi-Supervised Learning with Graph Embeddings, ICML 2016.
"""

import hashlib
import io
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from experiments.data.dataset import DataError, reading
from experiments.files import replacing

_LINES = """
23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab cora.x
94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1 cora.y
b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a cora.tx
41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad cora.ty
9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543 cora.allx
2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71 cora.ally
58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d cora.graph
297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875 cora.test.index
d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6 citeseer.x
8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924 citeseer.y
539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21 citeseer.tx
55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce citeseer.ty
2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668 citeseer.allx
f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95 citeseer.ally
d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7 citeseer.graph
2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4 citeseer.test.index
"""
DIGESTS = {name: digest for digest, name in map(str.split, _LINES.strip().splitlines())}
"""SHA-256 of the files of the Planetoid repository."""

_ALLOWED = {
    "builtins": {"dict", "list", "tuple", "set", "int", "float", "object"},
    "collections": {"defaultdict", "OrderedDict"},
    "copyreg": {"_reconstructor"},
    "copy_reg": {"_reconstructor"},
    "__builtin__": {"dict", "list", "tuple", "set", "int", "float", "object"},
    "numpy": {"dtype", "ndarray"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "scipy.sparse": {"csr_matrix"},
    "scipy.sparse.csr": {"csr_matrix"},
    "scipy.sparse._csr": {"csr_matrix"},
    "_codecs": {"encode"},
}
"""What a pickle may call, by module."""


def convert(
    raw: Path, name: str, digests: Mapping[str, str] | None = DIGESTS
) -> dict[str, np.ndarray]:
    """The arrays that `experiments.data.graphs.load_graph` reads.

    Args:
      raw: the folder of the `ind.*` files.
      name: "cora" or "citeseer".
      digests: SHA-256 by "name.part"; None for files of your own, whose pickles are
        then held to arrays alone.

    Returns:
      Features and adjacency in compressed rows, labels, and the three index lists.

    Raises:
      DataError: if a file is missing, damaged or another one; names it.
    """
    parts = ("y", "tx", "ty", "allx", "ally", "graph", "test.index")
    y, tx, ty, allx, ally, graph, lines = (
        _checked(
            raw / f"ind.{name}.{part}",
            None if digests is None else digests[f"{name}.{part}"],
        )
        for part in parts
    )
    order = np.array(lines.split(), np.int32)
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


class _Unpickler(pickle.Unpickler):
    """Makes arrays, sparse matrices and containers; calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _checked(path: Path, digest: str | None) -> Any:
    """What a file holds, once its digest is the one published."""
    with reading(path):
        data = path.read_bytes()
        if digest and hashlib.sha256(data).hexdigest() != digest:
            raise DataError(f"{path} is not the published file: its SHA-256 differs.")
        if path.name.endswith(".index"):
            return data.decode()
        return _Unpickler(io.BytesIO(data), encoding="latin1").load()


def _adjacency(graph: dict[int, list[int]], count: int) -> sparse.csr_matrix:
    pairs = np.array([(a, b) for a, near in graph.items() for b in near if a != b])
    both = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)
    ones = np.ones(len(both), np.float32)
    matrix = sparse.csr_matrix((ones, (both[:, 0], both[:, 1])), (count, count))
    matrix.sort_indices()
    return matrix


def main(raw: str, out: str, digests: Mapping[str, str] | None = DIGESTS) -> None:
    """Writes `cora.npz` and `citeseer.npz`, those of the two that `raw` holds."""
    names = [n for n in ("cora", "citeseer") if (Path(raw) / f"ind.{n}.x").exists()]
    if not names:
        raise SystemExit(f"no ind.cora.x or ind.citeseer.x in {raw}")
    for name in names:
        target = Path(out) / f"{name}.npz"
        arrays: Any = convert(Path(raw), name, digests)
        with replacing(target) as beside:
            np.savez_compressed(beside, **arrays)
        print(f"wrote {target}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m experiments.data.planetoid RAW OUT")
    try:
        main(sys.argv[1], sys.argv[2])
    except DataError as error:
        raise SystemExit(f"error: {error}") from error
    except OSError as error:
        raise SystemExit(f"error: {error.filename}: {error.strerror}.") from error
