r"""Which inputs of a product rebuild its output best: LASSO on one number for each.

The output of Y = X W is a sum of one contribution for each channel, $Z_i = X_i W_i$.
The LASSO

$$ \min_\beta \tfrac{1}{2M} \Vert Y - \sum_i \beta_i Z_i \Vert^2
   + \alpha \Vert \beta \Vert_1 $$

over M entries drops the channels whose $\beta_i$ is 0. Only $A_{ij} = Z_i \cdot Z_j$
and $b_i = Z_i \cdot Y$ enter, and these follow from the Gram matrices of X and Y.

He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017
(arXiv 1707.06168), section 3.
"""

from typing import NamedTuple

import numpy as np


class Selection(NamedTuple):
    """What the search found.

    Attributes:
      keep: [c] bool, exactly as many True as asked for.
      alpha: the penalty.
      beta: [c] the solution there.
    """

    keep: np.ndarray
    alpha: float
    beta: np.ndarray


def normal_form(
    gram: np.ndarray,
    cross: np.ndarray,
    weights: np.ndarray,
    channels: np.ndarray,
    count: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The LASSO's A and b from the Gram matrices of a product.

    Args:
      gram: X^T X, [G, K, K].
      cross: X^T Y, [G, K, M].
      weights: W, [G, K, M].
      channels: for each of the K inputs its channel, or -1 if it takes no part and
        stays; their contribution is subtracted from Y.
      count: c, the number of channels.

    Returns:
      A [c, c] and b [c], not divided by the number of entries.
    """
    products = (gram * np.einsum("gkm,glm->gkl", weights, weights)).sum(0)
    inside = channels >= 0
    spread = (channels[:, None] == np.arange(count)).astype(float)
    towards = np.einsum("gkm,gkm->k", cross, weights) - products[:, ~inside].sum(1)
    return spread.T @ products @ spread, spread.T @ towards


def lasso(
    a: np.ndarray,
    b: np.ndarray,
    alpha: float,
    start: np.ndarray | None = None,
    tolerance: float = 1e-12,
    sweeps: int = 2000,
) -> np.ndarray:
    """Coordinate descent for min beta A beta / 2 - b beta + alpha |beta|_1.

    Between two sweeps over all channels only those that are not 0 are visited.

    Args:
      a: [c, c] positive semi-definite.
      b: [c].
      alpha: the penalty.
      start: where to begin; zeros by default.
      tolerance: largest step at the end, relative to the largest |beta|.
      sweeps: at most.
    """
    beta = np.zeros(len(b)) if start is None else np.array(start, float)
    gradient = b - a @ beta
    everything, visit = np.arange(len(b)), None
    diagonal = np.diag(a)
    for _ in range(sweeps):
        moved = 0.0
        for i in everything if visit is None else visit:
            if diagonal[i] <= 0:
                beta[i] = 0.0
                continue
            rho = gradient[i] + diagonal[i] * beta[i]
            new = np.sign(rho) * max(abs(rho) - alpha, 0.0) / diagonal[i]
            if new != beta[i]:
                gradient -= a[i] * (new - beta[i])
                moved = max(moved, abs(new - beta[i]))
                beta[i] = new
        if moved <= tolerance * max(np.abs(beta).max(initial=0.0), 1e-30):
            if visit is None:
                break
            visit = None
        else:
            visit = np.flatnonzero(beta)
    return beta


def select_channels(
    a: np.ndarray, b: np.ndarray, keep: int, most: int = 60
) -> Selection:
    """The penalty at which `keep` channels are left, by bisection.

    If none is found (channels that go together), of the strongest penalty that leaves
    more the largest coefficients are kept; dead channels fill up a count that cannot be
    reached otherwise, by their agreement with the output.

    Args:
      a: see `lasso`.
      b: see `lasso`.
      keep: how many channels stay.
      most: solutions computed.
    """
    low, high = 0.0, float(np.abs(b).max(initial=0.0))
    beta = lasso(a, b, low, sweeps=200)
    best, alpha = beta, low
    for _ in range(most):
        if np.count_nonzero(best) <= keep:
            break
        middle = (low + high) / 2
        beta = lasso(a, b, middle, beta)
        if np.count_nonzero(beta) >= keep:
            low, best, alpha = middle, beta, middle
        else:
            high = middle
    order = np.lexsort((-np.abs(b), -np.abs(best)))
    kept = np.zeros(len(b), bool)
    kept[order[:keep]] = True
    return Selection(kept, alpha, best)


def least_squares(
    gram: np.ndarray,
    cross: np.ndarray,
    weights: np.ndarray,
    keep: np.ndarray,
    ridge: float = 1e-6,
) -> np.ndarray:
    """Weights on the kept inputs that rebuild Y best; zero on the others.

    The ridge pulls to the given weights, so that what the data do not determine stays
    as it was trained.

    Args:
      gram: X^T X, [G, K, K].
      cross: X^T Y, [G, K, M].
      weights: W, [G, K, M].
      keep: [K] bool.
      ridge: relative to the mean of the diagonal.
    """
    found = np.zeros_like(weights)
    for g in range(len(gram)):
        xx = gram[g][np.ix_(keep, keep)]
        old = weights[g][keep]
        damping = ridge * max(np.trace(xx) / max(len(xx), 1), 1e-30)
        system = xx + damping * np.eye(len(xx))
        found[g][keep] = old + np.linalg.solve(system, cross[g][keep] - xx @ old)
    return found


def squared_error(
    gram: np.ndarray, cross: np.ndarray, total: float, weights: np.ndarray
) -> float:
    """|Y - X W|^2 from the Gram matrices. `total` is |Y|^2."""
    fit = np.einsum("gkm,gkm->", cross, weights)
    own = np.einsum("gkm,gkl,glm->", weights, gram, weights)
    return float(max(total - 2 * fit + own, 0.0))
