r"""Channels chosen by how well they rebuild the next layer, which is then refitted.

Layer by layer, in the order of the program: of the channels that a layer reads those
stay whose contributions rebuild its output best (LASSO, `_lasso`); its weights on them
are then computed anew by least squares,

$$ \min_{W', d} \sum_{n} \Vert y_n - x'_n W' - d \Vert^2 . $$

Inputs x' are those of the network as pruned so far, outputs y those of the network as
it was, so that errors do not add up. The constant d goes into the layer's bias, or out
of the running mean behind it. Where the output is added to a residual stream that has
changed meanwhile, the last layer before the sum makes up for that: its target is
$y + (s - s')/\gamma$ with the stream s before and s' now, and the slope $\gamma$ of a
norm in between.

He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017
(arXiv 1707.06168).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jprune import surgery
from jprune._errors import listing, value_error, warn
from jprune._groups import AxisRef, Group
from jprune._jaxpr._chain import Sink
from jprune._jaxpr._flat import flatten
from jprune._jaxpr._matrix import MatrixForm
from jprune._tree import KeyTuple, keyed_leaves, path_keys
from jprune._typing import PyTree
from jprune.compress._capture import (
    as_args,
    capture,
    require_finite,
    require_varied,
    site_name,
)
from jprune.compress._lasso import (
    least_squares,
    normal_form,
    select_channels,
    squared_error,
)
from jprune.compress._stages import Stages
from jprune.surgery._callable import BATCH, require_list, traced

Budget = int | np.ndarray


class LayerFit(NamedTuple):
    r"""What became of one layer that reads fewer channels.

    Attributes:
      kept: inputs kept, of `of`.
      of: inputs (taps times channels, heads times head dimension).
      rows: samples it was fitted to.
      removed: $\Vert Y - X' W \Vert^2 / \Vert Y \Vert^2$ with the trained weights on
        the kept inputs, about the mean of each output where a bias can be moved.
      fitted: the same with the new weights.
    """

    kept: int
    of: int
    rows: int
    removed: float
    fitted: float


class Reconstructed(NamedTuple):
    """The result of `reconstruct`.

    Attributes:
      plan: keeps the selected coordinates; `surgery.shrink(fn, plan)` is the function.
      variables: the dense variables, refitted; zero where a layer reads removed
        coordinates. `plan.pack(variables)` are the compact ones.
      keep: by group id, which coordinates stay, bool.
      sampled: by path of a kernel that reads a sample of its inputs, which, bool; for
        `compress.sample_inputs`.
      layers: by name of each layer that was refitted, how well.
    """

    plan: surgery.Plan
    variables: PyTree
    keep: dict[str, np.ndarray]
    sampled: dict[str, np.ndarray]
    layers: dict[str, LayerFit]


class _Job(NamedTuple):
    """Coordinates to choose: of a group, or the inputs of one kernel."""

    name: str
    size: int
    budget: Budget
    readers: dict[KeyTuple, AxisRef]


def reconstruct(
    fn: Callable[..., Any],
    deps: surgery.Groups,
    variables: PyTree,
    batches: Iterable[Any],
    keep: Mapping[str, Budget],
    *,
    samples: int | None = None,
    ridge: float = 1e-6,
    key: jax.Array | None = None,
) -> Reconstructed:
    r"""Selects channels by LASSO and refits the layers that read them.

    Works on whatever reads a group in a contraction: convolutions, dense layers (behind
    a flattening too), attention outputs (heads, or the dimension inside them).

    Args:
      fn: `fn(variables, *args)`, in eval mode.
      deps: its groups, from `surgery.groups`.
      variables: the trained variables.
      batches: calibration data, all of one shape; each the tuple of `args`, or the one
        argument. The values between two layers are kept for all of them.
      keep: by group id how many coordinates stay, or which (a bool vector: no LASSO).
        Leave a residual stream's group out to keep the stream's channels; named, the
        whole stream is cut, chosen once for all of its readers. The path of a kernel
        stands for its own inputs, which it then reads through a gather
        (`compress.sample_inputs`): the paper's sampler before a residual branch.
      samples: of a convolution, how many output positions of each batch, drawn at
        random and shared by its examples (the paper: 10); None for all. There should be
        several times more rows (examples times positions) than inputs of a layer (taps
        times channels); with fewer than are kept the fit follows the sample's noise.
      ridge: of the least squares, towards the trained weights, relative to the mean
        square of the inputs.
      key: for the positions; `jax.random.key(0)` by default.

    Returns:
      A `Reconstructed`.

    Raises:
      ValueError: an unknown name or count in `keep`; a group that no contraction reads
        alone (branches and unbounded loops, tied weights); batches of unlike shapes,
        without examples or with equal ones, or that give values which are not finite.

    Warns:
      UserWarning: a layer was fitted to fewer rows than it keeps inputs.

    Examples:
      Two channels say the same; one of them is enough:

      >>> import jax, jax.numpy as jnp
      >>> from jprune import compress, surgery
      >>> net = lambda p, x: (x @ p["a"]) @ p["b"]
      >>> p = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[1.0], [0.5]])}
      >>> x = jnp.array([[1.0], [2.0], [-1.0]])
      >>> found = compress.reconstruct(
      ...     net, surgery.groups(net)(p, x), p, [x], {"a:1": jnp.array([True, False])})
      >>> found.plan.pack(found.variables)["b"].round(4).tolist()
      [[2.0]]

    References:
      He et al., arXiv 1707.06168. Deviations: the penalty is bisected to the exact
      count (the authors stop within 10 %); every output has its own intercept in the
      LASSO where it has a bias; all rows enter it, not a sample of 400.
    """
    if not isinstance(keep, Mapping):
        raise value_error(
            f"`keep` must be a mapping by group id, got {type(keep).__name__}."
        )
    key = jax.random.key(0) if key is None else key
    require_list(batches)
    batches = list(batches)
    jobs = [_job(deps, variables, name, budget) for name, budget in keep.items()]
    wanted = {path for job in jobs for path in job.readers}
    if not wanted:
        raise value_error("`keep` is empty: there is nothing to choose.")
    chosen = {
        job.name: _as_mask(job) for job in jobs if np.ndim(job.budget) or _whole(job)
    }
    open_ = [job for job in jobs if job.name not in chosen]
    chosen |= _jointly(fn, variables, batches, open_, samples, key)
    known = {name: k for name, k in chosen.items() if name in deps}
    start = surgery.plan_from_keep(deps, known).zero(variables)
    stages = Stages(
        fn, variables, batches, wanted, named=True, targets=True, start=start
    )
    layers: dict[str, LayerFit] = {}
    changes: dict[KeyTuple, Any] = {}
    for number, form in enumerate(stages):
        here = [job for job in jobs if form.path in job.readers]
        _fit(
            stages, form, here, chosen, layers, changes, samples, ridge,
            jax.random.fold_in(key, number),
        )  # fmt: skip
    _warn_of_few_rows(layers)
    groups = {name: k for name, k in chosen.items() if name in deps}
    sampled = {name: k for name, k in chosen.items() if name not in deps}
    plan = surgery.plan_from_keep(deps, groups)
    return Reconstructed(plan, stages.variables(changes), groups, sampled, layers)


def _warn_of_few_rows(layers: Mapping[str, LayerFit]) -> None:
    few = [
        f"{name}: {fit.rows} rows for {fit.kept} inputs"
        for name, fit in layers.items()
        if fit.rows < fit.kept < fit.of
    ]
    if few:
        warn(
            "[jprune] these layers were refitted to fewer rows than they keep inputs, "
            "which fits the sample and little else: give more or larger `batches`, "
            f"or more `samples`.{listing(few)}",
        )


def _fit(
    stages: Stages,
    form: MatrixForm,
    jobs: list[_Job],
    chosen: dict[str, np.ndarray],
    layers: dict[str, LayerFit],
    changes: dict[KeyTuple, Any],
    samples: int | None,
    ridge: float,
    key: jax.Array,
) -> None:
    """Chooses what is not chosen yet, and refits one layer."""
    chain = stages.chain(form)
    sums = stages.sums(form, chain, samples, key)
    require_varied(
        site_name(form), sums["input_sum"], sums["input_squares"], sums["rows"]
    )
    gram, cross, total = centered(sums, chain.sink is not None)
    weights, rows = stages.weights(form), int(sums["rows"])
    inputs = np.ones(form.shape[1], bool)
    for job in jobs:
        where = _where(form, job)
        if job.name not in chosen:
            masked = np.where(inputs, where, -1)
            part = inputs[None, :, None] * weights
            a, b = normal_form(gram, cross, part, masked, job.size)
            scale = 1 / (rows * form.shape[0] * form.shape[2])
            found = select_channels(a * scale, b * scale, int(job.budget))
            chosen[job.name] = found.keep
        inputs &= np.where(where < 0, True, chosen[job.name][np.maximum(where, 0)])
    cut = inputs[None, :, None] * weights
    new = cut
    if not inputs.all():
        new = least_squares(gram, cross, weights, inputs, ridge)
    shift = None
    if chain.sink is not None and not inputs.all():
        mean = np.einsum("gk,gkm->gm", sums["input_sum"], new)
        shift = (sums["output_sum"] - mean) / rows
        like = stages.leaves[chain.sink.path]
        changes[chain.sink.path] = _change(chain.sink, form, shift, like)
    if not inputs.all():
        stages.replace(form, new, shift)
    layers[site_name(form)] = LayerFit(
        int(inputs.sum()),
        len(inputs),
        rows,
        squared_error(gram, cross, total, cut) / max(total, 1e-30),
        squared_error(gram, cross, total, new) / max(total, 1e-30),
    )


def centered(
    sums: Mapping[str, np.ndarray], mean: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    """Gram matrices about the means, or about 0, and |Y|^2."""
    gram, cross = sums["gram"], sums["cross"]
    total = float(sums["output_squares"].sum())
    if not mean:
        return gram, cross, total
    x, y, n = sums["input_sum"], sums["output_sum"], sums["rows"]
    return (
        gram - x[:, :, None] * x[:, None, :] / n,
        cross - x[:, :, None] * y[:, None, :] / n,
        total - float((y * y).sum() / n),
    )


def _change(sink: Sink, form: MatrixForm, shift: np.ndarray, like: Any) -> Any:
    return sink.change(form.result(shift), like)


def _jointly(
    fn: Callable[..., Any],
    variables: PyTree,
    batches: list[Any],
    jobs: list[_Job],
    samples: int | None,
    key: jax.Array,
) -> dict[str, np.ndarray]:
    """The coordinates that serve several readers: one LASSO over all their outputs.

    Every reader counts alike, its outputs scaled to energy 1; inputs are those of the
    network as it was.
    """
    sites = []
    if batches:
        first = as_args(batches[0])
        sites = flatten(traced(fn, variables, first, BATCH)).sites
    jobs = [j for j in jobs if sum(s.origin.path in j.readers for s in sites) > 1]
    if not jobs:
        return {}
    paths = {path for job in jobs for path in job.readers}
    scope = jax.tree_util.tree_map_with_path(
        lambda path, _: path_keys(path) in paths, variables
    )
    found = capture(fn, variables, batches, scope=scope, samples=samples, key=key)
    leaves = dict(keyed_leaves(variables))
    chosen = {}
    for job in jobs:
        a = np.zeros((job.size, job.size))
        b = np.zeros(job.size)
        for one in found.values():
            if one.path not in job.readers:
                continue
            param = np.asarray(leaves[one.path])[_at(one.form, leaves[one.path])]
            w = np.asarray(one.form.weights(one.form.as_operand(param)), np.float64)
            x, y, n = one.input_sum, one.output_sum, one.rows
            require_varied(site_name(one.form), x, one.input_squares, n)
            require_finite(site_name(one.form), one.gram, one.cross, one.output_squares)
            assert one.gram is not None and one.cross is not None
            gram = one.gram - x[:, :, None] * x[:, None, :] / n
            cross = one.cross - x[:, :, None] * y[:, None, :] / n
            energy = one.output_squares.sum() - (y * y).sum() / n
            more_a, more_b = normal_form(
                gram, cross, w, _where(one.form, job), job.size
            )
            a, b = a + more_a / energy, b + more_b / energy
        chosen[job.name] = select_channels(a, b, int(job.budget)).keep
    return chosen


def _at(form: MatrixForm, leaf: Any) -> tuple:
    index: list[Any] = [slice(None)] * np.ndim(leaf)
    for axis, position in form.site.origin.at:
        index[axis] = position
    return tuple(index)


def _where(form: MatrixForm, job: _Job) -> np.ndarray:
    """For each of the K inputs of a reader its coordinate, or -1."""
    ref = job.readers[form.path]
    at = form.coordinates(ref.axis)
    if at is None:
        raise value_error(
            f"`keep` names {job.name!r}, but the contraction of {site_name(form)} does "
            f"not sum over its axis {ref.axis}."
        )
    return ref.coordinates(job.size)[at]


def _job(deps: surgery.Groups, variables: PyTree, name: str, budget: Any) -> _Job:
    """The readers of a group, or of a kernel's own inputs.

    Raises:
      ValueError: the name is neither, nothing reads it, or the budget does not fit.
    """
    if name in deps:
        group: Group = deps[name]
        readers = {r.path: r for r in group.members if r.role == "in"}
        if not readers:
            raise value_error(
                f"`keep` names {name!r}, which no contraction reads; rank it otherwise."
            )
        return _checked(_Job(name, group.size, budget, readers))
    for path, leaf in keyed_leaves(variables):
        if "/".join(map(str, path)) == name:
            axis = _input_axis(deps, path)
            ref = AxisRef(path, axis, "in")
            return _checked(_Job(name, np.shape(leaf)[axis], budget, {path: ref}))
    ids = [g.id for g in deps]
    raise value_error(
        f"`keep` names {name!r}: neither a group nor a parameter. Groups:{listing(ids)}"
    )


def _input_axis(deps: surgery.Groups, path: KeyTuple) -> int:
    axes = [
        ref.axis
        for group in deps
        for ref in group.members
        if ref.path == path and ref.role == "in"
    ]
    if len(axes) == 1:
        return axes[0]
    tree = surgery.contraction_axes(deps)
    pairs = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None)
    axis = {path_keys(p): a for p, a in pairs}.get(path)
    if axis is None:
        raise value_error(
            f"`keep` names {'/'.join(map(str, path))}, which no product reads."
        )
    return axis


def _checked(job: _Job) -> _Job:
    budget = np.asarray(job.budget)
    if budget.dtype == bool and budget.shape == (job.size,) and budget.any():
        return job._replace(budget=budget)
    if budget.dtype.kind in "iu" and budget.ndim == 0 and 1 <= budget <= job.size:
        return job._replace(budget=int(budget))
    raise value_error(
        f"`keep[{job.name!r}]` must be a count from 1 to {job.size} or a bool vector "
        f"[{job.size}] that keeps something, got {job.budget!r}."
    )


def _whole(job: _Job) -> bool:
    return np.ndim(job.budget) == 0 and int(job.budget) == job.size


def _as_mask(job: _Job) -> np.ndarray:
    if np.ndim(job.budget) == 0:
        return np.ones(job.size, bool)
    return np.asarray(job.budget)
