"""A kernel that reads some of its inputs only, through a gather.

The first layer of a residual branch reads the stream, which cannot lose channels while
others read it. The layer can still be made cheaper: its kernel keeps the rows of some
channels, and these are gathered before the contraction. The gather is the price; it is
counted.

He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017
(arXiv 1707.06168), section 3.3 (the "channel sampler").
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._dtypes import owned
from jprune._errors import listing, value_error
from jprune._jaxpr import _compat, _flat
from jprune._jaxpr._chain import reads
from jprune._jaxpr._flat import Flat, Site
from jprune._jaxpr._matrix import MatrixForm, Unreadable, matrix_form
from jprune._jaxpr._trace import flatten_call, is_array, trace
from jprune._tree import KeyTuple, keyed_leaves, path_keys
from jprune._typing import PyTree
from jprune.surgery._callable import traced


class Sampled(NamedTuple):
    """The result of `sample_inputs`.

    Attributes:
      fn: `fn(params, *args, **kwargs)`, as the function given, for these parameters.
      params: the parameters; the sampled kernels have the kept rows only.
      indices: by path, which inputs each of them reads.
      gathered: by path, how many numbers a call with `args` copies for it; empty
        without `args`.
    """

    fn: Callable[..., Any]
    params: PyTree
    indices: dict[str, np.ndarray]
    gathered: dict[str, int]


class _Narrow(NamedTuple):
    axis: int
    size: int
    indices: np.ndarray


def sample_inputs(
    fn: Callable[..., Any],
    params: PyTree,
    keep: Mapping[str, Any],
    *args: Any,
    axis: int | Mapping[str, int] | None = None,
) -> Sampled:
    """Lets kernels read a sample of their inputs.

    The result is a function as the one given, for `jit`, `grad` and other batch sizes.
    Calls, rematerialization and loops around contractions are written out.

    Args:
      fn: `fn(params, *args, **kwargs)`, any function of any pytree.
      params: the parameters.
      keep: by path of a kernel which of its inputs stay, bool or indices
        (`Reconstructed.sampled`).
      *args: arguments for the count in `gathered`.
      axis: of the kernel, that the inputs lie on: one, or by path. None: the only one
        that the contraction sums over; of a convolution its input channels.

    Returns:
      A `Sampled`. `analysis.flops(sampled.fn)(sampled.params, ...)` is its cost without
      the gathers.

    Raises:
      ValueError: a path that is no leaf, indices that do not fit; a kernel that is read
        in several places, by a grouped convolution, or by no contraction.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import compress
      >>> net = lambda p, x: x @ p["w"]
      >>> p, x = {"w": jnp.array([[1.0], [2.0], [4.0]])}, jnp.ones((5, 3))
      >>> thin = compress.sample_inputs(net, p, {"w": [0, 2]}, x)
      >>> thin.params["w"].shape, thin.gathered, float(thin.fn(thin.params, x)[0, 0])
      ((2, 1), {'w': 10}, 5.0)
    """
    leaves = {"/".join(map(str, p)): (p, x) for p, x in keyed_leaves(params)}
    unknown = [name for name in keep if name not in leaves]
    if unknown or not keep:
        raise value_error(
            f"`keep` must name kernels by their paths, got {unknown or keep}. The "
            f"leaves are:{listing(list(leaves))}"
        )
    flat = _flat.flatten(traced(fn, params, args)) if args else None
    narrow: dict[KeyTuple, _Narrow] = {}
    for name, kept in keep.items():
        path, leaf = leaves[name]
        at = axis.get(name) if isinstance(axis, Mapping) else axis
        if at is None:
            at = _input_axis(name, leaf, flat, path)
        size = np.shape(leaf)[at]
        narrow[path] = _Narrow(at, size, _indices(name, kept, size))
    thin = jax.tree_util.tree_map_with_path(
        lambda path, x: _taken(x, narrow.get(path_keys(path))), params
    )
    run, counts = _sampled(fn, narrow)
    gathered: dict[str, int] = {}
    if args:
        flat_args = flatten_call(thin, args, {})
        jax.eval_shape(lambda a: run(*flat_args.rebuild(a)[0]), flat_args.arrays)
        gathered = {"/".join(map(str, p)): n for p, n in counts.items()}
    indices = {"/".join(map(str, p)): one.indices for p, one in narrow.items()}
    return Sampled(run, owned(thin, params), indices, gathered)


def _sampled(
    fn: Callable[..., Any], narrow: Mapping[KeyTuple, _Narrow]
) -> tuple[Callable[..., Any], dict[KeyTuple, int]]:
    """`fn` for narrow kernels, and how much its last trace gathered."""
    counts: dict[KeyTuple, int] = {}

    def dense(path: Any, x: Any) -> Any:
        one = narrow.get(path_keys(path))
        if one is None or not is_array(x):
            return x
        shape = list(x.shape)
        if shape[one.axis] != one.indices.size:
            raise value_error(
                f"`params` at {'/'.join(map(str, path_keys(path)))} must have "
                f"{one.indices.size} inputs on axis {one.axis}, got {shape[one.axis]}."
            )
        shape[one.axis] = one.size
        return jax.ShapeDtypeStruct(tuple(shape), x.dtype)

    def run(params: PyTree, *args: Any, **kwargs: Any) -> Any:
        shapes = jax.tree_util.tree_map_with_path(dense, params)
        program = trace(fn)(shapes, *args, **kwargs)
        flat = _flat.flatten(program, custom_rules=True)
        sites = _sites(flat, narrow)
        arrays = flatten_call(params, args, kwargs).arrays
        jaxpr = flat.jaxpr.jaxpr
        env = dict(zip(jaxpr.invars, arrays, strict=True))
        env.update(zip(jaxpr.constvars, flat.jaxpr.consts, strict=True))
        leaves = dict(zip(flat.params, arrays, strict=False))
        for number, eqn in enumerate(flat.eqns):
            origin = flat.origins.get(eqn.outvars[0])
            if origin is not None and origin.path in narrow:
                continue  # a move of a narrow kernel: its contraction makes it anew
            ins = [
                None if number in sites and i == sites[number].site.place
                else _flat.value(env, v)
                for i, v in enumerate(eqn.invars)
            ]  # fmt: skip
            if number in sites:
                form = sites[number]
                ins = _narrowed(form, ins, leaves[form.path], narrow[form.path])
                counts[form.path] = int(np.size(ins[1 - form.site.place]))
            results = _compat.bind(eqn, eqn.params, ins)
            env.update(zip(eqn.outvars, results, strict=True))
        outs = [_flat.value(env, v) for v in jaxpr.outvars]
        return jax.tree.unflatten(program.out_tree, outs)

    return run, counts


def _narrowed(form: MatrixForm, ins: list[Any], kernel: Any, one: _Narrow) -> list[Any]:
    """The operands of a contraction with a narrow kernel."""
    place, origin = form.site.place, form.site.origin
    dim = origin.dims.index(one.axis)
    shape = list(form.eqn.invars[place].aval.shape)
    shape[dim] = one.indices.size
    ins[place] = form.as_operand(kernel, shape)
    if form.eqn.primitive.name == "dot_general":
        summed = form.eqn.params["dimension_numbers"][0]
        at = summed[1 - place][list(summed[place]).index(dim)]
    else:
        at = form.eqn.params["dimension_numbers"].lhs_spec[1]
    ins[1 - place] = jnp.take(
        ins[1 - place], one.indices, axis=at, unique_indices=True, mode="clip"
    )
    return ins


def _sites(flat: Flat, narrow: Mapping[KeyTuple, _Narrow]) -> dict[int, MatrixForm]:
    """The contractions of the narrow kernels, by number of the equation.

    Raises:
      ValueError: for a kernel that is read otherwise.
    """
    known, found, why = (
        reads(flat),
        {},
        dict.fromkeys(narrow, "no contraction reads it"),
    )
    for site in flat.sites:
        path = site.origin.path
        if path not in narrow:
            continue
        reason = _refusal(flat, site, known, narrow[path].axis)
        if reason:
            why[path] = reason
            continue
        found[site.eqn] = matrix_form(flat, site)
        why.pop(path, None)
    if why:
        lines = [f"{'/'.join(map(str, p))}: {w}" for p, w in why.items()]
        raise value_error(f"These kernels cannot be sampled:{listing(lines)}")
    return found


def _refusal(flat: Flat, site: Site, known: Mapping[Any, int], axis: int) -> str:
    if known[site.origin.path, tuple(sorted(site.origin.at))] != 1:
        return "it is read in several places"
    if site.origin.at:
        return "it is a stack of layers in a loop"
    try:
        form = matrix_form(flat, site)
    except Unreadable as error:
        return str(error)
    if form.split > 1:
        return "a grouped convolution reads it"
    if axis not in form.axes(1):
        return f"its contraction does not sum over axis {axis}"
    return ""


def _input_axis(name: str, leaf: Any, flat: Flat | None, path: KeyTuple) -> int:
    if flat is None:
        if np.ndim(leaf) in (2, 4):
            return np.ndim(leaf) - 2
    else:
        for site in flat.sites:
            if site.origin.path == path:
                form = matrix_form(flat, site)
                axes = [a for a in form.axes(1) if a is not None]
                if form.eqn.primitive.name != "dot_general":
                    return axes[-1]
                if len(axes) == 1:
                    return axes[0]
    raise value_error(
        f"`axis` is needed for {name}, shape {np.shape(leaf)}: which of its axes the "
        "inputs lie on."
    )


def _indices(name: str, kept: Any, size: int) -> np.ndarray:
    array = np.asarray(kept)
    index = np.flatnonzero(array) if array.dtype == bool else array.astype(np.int64)
    fits = array.dtype != bool or array.shape == (size,)
    inside = index.size and 0 <= index.min() and index.max() < size
    if not (fits and index.ndim == 1 and inside and len(set(index)) == index.size):
        raise value_error(
            f"`keep[{name!r}]` must be a bool vector [{size}] or different indices in "
            f"0..{size - 1}, at least one; got {kept!r}."
        )
    return index


def _taken(x: Any, one: _Narrow | None) -> Any:
    return x if one is None else jnp.take(jnp.asarray(x), one.indices, axis=one.axis)
