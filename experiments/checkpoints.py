"""Exact resume: the whole training state of each run, through Orbax.

Every run of a job has its own folder. Resuming replays the job: a run that was finished
returns its last state at once, the one that was cut off goes on from its last
checkpoint, the rest start. With the order of an epoch a function of the seed, the
result is the unbroken one, bit for bit on CPU.
"""

from pathlib import Path
from typing import Any

import jax


class Checkpoints:
    """The checkpoints of one run; saves and restores (epoch, state, seconds).

    Args:
      folder: of this run.
      resume: whether to look for what is there.
      every: epochs between saves; 0 for the end only.
    """

    def __init__(self, folder: Path, *, resume: bool, every: int):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._resume = resume
        self._every = every
        options = ocp.CheckpointManagerOptions(max_to_keep=1)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def restore(self, state: Any) -> tuple[int, Any, float] | None:
        """The last (epochs done, state, seconds), shaped and sharded as `state`."""
        epoch = self._manager.latest_step() if self._resume else None
        if epoch is None:
            return None
        like = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, state)
        args = self._ocp.args.Composite(
            state=self._ocp.args.StandardRestore(like),
            meta=self._ocp.args.JsonRestore(),
        )
        found = self._manager.restore(epoch, args=args)
        return epoch, found["state"], found["meta"]["seconds"]

    def due(self, epoch: int, last: int) -> bool:
        """Whether to save after this many epochs of `last`."""
        return epoch == last or bool(self._every and epoch % self._every == 0)

    def save(self, epoch: int, state: Any, seconds: float) -> None:
        """Writes in the background; `state` is copied first."""
        args = self._ocp.args.Composite(
            state=self._ocp.args.StandardSave(state),
            meta=self._ocp.args.JsonSave({"seconds": seconds}),
        )
        self._manager.save(epoch, args=args)

    def close(self) -> None:
        """Waits for what is still being written."""
        self._manager.close()
