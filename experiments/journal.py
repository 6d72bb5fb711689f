"""What a job says while it runs: JSON lines, a progress bar, TensorBoard if asked.

Only the first process writes. Without a terminal the bar is silent and one line is
printed for each finished row.
"""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from experiments.files import plain


class Journal:
    """The open log and bar of one job; a context manager."""

    def __init__(self, out: Path, *, resume: bool = False, tensorboard: bool = False):
        self._first = jax.process_index() == 0
        self._clock = time.perf_counter()
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description:14}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not (self._first and self._console.is_terminal),
        )
        self._task: TaskID | None = None
        self._file = None
        self._board = None
        if self._first:
            log = out / "log.jsonl"
            if resume and log.exists():
                _cut_torn_line(log)
            self._file = log.open("a" if resume else "w")
        if self._first and tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(out / "tensorboard"))

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        for sink in (self._file, self._board):
            if sink is not None:
                sink.close()

    @property
    def seconds(self) -> float:
        """Since the job began."""
        return time.perf_counter() - self._clock

    def begin(self, run: str, steps: int, done: int = 0) -> None:
        """A run of `steps` steps starts, `done` of them behind it."""
        self._task = self._bar.add_task(
            run, total=steps, completed=done, figures="compiling"
        )

    def record(self, run: str, entry: dict[str, Any]) -> None:
        """One epoch's numbers."""
        self.write({"run": run, **entry})
        if self._task is not None:
            self._bar.update(
                self._task, completed=entry["step"], figures=_figures(entry)
            )
        if self._board is not None:
            for name, value in entry.items():
                self._board.add_scalar(f"{run}/{name}", value, entry["step"])

    def end(self) -> None:
        """The run is over: its bar goes."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None

    def write(self, entry: dict[str, Any]) -> None:
        """One line of the log, with the time."""
        if self._file is not None:
            stamped = {**entry, "seconds": round(self.seconds, 2)}
            self._file.write(json.dumps(plain(stamped), allow_nan=False) + "\n")
            self._file.flush()

    def say(self, text: str) -> None:
        """A line for the reader, above the bar."""
        if self._first:
            self._bar.console.print(text, markup=False, highlight=False)


def _cut_torn_line(log: Path) -> None:
    """Takes away what stands behind the last whole line: a crash left it."""
    with log.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def _figures(entry: dict[str, Any]) -> str:
    """Loss, accuracy and sparsity of an epoch, for the bar."""
    return (
        f"loss {entry['loss']:.4f}  accuracy {100 * entry['test_accuracy']:.2f} %  "
        f"sparsity {100 * entry['sparsity']:.1f} %"
    )
