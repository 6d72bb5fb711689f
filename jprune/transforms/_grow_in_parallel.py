r"""Scheduled grow-and-prune, parallel (P-GaP): all parts at once, on a worker each.

The sparse network is copied to $\kappa$ workers. Worker i grows part i to dense and
trains; then each part is taken from the worker that grew it, and the whole is pruned.

$$ W_l \leftarrow W^{(i)}_l \ (l \in P_i), \qquad
   M_l \leftarrow \mathrm{top}_{n_l - \lfloor s_l n_l + 1/2 \rfloor} |W_l| . $$

One round takes the time of one step of the cyclic form. Every parameter is combined so,
biases and norms with their module, as in the authors' code; batch statistics may be
leaves of the tree too, and go with their module [inferred]: recalibrate them then.

Ma et al., ICLR 2022 (arXiv 2106.09857).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jprune import masks
from jprune._errors import value_error
from jprune._typing import Mask, Params, PyTree
from jprune.transforms._build import seeded
from jprune.transforms._grow_and_prune import Growth
from jprune.transforms._partitions import Partitions

Train = Callable[[Params, Mask, Any, Any], Params]


def grow_in_parallel(
    train: Train,
    params: Params,
    sparsity: Any,
    *,
    partitions: Partitions,
    rounds: int,
    workers: Literal["vmap", "loop"] = "vmap",
    scope: Any = None,
    min_keep: int = 1,
    stacked: Any = None,
    key: jax.Array | int = 0,
) -> tuple[Params, Mask]:
    """P-GaP from random masks: the driver around a worker's training.

    Args:
      train: `(params, mask, worker, round) -> params`, one worker's E epochs with a
        fresh optimizer that ends in `keep_masked(mask)`. For "vmap" it must be a pure
        function of arrays; the numbers tell which data to take.
      params: the network before training; it need not be sparse.
      sparsity: see `grow_and_prune`.
      partitions: see `grow_and_prune`; as many workers as parts.
      rounds: how often; 8 of 30 epochs for the paper's ResNet-50, then 150 of
        fine-tuning [recalled].
      workers: "vmap": all at once along a new first axis, which may be sharded; "loop":
        one after the other, for a `train` that is not traceable.
      scope: see `masks.unstructured`.
      min_keep: the fewest weights any leaf keeps.
      stacked: see `masks.unstructured`.
      key: a PRNG key or a seed, for the first masks.

    Returns:
      The parameters, sparse, and their mask: fine-tune them with `keep_masked(mask)`.

    Raises:
      ValueError: no round, an unknown `workers`, or as `grow_and_prune` from `init`.

    References:
      Ma et al., arXiv 2106.09857, figure 4.
    """
    if rounds < 1:
        raise value_error(f"`rounds` must be at least 1, got {rounds}.")
    if workers not in ("vmap", "loop"):
        raise value_error(f"`workers` must be 'vmap' or 'loop', got {workers!r}.")
    plan = Growth.of(params, sparsity, partitions, scope, min_keep, stacked)
    mask = plan.start(seeded(key), params)
    params = masks.apply(mask, params)
    for number in range(rounds):
        grown = [plan.grown(mask, i) for i in range(plan.parts)]
        run = _at_once if workers == "vmap" else _in_turn
        trained = run(train, params, grown, number)
        params = combine_grown(trained, plan.partition)
        mask, _ = plan.pruned(params, None)
        params = masks.apply(mask, params)
    return params, mask


def combine_grown(trained: Sequence[Params], partition: PyTree) -> Params:
    """Each leaf from the worker that grew its part.

    Args:
      trained: the parameters of worker 0, 1, ...
      partition: the part of each leaf, a tree of ints; see `split_by_path`.

    Returns:
      Parameters, not yet pruned.

    Raises:
      ValueError: no worker for some part.

    Examples:
      >>> import jax.numpy as jnp
      >>> one, two = ({"a": x * jnp.ones(2), "b": x * jnp.ones(2)} for x in (1, 2))
      >>> combine_grown([one, two], {"a": 0, "b": 1})
      {'a': Array([1., 1.], dtype=float32), 'b': Array([2., 2.], dtype=float32)}
    """
    needed = 1 + max(jax.tree.leaves(partition), default=-1)
    if len(trained) < needed:
        raise value_error(
            f"`trained` must have the parameters of {needed} workers, one for each "
            f"part, got {len(trained)}."
        )
    return jax.tree.map(lambda i, *leaves: leaves[i], partition, *trained)


def _at_once(
    train: Train, params: Params, grown: list[Mask], number: int
) -> list[Params]:
    count = len(grown)
    stacked = jax.tree.map(lambda *ms: jnp.stack(ms), *grown)  # [workers, ...]
    many = jax.vmap(train, in_axes=(None, 0, 0, None))(
        params, stacked, jnp.arange(count), number
    )
    return [jax.tree.map(lambda x, i=i: x[i], many) for i in range(count)]


def _in_turn(
    train: Train, params: Params, grown: list[Mask], number: int
) -> list[Params]:
    return [train(params, mask, i, number) for i, mask in enumerate(grown)]
