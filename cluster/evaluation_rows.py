"""Scores as Parquet: one file a block, its pictures beside its scores, under the registry's store."""

import hashlib
import io
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mos.errors import BadInputError, CheckFailedError, ConflictError
from mos.evaluation.results import METRICS, PictureScore

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

FORMAT_VERSION = 1
_TEXTS = ("method", "model", "model_digest", "concept", "suite", "family", "prompt")
_SUFFIX = ".parquet"
_RECORD = "evaluation.json"


class Objects(Protocol):
    """Where blocks are kept; `registry.runs.ObjectPrefix` is one."""

    def create(self, name: str, data: bytes) -> bool:
        """Create an object whole; raises a ConflictError if other bytes are there."""
        ...

    def get(self, name: str) -> bytes:
        """An object's bytes."""
        ...

    def find(self, name: str) -> bytes | None:
        """An object's bytes, or None."""
        ...

    def names(self, folder: str = "") -> Iterator[str]:
        """Names of all objects."""
        ...

    def delete(self, name: str) -> None:
        """Remove an object; none there is not an error."""
        ...


@dataclass(frozen=True, kw_only=True)
class ScoredPicture:
    """A row with its picture as PNG bytes (empty when it was not kept)."""

    score: PictureScore
    png: bytes


def block_bytes(rows: Sequence[PictureScore], images: Sequence["Image.Image"]) -> bytes:
    """One block as a Parquet file; the first `len(rows)` images are its pictures, in order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures = [_png(image) for image in images[: len(rows)]]
    columns: dict[str, Any] = {name: pa.array([getattr(row, name) for row in rows], pa.string()) for name in _TEXTS}
    columns["seed"] = pa.array([row.seed for row in rows], pa.int64())
    for metric in METRICS:
        columns[metric.name] = pa.array([_finite(row.scores.get(metric.name)) for row in rows], pa.float64())
    columns["picture_sha256"] = pa.array([hashlib.sha256(data).hexdigest() for data in pictures], pa.string())
    columns["picture"] = pa.array(pictures, pa.binary())
    table = pa.table(columns).replace_schema_metadata({"mos.evaluation.format": str(FORMAT_VERSION)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_block(data: bytes, name: str) -> list[ScoredPicture]:
    """The rows of one block, verified.

    Raises:
        CheckFailedError: If it is no Parquet file, a column is missing, or a picture changed.
        BadInputError: If a newer mos wrote it.
    """
    import pyarrow as pa

    from registry.shards import read_table

    try:
        table = read_table(data)
    except pa.ArrowException as error:
        raise CheckFailedError(f"{name}: not a readable Parquet file ({error}); delete it and rerun") from error
    _check_format(table, name)
    rows = []
    for record in table.to_pylist():
        if hashlib.sha256(record["picture"]).hexdigest() != record["picture_sha256"]:
            raise CheckFailedError(f"{name}: the picture of {record['prompt']!r} changed; delete the block and rerun")
        scores = {metric.name: record[metric.name] for metric in METRICS if record.get(metric.name) is not None}
        score = PictureScore(**{text: record[text] for text in _TEXTS}, seed=record["seed"], scores=scores)
        rows.append(ScoredPicture(score=score, png=record["picture"]))
    return rows


def _check_format(table: "pa.Table", name: str) -> None:
    metadata = table.schema.metadata or {}
    version = metadata.get(b"mos.evaluation.format", b"").decode()
    if not version.isdigit():
        raise CheckFailedError(f"{name}: a Parquet file, but not of an evaluation; delete it and rerun")
    if int(version) > FORMAT_VERSION:
        raise BadInputError(f"{name}: written by a newer mos (format {version}); update mos to read it")
    missing = sorted({*_TEXTS, "seed", "picture", "picture_sha256"} - set(table.column_names))
    if missing:
        raise CheckFailedError(f"{name}: columns {', '.join(missing)} are missing; delete it and rerun")


@dataclass(frozen=True)
class ScoreStore:
    """The blocks of one evaluation."""

    objects: Objects

    def record(self, settings: Mapping[str, Any]) -> None:
        """Note the settings beside the blocks; the same settings may be noted again."""
        data = json.dumps(settings, sort_keys=True, indent=1).encode()
        self.objects.create(_RECORD, data)

    def settings(self) -> dict[str, Any]:
        """What `record` noted."""
        found: dict[str, Any] = json.loads(self.objects.get(_RECORD))
        return found

    def done(self) -> set[str]:
        """Names of the blocks that are there."""
        return {name.removesuffix(_SUFFIX) for name in self.objects.names() if name.endswith(_SUFFIX)}

    def write(self, block: str, rows: Sequence[PictureScore], images: Sequence["Image.Image"]) -> bool:
        """Write a block; False if another worker was first, whose rows then stand."""
        try:
            return self.objects.create(block + _SUFFIX, block_bytes(rows, images))
        except ConflictError:
            return False

    def read(self, blocks: Sequence[str] | None = None) -> list[ScoredPicture]:
        """All rows, or those of the named blocks, in the order of the blocks' names."""
        chosen = sorted(self.done() if blocks is None else blocks)
        rows: list[ScoredPicture] = []
        for block in chosen:
            rows += read_block(self.objects.get(block + _SUFFIX), block + _SUFFIX)
        return rows

    def forget(self, concepts: Collection[str]) -> int:
        """Remove the blocks that show or were drawn by one of these concepts (owner/name@version); counts pictures."""
        from registry.shards import read_table

        count = 0
        for block in sorted(self.done()):
            table = read_table(self.objects.get(block + _SUFFIX))
            if not set(concepts).isdisjoint(table["concept"].to_pylist() + table["model"].to_pylist()):
                self.objects.delete(block + _SUFFIX)
                count += table.num_rows
        return count


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _png(image: "Image.Image") -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
