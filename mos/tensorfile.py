"""The container of every artifact: a strict reader and a canonical writer of safetensors files.

The safetensors library accepts duplicate JSON keys, a hundred thousand empty tensors, metadata of any size
and any tensor name. This reader parses the header itself, before any library sees the file, and accepts
only what :func:`header_bytes` would have written: one byte form for one content, no room for anything else.
"""

import hashlib
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mos.errors import BadInputError, NotFoundError

_ITEM_SIZES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
_LARGEST_SIDE = 1 << 31


class ArtifactError(BadInputError):
    """Raised when an artifact file is malformed or does not fit its base."""


@dataclass(frozen=True, kw_only=True)
class FileLimits:
    """How much a file may ask of its reader, in bytes and counts."""

    header_bytes: int = 1 << 20
    metadata_bytes: int = 64 << 10
    num_tensors: int = 2000
    file_bytes: int = 512 << 20


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor as the header describes it; ``start`` and ``stop`` count from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class TensorFileHeader:
    """A checked header: metadata, tensors by name, and where the data begins in the file."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorEntry]
    data_offset: int


def read_header(path: Path, limits: FileLimits = FileLimits()) -> TensorFileHeader:
    """Read and check a file's header; never reads more than ``limits.header_bytes`` of it.

    Raises:
        NotFoundError: If there is no such file.
        ArtifactError: If the file is malformed in any way; the message says how.
    """
    with open_regular(path) as file:
        return parse_header(file, path, limits)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, refusing folders, pipes and devices.

    Raises:
        NotFoundError: If there is no such file.
        ArtifactError: If it is not a regular file.
    """
    if not path.exists():
        raise NotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise ArtifactError(f"{path}: not a regular file")
    return path.open("rb")


def parse_header(file: BinaryIO, path: Path, limits: FileLimits) -> TensorFileHeader:
    """Check an open file's header, its extents, and that the file is nothing else besides.

    Raises:
        ArtifactError: As :func:`read_header`.
    """
    size = os.fstat(file.fileno()).st_size
    _expect(size <= limits.file_bytes, path, f"file of {size} bytes, at most {limits.file_bytes} are read")
    _expect(size >= 8, path, f"file of {size} bytes ends before the header length")
    length = int.from_bytes(file.read(8), "little")
    _expect(length <= limits.header_bytes, path, f"header of {length} bytes, at most {limits.header_bytes} are read")
    _expect(length <= size - 8, path, f"header of {length} bytes in a file of {size} bytes")
    raw = file.read(length)
    _expect(raw[:1] == b"{", path, "header does not begin with {")
    document = _load_json(raw, path)
    metadata = _check_metadata(document.pop("__metadata__", {}), path, limits)
    _expect(len(document) <= limits.num_tensors, path, f"{len(document)} tensors, at most {limits.num_tensors}")
    entries = [_check_entry(name, fields, path) for name, fields in document.items()]
    _check_extents(entries, size - 8 - length, path)
    _expect(header_bytes(metadata, entries) == raw, path, "header is not in canonical form")
    _expect(not _is_zip(file), path, "file is a zip archive as well")
    file.seek(8 + length)
    return TensorFileHeader(metadata=metadata, tensors={entry.name: entry for entry in entries}, data_offset=8 + length)


def header_bytes(metadata: Mapping[str, str], entries: Iterable[TensorEntry]) -> bytes:
    """Return the one byte form of a header: metadata, then tensors by name, padded to 8 bytes."""
    document: dict[str, Any] = {"__metadata__": {key: metadata[key] for key in sorted(metadata)}}
    for entry in sorted(entries, key=lambda entry: entry.name):
        document[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.start, entry.stop],
        }
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    return text + b" " * (-len(text) % 8)


def layout(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> list[TensorEntry]:
    """Lay tensors (name -> dtype, shape) out one after another by name."""
    entries, start = [], 0
    for name in sorted(tensors):
        dtype, shape = tensors[name]
        stop = start + math.prod(shape) * _ITEM_SIZES[dtype]
        entries.append(TensorEntry(name=name, dtype=dtype, shape=shape, start=start, stop=stop))
        start = stop
    return entries


def write_atomically(path: Path, chunks: Iterable[bytes]) -> str:
    """Write a file so that it is there whole or not at all, also when the disk is full or power fails.

    Returns:
        sha256 of the bytes, hex.
    """
    digest = hashlib.sha256()
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)
    return digest.hexdigest()


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _load_json(raw: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ArtifactError(f"{path}: header has the key {twice[:80]!r} twice")
        return fields

    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError as error:
        raise ArtifactError(f"{path}: header is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: header is not UTF-8") from error
    except ValueError as error:
        raise ArtifactError(f"{path}: header is not JSON: {error}") from error
    _expect(isinstance(document, dict), path, "header is not a JSON object")
    return dict(document)


def _check_metadata(metadata: Any, path: Path, limits: FileLimits) -> dict[str, str]:
    is_text = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    _expect(is_text, path, "metadata is not a map of texts")
    size = sum(len(key) + len(value) for key, value in metadata.items())
    _expect(size <= limits.metadata_bytes, path, f"metadata of {size} bytes, at most {limits.metadata_bytes} are read")
    return dict(metadata)


def _check_entry(name: str, fields: Any, path: Path) -> TensorEntry:
    def expect(holds: bool, found: str) -> None:
        if not holds:
            raise ArtifactError(f"{path}: tensor {name[:120]!r} {found}")

    expect(
        isinstance(fields, dict) and set(fields) == {"dtype", "shape", "data_offsets"},
        "is not described by exactly dtype, shape and data_offsets",
    )
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    expect(isinstance(dtype, str) and dtype in _ITEM_SIZES, f"has the unknown type {str(dtype)[:40]!r}")
    expect(_are_counts(shape) and len(shape) <= 4, f"has no valid shape: {str(shape)[:60]}")
    expect(_are_counts(offsets) and len(offsets) == 2, f"has no valid offsets: {str(offsets)[:60]}")
    expect(offsets[0] <= offsets[1], f"ends before it begins: {offsets}")
    needed = math.prod(shape) * _ITEM_SIZES[dtype]
    expect(offsets[1] - offsets[0] == needed, f"of shape {shape} needs {needed} bytes, has {offsets[1] - offsets[0]}")
    return TensorEntry(name=name, dtype=dtype, shape=tuple(shape), start=offsets[0], stop=offsets[1])


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < _LARGEST_SIDE for value in values)


def _check_extents(entries: list[TensorEntry], data_bytes: int, path: Path) -> None:
    """The tensors must cover the data exactly, one after another."""
    position = 0
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.stop)):
        _expect(entry.start >= position, path, f"tensor {entry.name[:120]!r} overlaps another")
        _expect(entry.start == position, path, f"hole of {entry.start - position} bytes before {entry.name[:120]!r}")
        position = entry.stop
    _expect(position <= data_bytes, path, f"tensors of {position} bytes, the file holds {data_bytes}: it is cut off")
    _expect(position == data_bytes, path, f"{data_bytes - position} bytes after the last tensor")


def _is_zip(file: BinaryIO) -> bool:
    """Some readers find an archive from a file's end: a file must not be both."""
    return zipfile.is_zipfile(file)


def _expect(holds: bool, path: Path, found: str) -> None:
    if not holds:
        raise ArtifactError(f"{path}: {found}")
