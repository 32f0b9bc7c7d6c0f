"""Similarity: one embedding a preview picture and scorer, computed by the indexer, never taken from the owner.

Embeddings are unit vectors stored as signed bytes with one scale each, in Parquet files sorted like the
catalogue's. The inner product of two is their cosine to within the rounding.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mos.concept import ConceptRef
from mos.errors import BadInputError, NotFoundError
from registry.documents import sha256_hex
from registry.errors import ObjectMissingError
from registry.layout import blob_key
from registry.manifest import MAX_PREVIEW_BYTES
from registry.reading import Catalogue, Shelf
from registry.row import Row, State
from registry.search import MAX_LIMIT, Query, run_query
from registry.snapshot import ShardEntry

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 16_000_000
"""A preview with more is not decoded."""

Floats = NDArray[np.float32]


class Scorer(Protocol):
    """Turns pictures and prompts into features of one space; `mos.evaluation.scorer.ClipScorer` is one."""

    @property
    def name(self) -> str:
        """What the embeddings are filed under: letters, digits, '.', '_', '-'."""
        ...

    def image_features(self, images: Sequence["Image.Image"]) -> Floats:
        """Features [n, dim] of pictures."""
        ...

    def text_features(self, prompts: Sequence[str]) -> Floats:
        """Features [n, dim] of prompts."""
        ...


@dataclass(frozen=True)
class Neighbour:
    """A version and how close its closest preview is, as a cosine."""

    ref: ConceptRef
    similarity: float


class EmbeddingJob:
    """Keeps the embeddings of one snapshot in step with its rows."""

    def __init__(self, shelf: Shelf, catalogue: Catalogue) -> None:
        self._shelf = shelf
        self._catalogue = catalogue

    def update(
        self, scorer: Scorer, changes: Mapping[ConceptRef, Row]
    ) -> tuple[tuple[ShardEntry, ...], dict[str, bytes]]:
        """Embed what became listed, forget what is listed no longer; a new scorer begins with all rows."""
        known = self._catalogue.snapshot.embeddings.get(scorer.name)
        rows = dict(changes)
        if known is None:
            rows = {**{row.ref: row for row in self._catalogue.rows()}, **rows}
        records: dict[tuple[str, str, int], dict[str, Any] | None] = {}
        for ref, row in sorted(rows.items()):
            embedded = self._embed(scorer, row) if row.state == State.LISTED else None
            if embedded is not None or known is not None:
                records[(ref.owner, ref.name, ref.version or 0)] = embedded
        return self._merge(known or (), records)

    def forget(
        self, scorer_name: str, changes: Mapping[ConceptRef, Row]
    ) -> tuple[tuple[ShardEntry, ...], dict[str, bytes]]:
        """Drop what is listed no longer from the embeddings of a scorer that is not at hand."""
        records: dict[tuple[str, str, int], dict[str, Any] | None] = {
            (row.owner, row.concept, row.version): None for row in changes.values() if row.state != State.LISTED
        }
        return self._merge(self._catalogue.snapshot.embeddings.get(scorer_name, ()), records)

    def _merge(
        self, shards: tuple[ShardEntry, ...], records: dict[tuple[str, str, int], dict[str, Any] | None]
    ) -> tuple[tuple[ShardEntry, ...], dict[str, bytes]]:
        if not records or (not shards and all(record is None for record in records.values())):
            return shards, {}
        from registry.shards import EMBEDDING_SCHEMA, merge

        return merge(shards, records, EMBEDDING_SCHEMA, self._catalogue.load_embeddings)

    def _embed(self, scorer: Scorer, row: Row) -> dict[str, Any] | None:
        images = [image for image in (self._preview(row, sha256) for sha256 in row.previews) if image is not None]
        if not images:
            return None
        codes, scales = quantise(scorer.image_features(images))
        return {
            "owner": row.owner,
            "concept": row.concept,
            "version": row.version,
            "dim": codes.shape[1],
            "scales": [float(scale) for scale in scales],
            "codes": codes.tobytes(),
        }

    def _preview(self, row: Row, sha256: str) -> "Image.Image | None":
        """A preview as an RGB picture, or None if it is gone or cannot be decoded."""
        from PIL import Image

        data = self._preview_bytes(row, sha256)
        if data is None:
            return None
        try:
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                if image.width * image.height > MAX_PIXELS:
                    return None
                return image.convert("RGB")
        except Exception:  # a stranger's bytes make a decoder raise anything, and must not stop the indexer
            return None

    def _preview_bytes(self, row: Row, sha256: str) -> bytes | None:
        """The bytes of a preview, verified; a damaged answer is asked for once more."""
        for _ in range(2):
            try:
                data = self._shelf.store.get(blob_key(row.owner, sha256), at_most=MAX_PREVIEW_BYTES + 1)
            except ObjectMissingError:
                return None
            if sha256_hex(data) == sha256:
                return data
        return None


def quantise(features: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Unit vectors [n, dim] as signed bytes and one scale each, so that `codes * scale` is the vector."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(norms, 1e-12)
    scales = np.maximum(np.abs(unit).max(axis=1), 1e-12) / 127.0
    codes = np.rint(unit / scales[:, None]).astype(np.int8)
    return codes, scales.astype(np.float32)


def closest_rows(catalogue: Catalogue, scorer: Scorer, queries: Floats, query: Query) -> list[tuple[Row, float]]:
    """The rows that fit `query` with a preview closest to any of the features [n, dim], closest first.

    The closest of all are looked up in the catalogue; if too few of them fit, eight times as many are.
    """
    paths, wanted = catalogue.paths(), query.limit
    while True:
        neighbours = nearest(catalogue, scorer, queries, wanted)
        refs = [neighbour.ref for neighbour in neighbours]
        fitting = {row.ref: row for row in run_query(paths, replace(query, limit=MAX_LIMIT), among=refs)}
        found = [(fitting[one.ref], one.similarity) for one in neighbours if one.ref in fitting]
        if len(found) >= query.limit or len(neighbours) < wanted:
            return found[: query.limit]
        wanted *= 8


def nearest(catalogue: Catalogue, scorer: Scorer, queries: Floats, limit: int) -> list[Neighbour]:
    """The listed versions with a preview closest to any of the queries [n, dim].

    Raises:
        NotFoundError: If the catalogue has no embeddings by this scorer.
    """
    shards = catalogue.snapshot.embeddings.get(scorer.name)
    if not shards:
        known = ", ".join(sorted(catalogue.snapshot.embeddings)) or "none"
        raise NotFoundError(
            f"no embeddings by scorer {scorer.name} in the catalogue (there are: {known}); "
            "run mos registry index --embed, or --scorer NAME for another"
        )
    unit = queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)
    found: list[Neighbour] = []
    for shard in shards:
        found = top(found + nearest_in(catalogue.load_embeddings(shard), unit.astype(np.float32), limit), limit)
    return found


def nearest_in(data: bytes, unit_queries: Floats, limit: int) -> list[Neighbour]:
    """The closest versions of one file of embeddings."""
    from registry.shards import read_table

    table = read_table(data)
    dims = set(table["dim"].unique().to_pylist())
    if not dims:
        return []
    if dims != {unit_queries.shape[1]}:
        raise BadInputError(f"embeddings of {dims} numbers, the query has {unit_queries.shape[1]}: another scorer")
    packed, scales, starts = _unpacked(table)
    codes = packed.reshape(-1, unit_queries.shape[1])
    cosines = (codes.astype(np.float32) @ unit_queries.T).max(axis=1) * scales
    best = np.maximum.reduceat(cosines, starts)
    chosen = np.argsort(-best, kind="stable")[:limit]
    records = table.select(["owner", "concept", "version"]).take(chosen).to_pylist()
    return [
        Neighbour(ConceptRef(record["owner"], record["concept"], record["version"]), float(best[index]))
        for record, index in zip(records, chosen, strict=True)
    ]


def _unpacked(table: Any) -> tuple[NDArray[np.int8], Floats, NDArray[np.int64]]:
    """The bytes of all embeddings, the scale of each, and where each version's first one is; nothing is copied."""
    codes = table["codes"].combine_chunks()
    scales = table["scales"].combine_chunks()
    edges = np.frombuffer(codes.buffers()[1], np.int32)[codes.offset : codes.offset + len(codes) + 1]
    packed = np.frombuffer(codes.buffers()[2], np.int8)[edges[0] : edges[-1]]
    starts = scales.offsets.to_numpy()[:-1].astype(np.int64)
    return packed, scales.values.to_numpy(zero_copy_only=False).astype(np.float32), starts


def top(neighbours: Iterable[Neighbour], limit: int) -> list[Neighbour]:
    """The closest, ties by name."""
    return sorted(neighbours, key=lambda one: (-one.similarity, one.ref))[:limit]
