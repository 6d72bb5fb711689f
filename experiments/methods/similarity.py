"""Channel similarity: clusters from batch norms, removed in one shot, no data."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.lab import Lab
from experiments.loop import Fit
from experiments.methods import structured
from experiments.methods.lasso import errors, even_counts, largest
from experiments.methods.one_shot import recalibration
from experiments.results import Row
from experiments.rules import percent
from jprune import compress, surgery


def similarity(
    lab: Lab,
    dense: Fit,
    *,
    flops: tuple[float, ...],
    stats_momentum: float,
    images: int,
) -> Iterator[Row]:
    """For each share of the FLOPs: plain removal, and clusters by three distances.

    "magnitude": the smallest norms of every group go. Else the name says what the
    correlation of two channels is taken to be, and how their readers are told: "weights
    merge", "independent remove", "data merge" (measured on `images`, for checking).

    Args:
      lab: the shared part.
      dense: the run whose result is cut.
      flops: what is to be left.
      stats_momentum: of the network's running averages.
      images: training examples for the measured distances.
    """
    deps = structured.find_groups(lab, dense)
    tree = structured.variables(dense.params, dense.stats)
    groups = structured.inner(deps)
    ids = [g.id for g in groups]
    index = structured.examples(lab, 2 * lab.mesh.size)
    refresh = recalibration(lab, stats_momentum)
    before = lab.logits(dense.params, dense.stats)

    apply = structured.network(lab)
    chosen = lab.dataset.train[:images].astype(np.int32).reshape(-1, 100)
    batches = [lab.replicated(part) for part in chosen]
    seen = compress.data_distances(apply, deps, tree, batches, ids, samples=20)
    for share in flops:
        cuts: dict[str, tuple[Any, Any]] = {}
        counts = even_counts(deps, groups, share)
        scores = deps.scores(tree)
        plain = surgery.plan_from_keep(
            deps, {i: largest(scores[i], counts[i]) for i in ids}
        )
        cuts["magnitude"] = plain, tree
        ways: tuple[tuple[str, Any, dict[str, Any]], ...] = (
            ("weights", "merge", {"correlation": "weights"}),
            ("weights", "remove", {"correlation": "weights"}),
            ("independent", "remove", {"correlation": "independent"}),
            ("comonotone", "merge", {"correlation": "comonotone"}),
            ("data", "merge", {"distances": seen}),
        )
        for name, how, options in ways:
            found = compress.similar_channels(
                deps, tree, flops=share, groups=ids, **options
            )
            cuts[f"{name} {how}"] = compress.remove_similar(
                apply,
                deps,
                tree,
                found,
                index,
                how=how,  # pyright: ignore[reportArgumentType]
            )
        for name, (plan, values) in cuts.items():
            yield structured.channel_row(
                lab,
                plan,
                plan.pack(values),
                tree,
                run=f"{name}, {percent(share)} FLOPs",
                method="similarity",
                before=before,
                seconds=0.0,
                extra=errors(lab, dense, plan, values, refresh),
            )
