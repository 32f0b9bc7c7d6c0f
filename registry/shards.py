"""Parquet files of the catalogue: sorted runs of rows, named by content, rewritten only where they change."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mos.concept import ConceptRef
from registry.documents import sha256_hex
from registry.row import Row
from registry.snapshot import ShardEntry

MAX_SHARD_ROWS = 32_768
"""A file with more rows is split in two."""

_ROW_GROUP = 4_096
"""Rows unpacked for one hit among them; footers, which are longer for it, are kept between searches."""

_LONG = {
    *("title", "description", "words", "credit", "previews", "lineage", "run_id", "created_at", "first_seen_at"),
    *("weights_sha256", "manifest_sha256", "events_sha256", "codes", "scales"),
}
"""Columns packed for size (zstd): long, and read for hits alone.

The others are packed for reading (lz4): a search reads them of every row, or their few values repeat and are short
either way.
"""

_PRUNED_BY = ("owner", "concept", "version", "first_seen_snapshot")
"""Columns whose bounds let a reader leave out row groups; bounds of others only make footers longer."""

_NEARLY_UNIQUE = {
    *("concept", "title", "description", "search_text", "run_id", "created_at", "first_seen_at"),
    *("weights_sha256", "manifest_sha256", "codes", "scales"),
}
"""Columns for which a dictionary would be as long as the column."""

_ARROW_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    bool: pa.bool_(),
    list[str]: pa.list_(pa.string()),
}
ROW_SCHEMA = pa.schema([(field.name, _ARROW_TYPES[field.type]) for field in fields(Row)])

EMBEDDING_SCHEMA = pa.schema(
    [
        ("owner", pa.string()),
        ("concept", pa.string()),
        ("version", pa.int64()),
        ("dim", pa.int64()),
        ("scales", pa.list_(pa.float32())),
        ("codes", pa.binary()),
    ]
)
"""One record a version: the signed bytes of all its previews one after another, and a scale for each."""

Key = tuple[str, str, int]
Load = Callable[[ShardEntry], bytes]


def read_table(data: bytes) -> pa.Table:
    """A catalogue file in memory.

    Read by the caller's own thread from Arrow's own buffer: Arrow's pool of threads can abort a Python that ends
    right after a parallel read of a Python file object (apache/arrow issues 34314 and 50482).
    """
    return _opened(data).read(use_threads=False)


def read_concept(data: bytes, ref: ConceptRef) -> list[dict[str, Any]]:
    """The records of one concept in a catalogue file, by version."""
    return _read_where(data, {"owner": ref.owner, "concept": ref.name})


def read_owner(data: bytes, owner: str) -> list[dict[str, Any]]:
    """The records of one owner in a catalogue file."""
    return _read_where(data, {"owner": owner})


def owners_in(data: bytes) -> set[str]:
    """The owners in a catalogue file."""
    return set(_opened(data).read(columns=["owner"], use_threads=False)["owner"].unique().to_pylist())


def _opened(data: bytes) -> pq.ParquetFile:
    return pq.ParquetFile(pa.BufferReader(data))


def _read_where(data: bytes, equal: Mapping[str, str]) -> list[dict[str, Any]]:
    """The records whose columns have these values, from the row groups whose bounds allow them."""
    file = _opened(data)
    groups = [group for group in range(file.num_row_groups) if _may_hold(file.metadata.row_group(group), equal)]
    table = file.read_row_groups(groups, use_threads=False)
    for column, value in equal.items():
        table = table.filter(pc.equal(table[column], value))
    records: list[dict[str, Any]] = table.to_pylist()
    return records


def _may_hold(group: pq.RowGroupMetaData, equal: Mapping[str, str]) -> bool:
    columns = {group.column(index).path_in_schema: group.column(index).statistics for index in range(group.num_columns)}
    bounds = [(columns.get(name), value) for name, value in equal.items()]
    return all(one is None or not one.has_min_max or one.min <= value <= one.max for one, value in bounds)


def encode(table: pa.Table) -> bytes:
    """The bytes of a catalogue file; the same rows give the same bytes."""
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        compression={_leaf(field): "zstd" if field.name in _LONG else "lz4" for field in table.schema},
        row_group_size=_ROW_GROUP,
        write_statistics=[name for name in _PRUNED_BY if name in table.schema.names],
        use_dictionary=[_leaf(field) for field in table.schema if field.name not in _NEARLY_UNIQUE],
    )
    return sink.getvalue()


def _leaf(field: pa.Field) -> str:
    """The path of a column's values in a Parquet file."""
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else str(field.name)


def merge(
    shards: Sequence[ShardEntry],
    changes: Mapping[Key, dict[str, Any] | None],
    schema: pa.Schema,
    load: Load,
) -> tuple[tuple[ShardEntry, ...], dict[str, bytes]]:
    """Apply changed records to the files they belong to.

    Args:
        shards: The files now, in order.
        changes: `(owner, concept, version)` -> the record there from now on, or None to remove it.
        schema: Of the records; the first columns it must have are owner, concept and version.
        load: Reads a file.

    Returns:
        The files afterwards, in order, and the bytes of those that are new by their sha256.
    """
    assigned = _assign(shards, sorted(changes))
    entries: list[ShardEntry] = []
    written: dict[str, bytes] = {}
    for index, shard in enumerate(shards or [None]):
        keys = assigned.get(index, [])
        if not keys and shard is not None:
            entries.append(shard)
            continue
        old = schema.empty_table() if shard is None else read_table(load(shard)).select(schema.names).cast(schema)
        for part in _split(_replace(old, {key: changes[key] for key in keys}, schema)):
            data = encode(part)
            entry = _entry(part, data)
            written[entry.sha256] = data
            entries.append(entry)
    return tuple(entries), written


def _assign(shards: Sequence[ShardEntry], keys: Sequence[Key]) -> dict[int, list[Key]]:
    """Which file each key belongs to: the last one that begins at or before its concept, else the first."""
    assigned: dict[int, list[Key]] = {}
    index = 0
    for key in keys:
        while index + 1 < len(shards) and shards[index + 1].first <= key[:2]:
            index += 1
        assigned.setdefault(index, []).append(key)
    return assigned


def _replace(table: pa.Table, changes: Mapping[Key, dict[str, Any] | None], schema: pa.Schema) -> pa.Table:
    names = pc.binary_join_element_wise(table["owner"], table["concept"], pc.cast(table["version"], pa.string()), "/")
    changed = pa.array([f"{owner}/{concept}/{version}" for owner, concept, version in changes], pa.string())
    kept = table.filter(pc.invert(pc.is_in(names, value_set=changed)))
    added = pa.Table.from_pylist([record for record in changes.values() if record is not None], schema=schema)
    whole = pa.concat_tables([kept, added])
    order = pc.sort_indices(
        whole, sort_keys=[("owner", "ascending"), ("concept", "ascending"), ("version", "ascending")]
    )
    return whole.take(order).combine_chunks()


def _split(table: pa.Table) -> list[pa.Table]:
    """Cut a table into equal parts of at most `MAX_SHARD_ROWS`, never within a concept."""
    if table.num_rows <= MAX_SHARD_ROWS:
        return [table] if table.num_rows else []
    target = -(-table.num_rows // (-(-table.num_rows // MAX_SHARD_ROWS) + 1))
    owners, concepts = table["owner"].to_pylist(), table["concept"].to_pylist()
    parts, start = [], 0
    while start < table.num_rows:
        end = min(start + target, table.num_rows)
        while end < table.num_rows and (owners[end], concepts[end]) == (owners[end - 1], concepts[end - 1]):
            end += 1
        parts.append(table.slice(start, end - start))
        start = end
    return parts


def _entry(table: pa.Table, data: bytes) -> ShardEntry:
    last = table.num_rows - 1
    return ShardEntry(
        sha256=sha256_hex(data),
        num_rows=table.num_rows,
        first=(table["owner"][0].as_py(), table["concept"][0].as_py()),
        last=(table["owner"][last].as_py(), table["concept"][last].as_py()),
    )
