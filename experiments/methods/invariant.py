"""Magnitudes with and without the free scale of normalized filters, in one shot."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from experiments.lab import Lab
from experiments.loop import Fit
from experiments.methods import structured
from experiments.methods.one_shot import recalibration
from experiments.methods.removal import accuracy, row
from experiments.results import Row
from experiments.rules import percent
from jprune import analysis, compress, masks, scores


def invariant(
    lab: Lab,
    dense: Fit,
    *,
    sparsity: tuple[float, ...],
    spread: float,
    stats_momentum: float,
) -> Iterator[Row]:
    """For each sparsity the convolutions pruned globally by four scores.

    Each row is of the network as trained. Its extra numbers say what the same score
    does to the same function with every filter scaled by a random factor: how many of
    the kept weights differ, and the accuracy; both with recalibrated statistics.

    Args:
      lab: the shared part.
      dense: the run whose result is cut.
      sparsity: shares of the weights to remove from the kernels in front of a norm.
      spread: factors are exp of a uniform number within it.
      stats_momentum: of the network's running averages.
    """
    tree = structured.variables(dense.params, dense.stats)
    index = structured.examples(lab, 100)
    found = analysis.scale_invariance(structured.network(lab), tree, index)
    groups = found.groups
    rng = np.random.default_rng(lab.seed)
    sizes = found.filter_sizes(tree)
    factors = [
        np.exp(rng.uniform(-spread, spread, sizes[g.name].shape)) for g in groups
    ]
    other = _rescaled(tree, groups, factors)
    refresh = recalibration(lab, stats_momentum)
    before = lab.logits(dense.params, dense.stats)
    for name in ("magnitude", "invariant", "canonical", "folded"):
        for share in sparsity:
            mine, theirs = (_mask(name, v, groups, share) for v in (tree, other))
            params, stats = structured.split(masks.apply(mine, tree))
            fresh = refresh(params, stats)
            made = row(
                lab,
                params,
                after=lab.logits(params, fresh),
                before=before,
                run=f"{name} {percent(share)}",
                method="invariant",
                kept=_kept(mine["params"]),
            )
            again, stats = structured.split(masks.apply(theirs, other))
            yield made._replace(
                extra={
                    "kept elsewhere after rescaling": _differ(mine, theirs),
                    "after rescaling": accuracy(
                        lab, lab.logits(again, refresh(again, stats))
                    ),
                    "as trained": accuracy(lab, lab.logits(params, dense.stats)),
                    "invariant kernels": float(len(groups)),
                }
            )


def _rescaled(tree: Any, groups: Any, factors: Any) -> Any:
    """The same function with every filter scaled, and its statistics with it."""
    change = {
        member.path: (member, factor)
        for group, factor in zip(groups, factors, strict=True)
        for member in (group.kernel, *group.others)
    }

    def leaf(path: Any, x: Any) -> Any:
        keys = tuple(k.key for k in path)
        if keys not in change:
            return x
        member, factor = change[keys]
        shape = [-1 if d == member.axis else 1 for d in range(np.ndim(x))]
        return (x * factor.reshape(shape) ** member.degree).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def _mask(name: str, tree: Any, groups: Any, share: float) -> Any:
    """The global mask of the invariant kernels by one of the scores."""
    paths = {g.kernel.path for g in groups}
    scope = jax.tree_util.tree_map_with_path(
        lambda path, _: tuple(k.key for k in path) in paths, tree
    )
    if name == "invariant":
        ranked = scores.invariant_magnitude(tree, groups, rest="magnitude")
    elif name == "canonical":
        ranked = scores.magnitude(compress.canonicalize(tree, groups))
    elif name == "folded":
        ranked = scores.magnitude(folded(tree, groups))
    else:
        ranked = scores.magnitude(tree)
    return masks.unstructured(ranked, share, scope=scope)


def folded(tree: Any, groups: Any, epsilon: float = 1e-5) -> Any:
    """The variables with every kernel times the gain of its norm, gamma / sqrt(var).

    Args:
      tree: variables of a Flax network, norms with a scale.
      groups: its scale-invariant kernels.
      epsilon: of the norms.
    """
    flat = dict(jax.tree_util.tree_leaves_with_path(tree))
    leaves = {tuple(k.key for k in path): x for path, x in flat.items()}
    for group in groups:
        (var,) = [ref.path for ref in group.others if ref.path[-1] == "var"]
        scale = leaves["params", *var[1:-1], "scale"]
        gain = scale / np.sqrt(leaves[var] + epsilon)
        ref = group.kernel
        shape = [-1 if d == ref.axis else 1 for d in range(np.ndim(leaves[ref.path]))]
        leaves[ref.path] = leaves[ref.path] * gain.reshape(shape)
    return jax.tree_util.tree_map_with_path(
        lambda path, _: leaves[tuple(k.key for k in path)], tree
    )


def _kept(mask: Any) -> int:
    """Weights of the kernels that stay; a leaf out of scope stays whole."""
    return int(sum(np.sum(m) for m in jax.tree.leaves(mask) if np.ndim(m)))


def _differ(mine: Any, theirs: Any) -> float:
    """The share of the kept weights that are not kept in the other mask."""
    pairs = [
        (np.asarray(a), np.asarray(b))
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True)
        if np.ndim(a)
    ]
    kept = sum(a.sum() for a, _ in pairs)
    return float(sum((a & ~b).sum() for a, b in pairs) / kept)
