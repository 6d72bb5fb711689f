"""Files that are whole or not there: JSON written in one move, read with its name said.

A file is written beside its place and moved onto it, so a job that is killed, or a disk
that is full, leaves the old file. What is not a number (NaN, infinity) is written as
null: a file with them would be no JSON.
"""

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


class FileError(ValueError):
    """A file of a job that cannot be read, or a folder that cannot be used."""


def plain(value: Any) -> Any:
    """The value with null in place of every float that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    write_text(path, json.dumps(plain(value), indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all; the old one stays until then."""
    with replacing(path) as beside:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to; moved onto it if nothing was raised."""
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """The JSON object in a file; what is not a number (NaN, infinity) is null.

    Args:
      path: of the file.
      *keys: what it must hold.

    Raises:
      FileError: if it is no JSON object or lacks a key; names the file.
    """
    try:
        found = json.loads(
            path.read_text(encoding="utf-8"),
            parse_constant=lambda name: None,
            parse_float=_finite,
            parse_int=_count,
        )
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is damaged, no JSON: {error}") from error
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}.") from error
    if not isinstance(found, dict):
        raise FileError(f"{path} must hold an object, got a {type(found).__name__}.")
    missing = [key for key in keys if key not in found]
    if missing:
        raise FileError(f"{path} is damaged: it lacks {', '.join(missing)}.")
    return found


def _finite(text: str) -> float | None:
    """A number; null for one that no float holds."""
    return float(text) if math.isfinite(float(text)) else None


def _count(text: str) -> int:
    """A whole number of the size that files of a job hold."""
    if len(text) > 19:
        raise ValueError(f"{text[:19]}... is too large a number")
    return int(text)


LOCK = ".lock"
"""The file of a job's folder that the job holds while it runs."""


def hold(lock: IO[str], folder: Path) -> None:
    """Locks the open file until it is closed, or the process ends.

    Raises:
      FileError: if another job holds it, or it cannot be locked at all.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FileError(
            f"`--out {folder}`: another job is running there. Wait for its end, or "
            "name another folder."
        ) from error
    except OSError as error:
        raise FileError(
            f"`--out {folder}`: its file system keeps no locks ({error.strerror}), so "
            "that a second job could spoil this one. Name a folder on another disk."
        ) from error
