"""What the contractions of a network read and write on data.

The program is walked, not the modules: whatever function reads a parameter in a dot
product or a convolution, its other operand is captured under the parameter's path. As
in `_jaxpr._matrix`, every contraction is read as Y = X W. Batches are streamed: of each
only sums stay (moments, or the Gram matrix X^T X), or a few rows.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jprune._errors import listing, value_error
from jprune._jaxpr import _flat
from jprune._jaxpr._flat import Flat
from jprune._jaxpr._matrix import (
    MatrixForm,
    Unreadable,
    matrix_form,
    random_positions,
)
from jprune._jaxpr._trace import flatten_call, trace
from jprune._tree import KeyTuple, keyed_leaves
from jprune._typing import PyTree
from jprune.masks._scope import resolve_scope
from jprune.surgery._callable import on_batch, require_function, require_list

Keep = Literal["moments", "gram", "rows"]
Sums = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Captured:
    """Inputs X and outputs Y of the contraction of one kernel, Y = X W.

    G products lie side by side (groups of a convolution, shared batch axes; mostly 1);
    N rows are examples and positions; the K inputs are, of a convolution, taps times
    channels in the order (taps, channel), of a dot product the summed axes.

    Attributes:
      path: key tuple of the kernel.
      layer: its positions on the stacked axes of a loop over layers, or ().
      rows: N, how many rows were seen.
      input_sum: sum of X over the rows, [G, K] float64.
      input_squares: sum of X^2, [G, K].
      output_sum: sum of Y, [G, M].
      output_squares: sum of Y^2, [G, M].
      gram: X^T X, [G, K, K], for `keep="gram"`.
      cross: X^T Y, [G, K, M], for `keep="gram"`.
      inputs: X, [G, N, K], for `keep="rows"`.
      outputs: Y, [G, N, M], for `keep="rows"`.
      form: how the kernel's axes are laid into G, K and M.
    """

    path: KeyTuple
    layer: tuple[int, ...]
    rows: int
    input_sum: np.ndarray
    input_squares: np.ndarray
    output_sum: np.ndarray
    output_squares: np.ndarray
    gram: np.ndarray | None
    cross: np.ndarray | None
    inputs: np.ndarray | None
    outputs: np.ndarray | None
    form: MatrixForm

    @property
    def norms(self) -> np.ndarray:
        """The Euclidean norm of each input over the rows, shaped to the kernel.

        The kernel's rank, of length 1 on the axes of the outputs, so that
        `abs(kernel) * norms` is Wanda's score whatever axes are summed. (Of a grouped
        convolution as the whole kernel.) A loop's stack: one layer of it.
        """
        g, k, m = self.form.shape
        spread = np.broadcast_to(np.sqrt(self.input_squares)[:, :, None], (g, k, m))
        like = jax.ShapeDtypeStruct(self.form.param_shape, np.float64)
        whole = self.form.as_param(self.form.operand(spread), like)
        if self.form.split > 1:
            return whole
        kept = [*self.form.axes(0), *self.form.axes(1)]
        taken = {axis for axis, _ in self.form.site.origin.at}
        left = [a for a in range(whole.ndim + len(taken)) if a not in taken]
        index = tuple(slice(None) if a in kept else slice(0, 1) for a in left)
        return whole[index]


def capture(
    fn: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Any],
    *,
    scope: Any = None,
    keep: Keep = "gram",
    samples: int | None = None,
    key: jax.Array | None = None,
) -> dict[str, Captured]:
    """Inputs and outputs of the contractions that read parameters, over batches.

    Calls, rematerialization and custom derivative rules are opened, and loops up to 128
    rounds: a kernel of a stack of layers has one entry for each layer. Inputs may be
    sharded. A kernel that is read several times is captured over all its readings.

    Args:
      fn: `fn(params, *args)`, any function of any pytree.
      params: the parameters.
      batches: the data; each batch is the tuple of `args`, or the one argument.
      scope: which parameters: None for those of `masks.prunable` that contractions
        read; a regular expression on paths; a tree of bools.
      keep: what is kept of them. "moments": sums, O(K) a kernel; "gram": also X^T X and
        X^T Y, O(K^2 + KM); "rows": the rows themselves.
      samples: of a convolution, how many output positions of each batch to take, drawn
        at random with replacement and shared by its examples; None for all.
      key: for the positions; `jax.random.key(0)` by default.

    Returns:
      By path text (`blocks/kernel[2]` for a layer of a stack) a `Captured`.

    Raises:
      ValueError: `batches` is empty; a parameter asked for by `scope` is read by no
        contraction, or inside a branch or an unbounded loop, or otherwise than as
        Y = X W.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import compress
      >>> net = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
      >>> params = {"a": jnp.eye(2), "b": jnp.ones((2, 1))}
      >>> found = compress.capture(net, params, [jnp.eye(2), 2 * jnp.eye(2)])
      >>> found["a"].gram.tolist()
      [[[5.0, 0.0], [0.0, 5.0]]]
    """
    if keep not in ("moments", "gram", "rows"):
        raise value_error(f'`keep` must be "moments", "gram" or "rows", got {keep!r}.')
    require_function(fn)
    require_list(batches)
    key = jax.random.key(0) if key is None else key
    wanted = scoped_paths(scope, params)
    forms: list[MatrixForm] = []

    @jax.jit
    def collect(arrays: list[Any], key: jax.Array) -> list[dict[str, jax.Array]]:
        call, _ = flat_call.rebuild(arrays)
        flat = _flat.flatten(trace(fn)(*call))
        forms[:] = wanted_forms(flat, wanted, named=scope is not None)
        env = dict(zip(flat.jaxpr.jaxpr.invars, arrays, strict=True))
        env.update(zip(flat.jaxpr.jaxpr.constvars, flat.jaxpr.consts, strict=True))
        _flat.run(flat.jaxpr.jaxpr, env, 0, len(flat.eqns))
        found = []
        for i, form in enumerate(forms):
            drawn = random_positions(jax.random.fold_in(key, i), form, samples)
            x = _flat.value(env, form.eqn.invars[1 - form.site.place])
            x, y = form.inputs(x, drawn), form.outputs(env[form.eqn.outvars[0]], drawn)
            found.append(statistics(x, y, keep))
        return found

    totals: dict[str, tuple[MatrixForm, Sums]] = {}
    for number, batch in enumerate(batches):
        flat_call = flatten_call(params, as_args(batch), {})
        with on_batch(params, batch):
            found = collect(flat_call.arrays, jax.random.fold_in(key, number))
        for form, sums in zip(forms, jax.device_get(found), strict=True):
            _add(totals, form, sums)
    if not totals:
        raise value_error("`batches` is empty: there is nothing to capture.")
    for name, (_, sums) in totals.items():
        require_rows(name, sums)
    return {name: _captured(form, sums) for name, (form, sums) in totals.items()}


def statistics(x: jax.Array, y: jax.Array, keep: Keep) -> dict[str, jax.Array]:
    """The additive statistics of one batch. x [G, N, K], y [G, N, M]."""
    x, y = _wide(x), _wide(y)
    found = {
        "rows": jnp.asarray(x.shape[1], x.dtype),
        "input_sum": x.sum(1),
        "input_squares": (x * x).sum(1),
        "output_sum": y.sum(1),
        "output_squares": (y * y).sum(1),
    }
    if keep == "gram":
        found["gram"] = product(x, x)
        found["cross"] = product(x, y)
    if keep == "rows":
        found |= {"inputs": x, "outputs": y}
    return found


def require_finite(name: str, *sums: Any) -> None:
    """Raises if statistics of a contraction are not finite: no fit survives one NaN.

    Args:
      name: of the contraction.
      *sums: its sums over the batches, or None.

    Raises:
      ValueError: a NaN or infinity.
    """
    if not all(np.isfinite(x).all() for x in sums if x is not None):
        raise value_error(
            f"`batches` must give finite values, got NaN, infinities or squares beyond "
            f"the range of float32 in what {name} reads or makes. Look for them in the "
            "data and in the weights of the layers before it."
        )


def require_rows(name: str, sums: Sums) -> None:
    """Raises if a contraction saw no row: batches without an example.

    Args:
      name: of the contraction.
      sums: its sums over the batches.

    Raises:
      ValueError: none.
    """
    if not sums["rows"]:
        raise value_error(
            f"`batches` must hold examples: expected at least one, got none that {name}"
            " reads. Look at the shapes of the batches: an axis of length 0?"
        )


def require_varied(
    name: str, input_sum: np.ndarray, input_squares: np.ndarray, rows: Any
) -> None:
    """Raises if all rows that a contraction reads are alike: no fit can tell them.

    Args:
      name: of the contraction.
      input_sum: as in `Captured`.
      input_squares: as there.
      rows: as there.

    Raises:
      ValueError: one row, equal rows, or zeros.
    """
    about_mean = input_squares - input_sum**2 / rows
    if about_mean.sum() <= 1e-6 * input_squares.sum():
        raise value_error(
            f"`batches` must hold examples that differ: all {int(rows)} rows "
            f"that {name} reads are alike; nothing tells its inputs apart. Give "
            "more examples; if the layers before are dead, leave it out."
        )


def product(x: jax.Array, y: jax.Array) -> jax.Array:
    """X^T Y for each of G, in full precision."""
    return jnp.einsum("gnk,gnm->gkm", x, y, precision=jax.lax.Precision.HIGHEST)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def as_args(batch: Any) -> tuple:
    """The arguments behind `params`."""
    return batch if isinstance(batch, tuple) else (batch,)


def scoped_paths(scope: Any, params: PyTree) -> set[KeyTuple]:
    """The parameters a scope means."""
    tree = resolve_scope(scope, params)
    pairs = zip(keyed_leaves(params), jax.tree.leaves(tree), strict=True)
    return {path for (path, _), on in pairs if on}


def wanted_forms(flat: Flat, wanted: set[KeyTuple], named: bool) -> list[MatrixForm]:
    """The matrix forms of the wanted parameters' contractions, in order.

    Args:
      flat: the program.
      wanted: paths.
      named: they were asked for one by one, so that one without a form is an error.

    Raises:
      ValueError: none is left, or `named` ones are missing.
    """
    forms, why = [], dict.fromkeys(wanted, "no contraction reads it")
    why |= {
        path: f"a `{name}` that cannot be opened reads it"
        for path, name in flat.hidden.items()
        if path in wanted
    }
    for site in flat.sites:
        if site.origin.path not in wanted:
            continue
        try:
            forms.append(matrix_form(flat, site))
            why.pop(site.origin.path, None)
        except Unreadable as error:
            why[site.origin.path] = str(error)
    bad = {p: w for p, w in why.items() if named or p in flat.hidden}
    if bad or not forms:
        lines = [
            f"{'/'.join(map(str, p))}: {w}" for p, w in sorted((bad or why).items())
        ]
        raise value_error(
            "These parameters have no contraction that could be captured; leave them "
            f"out of `scope`, or write their loop out.{listing(lines)}"
        )
    return forms


def site_name(form: MatrixForm) -> str:
    """`a/kernel`, or `a/kernel[2]` for a layer of a stack."""
    at = "".join(f"[{position}]" for _, position in form.site.origin.at)
    return "/".join(map(str, form.path)) + at


def _add(
    totals: dict[str, tuple[MatrixForm, Sums]], form: MatrixForm, sums: Sums
) -> None:
    """Adds a batch; rows are appended."""
    name = site_name(form)
    sums = {k: np.asarray(v, np.float64) for k, v in sums.items()}
    if name not in totals:
        totals[name] = (form, sums)
        return
    first, known = totals[name]
    if first.order != form.order or first.shape != form.shape:
        raise value_error(
            f"`{name}` is read by contractions over different axes; capture it in a "
            "function that has only one of them."
        )
    for what, new in sums.items():
        if what in ("inputs", "outputs"):
            known[what] = np.concatenate([known[what], new], 1)
        else:
            known[what] = known[what] + new


def _captured(form: MatrixForm, sums: Sums) -> Captured:
    return Captured(
        form.path,
        tuple(position for _, position in form.site.origin.at),
        int(sums["rows"]),
        sums["input_sum"],
        sums["input_squares"],
        sums["output_sum"],
        sums["output_squares"],
        sums.get("gram"),
        sums.get("cross"),
        sums.get("inputs"),
        sums.get("outputs"),
        form,
    )
