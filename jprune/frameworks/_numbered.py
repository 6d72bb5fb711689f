"""Keras numbers the layers of a process: a plan for a model that is built once more."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from jprune._tree import KeyTuple
from jprune.frameworks._state import require_paths
from jprune.surgery import Plan


def renumbered(plan: Plan, leaves: Mapping[str, Any]) -> Plan:
    """The plan under a model's paths, which may be numbered otherwise.

    Keras counts the layers of a process: what was `dense` is `dense_2` when the model
    is built a second time. Paths that differ in such numbers alone are paired in the
    order of the numbers.
    """
    paths: dict[KeyTuple, Any] = {(p,): x for p, x in leaves.items()}
    if isinstance(plan, Plan) and set(paths) != set(plan.keep):
        old = sorted(plan.keep, key=lambda path: _natural(path[0]))
        new = sorted(paths, key=lambda path: _natural(path[0]))
        if [_bare(p[0]) for p in old] == [_bare(p[0]) for p in new]:
            name = dict(zip(old, new, strict=True))
            plan = dataclasses.replace(
                plan,
                keep={name[path]: kept for path, kept in plan.keep.items()},
                lookups=tuple(
                    tuple((name[path], axis) for path, axis in axes)
                    for axes in plan.lookups
                ),
            )
    require_paths(
        plan,
        paths,
        "Find the groups with `jprune.frameworks.keras.groups(model, *inputs)`.",
    )
    return plan


def _bare(path: Any) -> str:
    return re.sub(r"_\d+(?=/|$)", "", path)


def _natural(path: Any) -> tuple[str, list[int]]:
    return _bare(path), [int(n or 0) for n in re.findall(r"(?:_(\d+))?(?=/|$)", path)]
