"""Exact resume: the whole training state of each run, through Orbax.

Every run of a job has its own folder. Resuming replays the job: a run that was finished
returns its last state at once, the one that was cut off goes on from its last
checkpoint, the rest start. With the order of an epoch a function of the seed, the
result is the unbroken one, bit for bit on CPU.

Beside the state lie the names of its leaves and a digest of its bytes. A checkpoint
that can be read but does not give the digest back, because a bit of the disk turned, is
damaged: it is set aside under another name, and the one before is taken (two are kept).
So is one that cannot be read, a cut file, if one before it can. If none can, or one
holds another state, that is an error: the reason may pass, and whatever it is, nothing
is deleted.
"""

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written or read; names the folder."""


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

        logging.getLogger("absl").setLevel(logging.CRITICAL)  # what fails is raised
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

        Those behind it are set aside, as `STEP.damaged`: their steps come again.

        Raises:
          CheckpointError: if none can be read, or one holds another state; they stay.
        """
        steps = sorted(self._manager.all_steps(), reverse=True) if self._resume else []
        unread: list[tuple[int, Exception]] = []
        for step in steps:
            try:
                found = self._read(step, {"state": state, "totals": totals})
            except CheckpointError:
                raise
            except Exception as error:
                unread.append((step, error))
                if jax.process_count() > 1:  # the others may have read it
                    break
                continue
            if found is not None:
                for other, error in unread:
                    self._set_aside(other, f"could not be read ({_reason(error)})")
                return found
            self._set_aside(step, "is damaged")
        if unread:
            raise CheckpointError(self._unreadable(*unread[0])) from unread[0][1]
        return None

    def _read(self, step: int, like: dict[str, Any]) -> Saved | None:
        """The checkpoint; None if it is not what was written."""
        args = self._ocp.args
        meta = self._manager.restore(
            step, args=args.Composite(meta=args.JsonRestore())
        )["meta"]
        if "check" in meta and meta.pop("check") != _check(meta):
            return None
        self._require_same(step, meta.get("leaves"), like)
        shapes = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, like)
        tree = self._manager.restore(
            step, args=args.Composite(state=args.StandardRestore(shapes))
        )["state"]
        if digest(tree) != meta["digest"]:
            return None
        return Saved(step, tree["state"], tree["totals"], float(meta["seconds"]))

    def _require_same(self, step: int, saved: list[str] | None, like: Any) -> None:
        """Raises unless the leaves that were saved are those of `like`.

        Checkpoints of before `leaves` were written have none to compare.
        """
        now = [name for name, _ in _leaves(like)]
        if saved is None or sorted(saved) == sorted(now):
            return
        gone, new = sorted({*saved} - {*now}), sorted({*now} - {*saved})
        told = [f"it holds {name}" for name in gone[:1]]
        told += [f"now: {name}" for name in new[:1]]
        raise CheckpointError(
            f"the checkpoint {self._folder / str(step)} holds another state than this "
            f"program's, {len({*gone, *new})} leaves differ ({'; '.join(told)}). It "
            "stays as it is: resume with the version that wrote it, or train anew in "
            "another `--out`."
        )

    def _unreadable(self, step: int, error: BaseException) -> str:
        place = self._folder / str(step)
        return (
            f"the checkpoint {place} could not be read: {_reason(error)}. It stays as "
            "it is. If the reason has passed (open files, memory, a disk that was "
            f"away), `--resume` again; if not, move {place} elsewhere: `--resume` then "
            "goes on from the one before it, or from the start."
        )

    def _set_aside(self, step: int, why: str) -> None:
        """Renames a checkpoint that is of no use, and says so."""
        place = self._folder / str(step)
        names = itertools.chain([""], map(str, itertools.count(2)))
        aside = next(
            free
            for free in (place.with_name(f"{step}.damaged{n}") for n in names)
            if not free.exists()
        )
        if jax.process_count() > 1:
            self._ocp.multihost.sync_global_processes("all have read it")
        if jax.process_index() == 0:
            place.rename(aside)
        if jax.process_count() > 1:
            self._ocp.multihost.sync_global_processes("it is renamed")
        self._manager.reload()
        self._say(
            f"the checkpoint {place} {why} and is now called {aside.name}: going on "
            "from the one before it, or from the start."
        )

    def due(self, epoch: int, last: int) -> bool:
        """Whether to save after this many epochs of `last`."""
        return epoch == last or bool(self._every and epoch % self._every == 0)

    def save(self, saved: Saved) -> None:
        """Writes in the background; the state is copied first.

        Raises:
          CheckpointError: if nothing was saved.
        """
        tree = {"state": saved.state, "totals": saved.totals}
        meta = {
            "seconds": saved.seconds,
            "digest": digest(tree),
            "leaves": [name for name, _ in _leaves(tree)],
        }
        args = self._ocp.args.Composite(
            state=self._ocp.args.StandardSave(tree),
            meta=self._ocp.args.JsonSave({**meta, "check": _check(meta)}),
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
            raise CheckpointError(
                f"no checkpoint could be written to {self._folder}: "
                f"{_reason(error, -1)}. What was saved before stays; `--resume` goes "
                "on from there."
            ) from error


def _reason(error: BaseException, line: int = 0) -> str:
    """One line of what an error says, its type where it says nothing."""
    while error.__cause__ is not None:  # the reader says which array, the cause why
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[line][:300].rstrip(".")


def _check(meta: dict[str, Any]) -> str:
    """SHA-256 of what lies beside a state: a bit may turn there as well."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def digest(tree: Any) -> str:
    """SHA-256 over every leaf's path, type, shape and bytes."""
    found = hashlib.sha256()
    for name, array in _leaves(tree):
        found.update(name.encode())
        found.update(np.asarray(array).tobytes())
    return found.hexdigest()


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Every leaf with its path, type and shape in words; keys as their words."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype: Any = getattr(leaf, "dtype", None)
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        elif dtype is None:
            leaf = np.asarray(leaf)
        yield f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}", leaf
