r"""Weights removed on calibration data, layer by layer: Wanda and SparseGPT.

Both go through the network once (`_stages`): a layer is pruned on its inputs X behind
the layers already pruned.

Wanda keeps, for each output, the largest $|w_{ij}| \cdot \Vert x_i \Vert_2$ and leaves
the values alone. SparseGPT also mends: with $H = X^T X + \delta I$, the inputs are
visited in order; what is removed at input j is made up for by the inputs behind it,

$$ w_{k} \leftarrow w_k - \frac{w_j - q_j}{[H_{\ge j}^{-1}]_{jj}}
   [H_{\ge j}^{-1}]_{jk} , \quad k > j , $$

and which weights go is decided block by block, by the loss
$w_j^2 / [H_{\ge j}^{-1}]_{jj}$ of their removal. The rows of the upper Cholesky factor
of $H^{-1}$ are these, scaled.

Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR
2024 (arXiv 2306.11695); Frantar, Alistarh, "SparseGPT", ICML 2023 (arXiv 2301.00774).
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import masks
from jprune._errors import value_error
from jprune._jaxpr._matrix import MatrixForm
from jprune._tree import path_keys
from jprune._typing import Mask, PyTree
from jprune.compress._capture import scoped_paths, site_name
from jprune.compress._stages import Stages

Solve = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From W [K, M] and X^T X [K, K] to new weights and their mask."""


class Calibrated(NamedTuple):
    r"""The result of `wanda` and `sparse_gpt`.

    Attributes:
      params: the parameters, pruned.
      mask: True = kept; a 0-d True where nothing was pruned.
      error: by name of each layer $\Vert X (W - W') \Vert^2 / \Vert X W \Vert^2$, on
        its inputs behind the layers pruned before it.
    """

    params: PyTree
    mask: Mask
    error: dict[str, float]

    def __repr__(self) -> str:
        """The layers and the largest error; the arrays are in the fields."""
        return (
            f"<Calibrated: {len(self.error)} layers pruned, largest error "
            f"{max(self.error.values(), default=0.0):.2g}: .params, .mask, .error>"
        )


def wanda(
    fn: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Any],
    *,
    sparsity: float | None = None,
    n: int | None = None,
    m: int | None = None,
    scope: Any = None,
    samples: int | None = None,
    key: jax.Array | None = None,
) -> Calibrated:
    r"""Keeps of each output the weights of largest $|w| \cdot \Vert x \Vert$.

    Args:
      fn: `fn(params, *args)`, any function of any pytree, in eval mode.
      params: the parameters.
      batches: calibration data, all of one shape; each the tuple of `args`, or the one
        argument. The values between two layers are kept for all of them.
      sparsity: share to remove of the weights of each output.
      n: kept of every `m` inputs in a row, instead.
      m: see `n`. Of several summed axes (heads times head dimension; taps times
        channels) groups lie on the last.
      scope: which parameters; None for those of `masks.prunable` that one contraction
        reads. Leave the output layer out, as the papers do.
      samples: positions of a convolution, see `capture`.
      key: for the positions.

    Returns:
      A `Calibrated`.

    Raises:
      ValueError: neither or both of `sparsity` and `n`, `m`; inputs that `m` does not
        divide; values that are not finite; what `capture` raises.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import compress
      >>> p, x = {"w": jnp.array([[1.0], [2.0]])}, jnp.array([[3.0, 1.0]])
      >>> found = compress.wanda(lambda p, x: x @ p["w"], p, [x], sparsity=0.5)
      >>> found.params["w"].tolist()
      [[1.0], [0.0]]

    References:
      Sun et al., arXiv 2306.11695, eq. (1) and section 3.
    """
    _require_one(sparsity, n, m)

    def solve(w: np.ndarray, gram: np.ndarray) -> tuple:
        score = np.abs(w) * np.sqrt(np.maximum(np.diag(gram), 0))[:, None]
        if n is not None and m is not None:
            keep = _best_of(score, n, m)
        else:
            assert sparsity is not None
            keep = _largest_columns(score, len(w) - _removed(len(w), sparsity))
        return np.where(keep, w, 0), keep

    return _calibrate(fn, params, batches, solve, m, scope, samples, key)


def sparse_gpt(
    fn: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Any],
    *,
    sparsity: float | None = None,
    n: int | None = None,
    m: int | None = None,
    block: int = 128,
    damping: float = 0.01,
    scope: Any = None,
    samples: int | None = None,
    key: jax.Array | None = None,
) -> Calibrated:
    """Removes weights and mends those behind them, by the inputs' Gram matrix.

    Args:
      fn: see `wanda`, also for `params`, `batches`, `n`, `m`, `scope`, `samples`,
        `key`.
      params: the parameters.
      batches: calibration data.
      sparsity: share to remove of each layer, exactly floor(s n + 1/2) of n.
      n: kept of every `m` inputs in a row, instead.
      m: see `n`.
      block: inputs for which what goes is decided at once.
      damping: added to the diagonal of the Gram matrix, relative to its mean.
      scope: which parameters.
      samples: positions of a convolution.
      key: for the positions.

    Returns:
      A `Calibrated`.

    Raises:
      ValueError: as `wanda`; `block` not a positive multiple of `m`, `damping` not
        positive.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import compress
      >>> p = {"w": jnp.array([[1.0], [2.0]])}
      >>> x = jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
      >>> found = compress.sparse_gpt(
      ...     lambda p, x: x @ p["w"], p, [x], sparsity=0.5, damping=1e-9)
      >>> found.params["w"].round(4).tolist()
      [[0.0], [2.5]]

    References:
      Frantar, Alistarh, arXiv 2301.00774, algorithm 1; block and damping of the
      authors' code.
    """
    _require_one(sparsity, n, m)
    if block < 1 or (m is not None and block % m) or damping <= 0:
        raise value_error(
            f"`block` must be positive and a multiple of `m`={m}, `damping` positive; "
            f"got {block} and {damping}."
        )

    def solve(w: np.ndarray, gram: np.ndarray) -> tuple:
        return mended(w, gram, sparsity, n, m, block, damping)

    return _calibrate(fn, params, batches, solve, m, scope, samples, key)


def mended(
    w: np.ndarray,
    gram: np.ndarray,
    sparsity: float | None,
    n: int | None,
    m: int | None,
    block: int,
    damping: float,
) -> tuple[np.ndarray, np.ndarray]:
    """SparseGPT of one matrix.

    Args:
      w: [K, M] float64.
      gram: X^T X, [K, K].
      sparsity: share to remove, or None for N:M.
      n: kept of `m`.
      m: inputs in a row.
      block: see `sparse_gpt`.
      damping: see `sparse_gpt`.

    Returns:
      New weights and their mask, [K, M].
    """
    w, keep = w.copy(), np.ones(w.shape, bool)
    dead = np.diag(gram) <= 0
    w[dead] = 0
    hessian = gram + np.diag(np.where(dead, 1.0, 0.0))
    hessian += damping * np.mean(np.diag(hessian)) * np.eye(len(w))
    factor = np.linalg.cholesky(np.linalg.inv(hessian)).T  # upper
    gone = 0
    for start in range(0, len(w), block):
        stop = min(start + block, len(w))
        scale = np.diag(factor)[start:stop, None]
        if sparsity is not None:
            total = _removed(w[:stop].size, sparsity)
            loss = (w[start:stop] / scale) ** 2
            keep[start:stop] = _all_but_smallest(loss, total - gone)
            gone = total
        errors = np.zeros((stop - start, w.shape[1]))
        for j in range(start, stop):
            if n is not None and m is not None and (j - start) % m == 0:
                loss = (w[j : j + m] / np.diag(factor)[j : j + m, None]) ** 2
                keep[j : j + m] = _best_of(loss, n, m)
            kept = np.where(keep[j], w[j], 0)
            errors[j - start] = (w[j] - kept) / factor[j, j]
            w[j + 1 : stop] -= np.outer(factor[j, j + 1 : stop], errors[j - start])
            w[j] = kept
        w[stop:] -= factor[start:stop, stop:].T @ errors
    return w, keep


def _calibrate(
    fn: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Any],
    solve: Solve,
    m: int | None,
    scope: Any,
    samples: int | None,
    key: jax.Array | None,
) -> Calibrated:
    """One pass in which each layer is solved on its inputs."""
    key = jax.random.key(0) if key is None else key
    wanted = scoped_paths(scope, params)
    stages = Stages(fn, params, batches, wanted, named=scope is not None, targets=False)
    kept: dict[Any, Any] = {}
    errors: dict[str, float] = {}
    for number, form in enumerate(stages):
        last = form.sizes(1)[-1]
        if m is not None and last % m:
            raise value_error(
                f"`m`={m} does not divide the {last} inputs of {site_name(form)}: "
                "leave it out of `scope`."
            )
        sums = stages.sums(form, None, samples, jax.random.fold_in(key, number))
        if not sums["gram"].any():
            raise value_error(
                f"`batches` must show what {site_name(form)} reads: it is 0 in every "
                "example, so that nothing tells its inputs apart. Give other examples; "
                "if the layers before are dead, leave it out of `scope`."
            )
        weights = stages.weights(form)
        pairs = [solve(w, gram) for w, gram in zip(weights, sums["gram"], strict=True)]
        new, keep = (np.stack(part) for part in zip(*pairs, strict=True))
        stages.replace(form, new)
        errors[site_name(form)] = _error(sums["gram"], weights, new)
        _note(kept, stages, form, keep)
    mask = jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(kept.get(path_keys(path), True)), params
    )
    return Calibrated(stages.variables({}), mask, errors)


def _note(kept: dict, stages: Stages, form: MatrixForm, keep: np.ndarray) -> None:
    """Puts the mask of one layer into that of its parameter."""
    like = jax.ShapeDtypeStruct(form.param_shape, np.dtype(bool))
    layer = form.as_param(form.operand(keep), like)
    shape = np.shape(stages.leaves[form.path])
    whole = kept.setdefault(form.path, np.ones(shape, bool))
    index: list[Any] = [slice(None)] * len(shape)
    for axis, position in form.site.origin.at:
        index[axis] = position
    whole[tuple(index)] = layer


def _error(gram: np.ndarray, old: np.ndarray, new: np.ndarray) -> float:
    def energy(w: np.ndarray) -> float:
        return float(np.einsum("gkm,gkl,glm->", w, gram, w, optimize=True))

    return energy(old - new) / max(energy(old), 1e-30)


def _removed(count: int, sparsity: float) -> int:
    return count - masks.kept_count(count, sparsity)


def _all_but_smallest(score: np.ndarray, remove: int) -> np.ndarray:
    keep = np.ones(score.size, bool)
    keep[np.argsort(score.ravel(), kind="stable")[:remove]] = False
    return keep.reshape(score.shape)


def _largest_columns(score: np.ndarray, keep: int) -> np.ndarray:
    """The `keep` largest of each column; of equal ones the first."""
    rank = np.argsort(np.argsort(-score, axis=0, kind="stable"), axis=0)
    return rank < keep


def _best_of(score: np.ndarray, n: int, m: int) -> np.ndarray:
    """The n largest of every m rows, for each column."""
    tiles = score.reshape(-1, m, score.shape[1])
    rank = np.argsort(np.argsort(-tiles, axis=1, kind="stable"), axis=1)
    return (rank < n).reshape(score.shape)


def _require_one(sparsity: float | None, n: int | None, m: int | None) -> None:
    if (n is None) != (m is None) or (sparsity is None) == (n is None):
        raise value_error(f"Give `sparsity`, or `n` and `m`; got {sparsity}, {n}, {m}.")
    if sparsity is not None and not 0 <= sparsity < 1:
        raise value_error(f"`sparsity` must be in [0, 1), got {sparsity}.")
    if n is not None and m is not None and not 0 < n < m:
        raise value_error(f"`n` must be from 1 to m - 1, got {n} of {m}.")
