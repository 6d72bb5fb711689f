"""Arrays in files, by path: `.npz`, `.npy`, folders of `.npy`, safetensors, Orbax.

Nothing is unpickled, and nothing is allocated that the file does not hold. Whatever is
wrong with a file is a ValueError that names it.
"""

import itertools
import json
import math
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._errors import type_error, value_error

Arrays = dict[str, np.ndarray]

_SAFE = {
    "BOOL": np.bool_,
    "I8": np.int8,
    "U8": np.uint8,
    "I16": np.int16,
    "U16": np.uint16,
    "I32": np.int32,
    "U32": np.uint32,
    "I64": np.int64,
    "U64": np.uint64,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
}
"""Data types of the safetensors format, by its names."""

_HEADER_LIMIT = 100_000_000
"""Bytes; the format's own limit."""


def read_arrays(name: str) -> Arrays:
    """The arrays of a file or folder, by path.

    Args:
      name: an `.npz` archive (keys are paths), an `.npy` file, a `.safetensors` file, a
        folder of `.npy` files, or an Orbax checkpoint (of a manager: its last step).

    Raises:
      ValueError: if it is not there, damaged, or holds no array; names it.
      TypeError: if a leaf lost its data type.
    """
    file = Path(name)
    readers = {".npz": _npz, ".npy": _npy, ".safetensors": read_safetensors}
    if not file.is_dir() and file.suffix not in readers:
        raise value_error(
            f"{name!r} must be an .npz archive, an .npy or .safetensors file, a folder "
            "of .npy files or an Orbax checkpoint; `jprune report --help` shows how to "
            "write one from any pytree."
        )
    if not file.exists():
        raise value_error(f"There is no file {name!r}.")
    with _naming(name):
        found = _folder(file) if file.is_dir() else readers[file.suffix](file)
    if not found:
        raise value_error(f"{name!r} holds no array.")
    return {path: _typed(name, path, array) for path, array in found.items()}


def read_safetensors(file: Path) -> Arrays:
    """The arrays of a safetensors file: a JSON header, then their bytes."""
    return dict(SafeFile(file))


class SafeFile(Mapping[str, np.ndarray]):
    """The arrays of a safetensors file, each read when it is asked for.

    Attributes:
      metadata: the text beside the arrays.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        with file.open("rb") as opened:
            size = file.stat().st_size
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > min(size - 8, _HEADER_LIMIT):
                raise ValueError(f"its header claims {length:,} bytes of {size:,}")
            self._entries = _header(opened.read(length))
        self._begin, self._room = 8 + length, size - 8 - length
        self.metadata: dict[str, str] = self._entries.pop("__metadata__", {})
        _require_apart(self._entries)

    def __getitem__(self, path: str) -> np.ndarray:
        entry = self._entries[path]
        with self._file.open("rb") as opened:
            return _safe_array(opened, self._begin, self._room, path, entry)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _header(text: bytes) -> dict[str, Any]:
    """The entries by path; of two with one path neither is the right one."""
    found = json.loads(text, object_pairs_hook=_once)
    if not isinstance(found, dict):
        raise ValueError(f"its header must be an object, got a {type(found).__name__}")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {max(names, key=names.count)!r} twice")
    return found


def _require_apart(entries: Mapping[str, Any]) -> None:
    """Raises if two arrays claim the same bytes: a header that was damaged."""
    spans = sorted((*entry["data_offsets"], path) for path, entry in entries.items())
    for (_, last, one), (first, end, other) in itertools.pairwise(spans):
        if first < last and first < end:
            raise ValueError(f"leaves {one} and {other} claim the same bytes")


def write_safetensors(
    file: Path, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes arrays by path, with text beside them; the inverse of the reader.

    Each array is asked for once, in the order of the paths, and may be gone after.

    Raises:
      TypeError: for a data type that the format does not have.
    """
    names = {np.dtype(kind): name for name, kind in _SAFE.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    paths = sorted(arrays)
    room = len(json.dumps(header)) + sum(len(json.dumps(p)) + 512 for p in paths)
    room += -room % 8  # readers map the arrays: they are aligned
    beside = file.with_name(f".{file.name}.part")
    try:
        with beside.open("wb") as opened:
            opened.seek(8 + room)
            for path in paths:
                header[path] = _append(opened, 8 + room, names, path, arrays[path])
            text = json.dumps(header).encode()
            opened.seek(0)
            opened.write(struct.pack("<Q", room) + text.ljust(room))
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)


def _append(
    opened: IO[bytes], begin: int, names: Mapping[Any, str], path: str, array: Any
) -> dict[str, Any]:
    """Writes one array; returns its entry in the header."""
    array = np.asarray(array)
    if array.dtype not in names:
        raise type_error(
            f"leaf {path}: safetensors has no type for {array.dtype}. Cast it."
        )
    start = opened.tell() - begin
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    opened.write(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)
    return {
        "dtype": names[array.dtype],
        "shape": list(array.shape),
        "data_offsets": [start, opened.tell() - begin],
    }


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their paths, parts joined by "/"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Whatever a reader makes of a damaged file is a ValueError that names it."""
    try:
        yield
    except Exception as error:
        raise value_error(
            f"{name!r} cannot be read: {type(error).__name__}: {error}"
        ) from error


def _safe_array(
    opened: IO[bytes], begin: int, room: int, path: str, entry: Any
) -> np.ndarray:
    if entry["dtype"] not in _SAFE:
        raise ValueError(f"leaf {path} has the data type {entry['dtype']}, not known")
    dtype, shape = np.dtype(_SAFE[entry["dtype"]]), tuple(entry["shape"])
    first, last = entry["data_offsets"]
    if not 0 <= first <= last <= room or last - first != _bytes(shape, dtype):
        raise ValueError(f"leaf {path} claims bytes that are not its own")
    opened.seek(begin + first)
    return np.frombuffer(opened.read(last - first), dtype).reshape(shape)


def _npz(file: Path) -> Arrays:
    with zipfile.ZipFile(file) as archive:
        found = {}
        for info in archive.infolist():
            if info.filename.endswith(".npy"):
                with archive.open(info) as opened:
                    array = _read_npy(opened, info.file_size)
                path = info.filename.removesuffix(".npy")
                if path in found:
                    raise ValueError(f"it names {path!r} twice")
                found[path] = array
        return found


def _npy(file: Path) -> Arrays:
    with file.open("rb") as opened:
        return {file.stem: _read_npy(opened, file.stat().st_size)}


def _read_npy(opened: IO[bytes], size: int) -> np.ndarray:
    """One array, once its header claims no more than there is."""
    form = np.lib.format
    version = form.read_magic(opened)
    read = form.read_array_header_1_0 if version == (1, 0) else None
    read = form.read_array_header_2_0 if version == (2, 0) else read
    if read:
        shape, _, dtype = read(opened)
        if not dtype.hasobject and _bytes(shape, dtype) > size:
            raise ValueError(f"its header claims {_bytes(shape, dtype):,} bytes")
    opened.seek(0)
    return form.read_array(opened, allow_pickle=False)


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _folder(folder: Path) -> Arrays:
    checkpoint = _orbax_tree(folder)
    if checkpoint is not None:
        return _orbax(checkpoint)
    whole = folder / "weights.safetensors"  # what `jprune shrink` leaves
    if whole.exists():
        return read_safetensors(whole)
    return {
        part.relative_to(folder).with_suffix("").as_posix(): _npy(part)[part.stem]
        for part in sorted(folder.rglob("*.npy"))
    }


def _orbax_tree(folder: Path) -> Path | None:
    """The folder of an Orbax pytree in or under this one; None if there is none."""
    if (folder / "_METADATA").exists():
        return folder
    inside = [part for part in folder.iterdir() if part.is_dir()]
    items = [part for part in inside if (part / "_METADATA").exists()]
    if len(items) > 1:
        names = ", ".join(sorted(part.name for part in items))
        raise ValueError(f"it holds several trees, name one of them: {names}")
    if items:
        return items[0]
    steps = [part for part in inside if part.name.isdigit()]
    return _orbax_tree(max(steps, key=lambda part: int(part.name))) if steps else None


def _orbax(folder: Path) -> Arrays:
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ValueError("an Orbax checkpoint needs orbax-checkpoint") from error
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(handler) as reader:
        meta = reader.metadata(folder.absolute())
        meta = getattr(meta, "item_metadata", meta)  # older ones give the tree itself
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), meta)
        tree = reader.restore(folder.absolute(), restore_args=args)
    return {path: np.asarray(leaf) for path, leaf in by_path(tree).items()}


def _typed(name: str, path: str, array: np.ndarray) -> np.ndarray:
    """The array with its data type; NumPy writes bfloat16 as two untyped bytes."""
    if array.dtype.type is not np.void:
        return array
    if array.dtype.itemsize == 2 and array.dtype.names is None:
        return array.view(jnp.bfloat16)
    raise type_error(
        f"{name!r}: leaf {path} has the data type {array.dtype}, which NumPy did not "
        "keep. Save it as float32."
    )
