"""What a job says while it runs: JSON lines, a progress bar, TensorBoard if asked.

Only the first process writes. Without a terminal the bar is silent and one line is
printed for each finished row.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
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
        self._out, self._resume, self._tensorboard = out, resume, tensorboard
        self._earlier = 0.0
        self._file = None
        self._board = None

    def __enter__(self) -> Self:
        if self._first:
            log = self._out / "log.jsonl"
            if self._resume and log.exists():
                self._earlier = _cut_torn_line(log)
            self._file = log.open("a" if self._resume else "w")
        if self._first and self._tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(self._out / "tensorboard"))
        with self._heard():
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._heard():
            self._bar.stop()
        for sink in (self._file, self._board):
            with suppress(OSError) if error else nullcontext():  # that one is told
                if sink is not None:
                    sink.close()

    @property
    def seconds(self) -> float:
        """Since the job began, the time that it was away not counted."""
        return self._earlier + time.perf_counter() - self._clock

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
            numbers = {k: v for k, v in entry.items() if not isinstance(v, str)}
            for name, value in numbers.items():
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
            try:
                self._file.write(json.dumps(plain(stamped), allow_nan=False) + "\n")
                self._file.flush()
            except OSError as error:
                error.filename = self._file.name
                raise

    def say(self, text: str) -> None:
        """A line for the reader, above the bar."""
        if self._first:
            with self._heard():
                self._bar.console.print(text, markup=False, highlight=False)

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """What it says may go nowhere, when a pipe or terminal is closed: no error."""
        try:
            yield
        except (OSError, SystemExit):  # rich makes the latter of a broken pipe
            self._console.file = open(os.devnull, "w")  # noqa: SIM115


def _cut_torn_line(log: Path) -> float:
    """Takes away what a crash left behind the last whole line; the time in that."""
    with log.open("rb+") as file:
        text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        file.truncate(len(whole))
    try:
        return float(json.loads(whole.splitlines()[-1])["seconds"])
    except (IndexError, KeyError, TypeError, ValueError):
        return 0.0


def _figures(entry: dict[str, Any]) -> str:
    """Loss, accuracy and sparsity of an epoch, for the bar."""
    return (
        f"loss {entry['loss']:.4f}  accuracy {100 * entry['test_accuracy']:.2f} %  "
        f"sparsity {100 * entry['sparsity']:.1f} %"
    )
