r"""How alike two channels are, from the parameters of their batch norms.

Behind a batch norm a channel is about Gaussian, $Y_j \sim N(\beta_j, \gamma_j^2)$. With
the correlation $\rho_{jk}$ of the normalized values the expected squared difference is

$$ D_{jk} = (\beta_j - \beta_k)^2 + \gamma_j^2 + \gamma_k^2
   - 2 \rho_{jk} \gamma_j \gamma_k , $$

and of what the next layer reads, max(Y, 0), it follows from the moments

$$ m_1 = \beta \Phi(a) + |\gamma| \varphi(a), \quad
   m_2 = (\beta^2 + \gamma^2) \Phi(a) + \beta |\gamma| \varphi(a), \quad
   a = \beta / |\gamma| , $$

and a cross moment, which is one integral. No data are needed.

In the spirit of Zhang et al., "Exploiting Channel Similarity for Accelerating Deep
Convolutional Neural Networks", 2019 (arXiv 1908.02620), of which the abstract alone
could be had: the metric here is ours.
"""

from typing import Any, Literal

import numpy as np
from scipy.cluster import hierarchy
from scipy.special import ndtr

from jprune._errors import value_error

Correlation = Literal["independent", "comonotone"]
Linkage = Literal["average", "complete", "single"]

_NODES = np.linspace(-8.0, 8.0, 1601)
_WEIGHTS = np.exp(-(_NODES**2) / 2) / np.exp(-(_NODES**2) / 2).sum()


def channel_distances(
    scale: Any,
    bias: Any,
    correlation: Correlation | Any = "independent",
    *,
    relu: bool = False,
    normalize: bool = False,
) -> np.ndarray:
    r"""Expected squared differences of channels behind a batch norm.

    Args:
      scale: $\gamma$, [c].
      bias: $\beta$, [c].
      correlation: "independent" ($\rho = 0$): small for two near-constants of one
        value, and not 0 for equal parameters; "comonotone" ($\rho$ of the sign that
        makes them rise together): 0 for equal parameters, however unlike the channels
        are; or $\rho$ itself, [c, c], of filters (`filter_correlation`) or data.
      relu: of max(Y, 0).
      normalize: divide by the mean second moment, so that layers compare.

    Returns:
      [c, c] float64, symmetric, 0 on the diagonal.

    Raises:
      ValueError: shapes that do not fit, or correlations outside of [-1, 1].

    Examples:
      >>> from jprune.compress._distances import channel_distances
      >>> channel_distances([1.0, 2.0], [0.0, 1.0])[0, 1].item()
      6.0
    """
    g, b = np.asarray(scale, np.float64), np.asarray(bias, np.float64)
    if g.ndim != 1 or g.shape != b.shape:
        raise value_error(
            f"`scale` and `bias` must be vectors of one length, got {g.shape} and "
            f"{b.shape}."
        )
    rho = _correlations(correlation, g)
    if relu:
        first, second = relu_moments(g, b)
        cross = _relu_cross(g, b, rho)
    else:
        first, second = b, b * b + g * g
        cross = np.outer(b, b) + rho * np.outer(g, g)
    if isinstance(correlation, str) and correlation == "independent":
        cross = np.outer(first, first)
    distance = np.maximum(second[:, None] + second[None] - 2 * cross, 0.0)
    np.fill_diagonal(distance, 0.0)
    if normalize:
        distance /= max(float(second.mean()), 1e-30)
    return (distance + distance.T) / 2


def relu_moments(scale: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E max(Y, 0) and E max(Y, 0)^2 of Gaussians."""
    g, b = np.abs(scale), bias
    a = np.divide(b, g, out=np.where(b > 0, np.inf, -np.inf), where=g > 0)
    density = np.where(g > 0, np.exp(-(np.minimum(np.abs(a), 40) ** 2) / 2), 0)
    density = density / np.sqrt(2 * np.pi)
    below = ndtr(a)
    return b * below + g * density, (b * b + g * g) * below + b * g * density


def filter_correlation(*kernels: tuple[Any, int]) -> np.ndarray:
    """Cosines of filters, [c, c]: their outputs' correlation for white inputs.

    Args:
      *kernels: (kernel, axis of the outputs); of several the mean.
    """
    total: Any = 0.0
    for kernel, axis in kernels:
        rows = np.moveaxis(np.asarray(kernel, np.float64), axis, 0)
        rows = rows.reshape(len(rows), -1)
        norm = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(norm > 0, norm, 1)
        total = total + rows @ rows.T
    return np.clip(total / len(kernels), -1, 1)


def cluster_by_distance(
    distances: np.ndarray,
    *,
    height: float | None = None,
    clusters: int | None = None,
    linkage: Linkage = "average",
) -> np.ndarray:
    """Agglomerative clusters of channels.

    Args:
      distances: [c, c], symmetric.
      height: two clusters merge up to this distance; or
      clusters: how many are left.
      linkage: distance of two clusters: the mean over pairs of members, the largest, or
        the smallest.

    Returns:
      [c] cluster numbers from 0, in the order of their first members.

    Raises:
      ValueError: not exactly one of `height` and `clusters`, or out of range.
    """
    count = len(distances)
    if (height is None) == (clusters is None):
        raise value_error("Give `height` or `clusters`, one of them.")
    if clusters is not None and not 1 <= clusters <= count:
        raise value_error(f"`clusters` must be from 1 to {count}, got {clusters}.")
    if count == 1:
        return np.zeros(1, int)
    upper = distances[np.triu_indices(count, 1)]
    tree = hierarchy.linkage(upper, linkage)
    if clusters is not None:
        raw = hierarchy.cut_tree(tree, n_clusters=clusters)[:, 0]
    else:
        raw = hierarchy.fcluster(tree, height, "distance")
    _, first, number = np.unique(raw, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    return order[number]


def _correlations(given: Any, g: np.ndarray) -> np.ndarray:
    if isinstance(given, str):
        if given == "independent":
            return np.eye(len(g))
        if given == "comonotone":
            sign = np.where(g < 0, -1.0, 1.0)
            return np.outer(sign, sign)
        raise value_error(
            '`correlation` must be "independent", "comonotone" or an array, got '
            f"{given!r}."
        )
    rho = np.asarray(given, np.float64)
    if rho.shape != (len(g), len(g)) or not (np.abs(rho) <= 1 + 1e-6).all():
        raise value_error(
            f"`correlation` must be [{len(g)}, {len(g)}] within [-1, 1], got shape "
            f"{rho.shape}."
        )
    return np.clip(rho, -1, 1)


def _relu_cross(g: np.ndarray, b: np.ndarray, rho: np.ndarray) -> np.ndarray:
    """E max(Y_j, 0) max(Y_k, 0): over z_j, of k's mean given z_j."""
    cross = np.zeros((len(g), len(g)))
    for j in range(len(g)):
        own = np.maximum(b[j] + g[j] * _NODES, 0) * _WEIGHTS
        mean = b[:, None] + (g * rho[j])[:, None] * _NODES
        spread = np.abs(g) * np.sqrt(np.maximum(1 - rho[j] ** 2, 0))
        first, _ = relu_moments(np.broadcast_to(spread[:, None], mean.shape), mean)
        cross[j] = first @ own
    return (cross + cross.T) / 2
