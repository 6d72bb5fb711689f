"""Exact resume: the whole training state of each run, through Orbax.

Every run of a job has its own folder. Resuming replays the job: a run that was finished
returns its last state at once, the one that was cut off goes on from its last
checkpoint, the rest start. With the order of an epoch a function of the seed, the
result is the unbroken one, bit for bit on CPU.

Beside the state lies a digest of its bytes. A checkpoint that does not give it back,
because a bit of the disk turned, is said to be damaged, and the one before is taken:
two are kept.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written; names the folder."""


class Saved(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      step: steps done.
      state: of the training.
      totals: sums over the epoch that is not yet over.
      seconds: wall time so far.
    """

    step: int
    state: Any
    totals: Any
    seconds: float


class Checkpoints:
    """The checkpoints of one run; a context manager.

    Args:
      folder: of this run.
      resume: whether to look for what is there.
      every: epochs between saves; 0 for the end only.
      say: told when a damaged checkpoint is passed over.
    """

    def __init__(
        self,
        folder: Path,
        *,
        resume: bool,
        every: int,
        say: Callable[[str], None] = print,
    ):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._folder = folder
        self._resume = resume
        self._every = every
        self._say = say
        options = ocp.CheckpointManagerOptions(max_to_keep=2)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except CheckpointError:
            pass  # the first error is the one to tell

    def restore(self, state: Any, totals: Any) -> Saved | None:
        """The last checkpoint that is whole, shaped and sharded as what is given.

        Those behind it are deleted: they are damaged, and their steps come again.
        """
        steps = sorted(self._manager.all_steps(), reverse=True) if self._resume else []
        for step in steps:
            found = self._read(step, {"state": state, "totals": totals})
            if found is not None:
                return found
            self._say(
                f"the checkpoint {self._folder / str(step)} is damaged: going on from "
                "the one before it, or from the start."
            )
            self._manager.delete(step)
        return None

    def _read(self, step: int, like: dict[str, Any]) -> Saved | None:
        shapes = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, like)
        args = self._ocp.args.Composite(
            state=self._ocp.args.StandardRestore(shapes),
            meta=self._ocp.args.JsonRestore(),
        )
        try:
            found = self._manager.restore(step, args=args)
            tree, meta = found["state"], found["meta"]
            seconds, wanted = float(meta["seconds"]), meta["digest"]
        except Exception:  # whatever a damaged file makes of its reader
            return None
        if digest(tree) != wanted:
            return None
        return Saved(step, tree["state"], tree["totals"], seconds)

    def due(self, epoch: int, last: int) -> bool:
        """Whether to save after this many epochs of `last`."""
        return epoch == last or bool(self._every and epoch % self._every == 0)

    def save(self, saved: Saved) -> None:
        """Writes in the background; the state is copied first.

        Raises:
          CheckpointError: if nothing was saved.
        """
        tree = {"state": saved.state, "totals": saved.totals}
        args = self._ocp.args.Composite(
            state=self._ocp.args.StandardSave(tree),
            meta=self._ocp.args.JsonSave(
                {"seconds": saved.seconds, "digest": digest(tree)}
            ),
        )
        if not self._told(lambda: self._manager.save(saved.step, args=args)):
            raise CheckpointError(
                f"step {saved.step} was not saved in {self._folder}: there is one "
                "already, of another run or of an earlier job."
            )

    def close(self) -> None:
        """Waits for what is still being written.

        Raises:
          CheckpointError: if it could not be.
        """
        self._told(self._manager.close)

    def _told(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckpointError(
                f"no checkpoint could be written to {self._folder}: {reason[-1]}. What "
                "was saved before stays; `--resume` goes on from there."
            ) from error


def digest(tree: Any) -> str:
    """SHA-256 over every leaf's path, type, shape and bytes."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype: Any = getattr(leaf, "dtype", None)
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        name = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}"
        found.update(name.encode())
        found.update(array.tobytes())
    return found.hexdigest()
