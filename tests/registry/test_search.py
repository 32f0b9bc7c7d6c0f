"""Search over catalogue files against a plain loop over the same rows."""

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mos.concept import ConceptRef
from registry.row import Row
from registry.search import HeldRows, Query, run_query
from registry.shards import ROW_SCHEMA, encode

_BLANKS: dict[Any, Any] = {str: "", int: 0, bool: True, list[str]: []}


def _row(**values: Any) -> Row:
    return Row(**{**{field.name: _BLANKS[field.type] for field in fields(Row)}, **values})


def _rows(rng: random.Random, num_concepts: int) -> list[Row]:
    """Versions of concepts in random states, seen in an order that has little to do with their versions."""
    found = []
    for number in range(num_concepts):
        owner, concept = f"owner-{number % 3}", f"thing-{number:03d}"
        for version in range(1, rng.choice([1, 1, 2, 9]) + 1):
            tags = rng.sample(["pet", "toy", "tin"], rng.randint(0, 2))
            found.append(
                _row(
                    owner=owner,
                    concept=concept,
                    version=version,
                    state=rng.choice(["listed", "listed", "yanked"]),
                    tags=tags,
                    base_name=rng.choice(["tiny", "big"]),
                    base_family="sd1",
                    base_key="unet:0123456789abcdef",
                    licence=rng.choice(["cc0-1.0", "cc-by-4.0"]),
                    derivatives=rng.random() < 0.5,
                    search_text=" ".join([owner, concept, *tags]),
                    first_seen_snapshot=rng.randint(1, 5),
                )
            )
    return sorted(found, key=lambda row: row.ref)


def _files(folder: Path, rows: Sequence[Row]) -> list[str]:
    paths = []
    for start in range(0, len(rows), 40):
        path = folder / f"{start}.parquet"
        path.write_bytes(encode(pa.Table.from_pylist([row.to_dict() for row in rows[start : start + 40]], ROW_SCHEMA)))
        paths.append(str(path))
    return paths


def _fits(row: Row, query: Query) -> bool:
    return (
        (query.state is None or row.state == query.state)
        and (query.owner is None or row.owner == query.owner)
        and (query.licence is None or row.licence == query.licence)
        and (query.derivatives is None or row.derivatives == query.derivatives)
        and (query.tag is None or query.tag in row.tags)
        and (query.base is None or query.base in (row.base_name, row.base_family) or f":{query.base}" in row.base_key)
        and all(word in row.search_text for word in query.text.lower().split())
    )


def _plain(rows: Sequence[Row], query: Query) -> list[Row]:
    """The newest version of each concept that fits; concepts by when one that fits was last first seen."""
    fitting = [row for row in rows if _fits(row, query)]
    if query.all_versions:
        order = sorted(fitting, key=lambda row: (-row.first_seen_snapshot, row.owner, row.concept, -row.version))
        return order[: query.limit]
    concepts: dict[tuple[str, str], list[Row]] = {}
    for row in fitting:
        concepts.setdefault((row.owner, row.concept), []).append(row)
    order = sorted(concepts, key=lambda key: (-max(row.first_seen_snapshot for row in concepts[key]), key))
    return [max(concepts[key], key=lambda row: row.version) for key in order][: query.limit]


QUERIES = [
    Query(),
    Query(limit=3),
    Query(limit=3, state=None, all_versions=True),
    Query(state=None, limit=1000),
    Query(state=None, all_versions=True, limit=1000),
    Query(tag="pet", base="tiny"),
    Query(tag="pet", limit=1),
    Query(base="0123"),
    Query(base="sd1", owner="owner-1", licence="cc0-1.0"),
    Query(text="Thing-01 toy", derivatives=True),
    Query(owner="nobody"),
]


@pytest.mark.parametrize("seed", range(4))
def test_every_search_finds_what_a_plain_loop_finds(tmp_path: Path, seed: int):
    rows = _rows(random.Random(seed), 60)
    paths = _files(tmp_path, rows)
    for query in QUERIES:
        assert run_query(paths, query) == _plain(rows, query), query
        assert HeldRows(rows).search(query) == _plain(rows, query), query


def test_many_old_versions_do_not_crowd_other_concepts_out(tmp_path: Path):
    rows = [
        _row(owner="a", concept="busy", version=version, state="listed", first_seen_snapshot=1000 + version)
        for version in range(1, 400)
    ]
    rows += [_row(owner="b", concept=f"c-{n}", version=1, state="listed", first_seen_snapshot=n) for n in range(5)]
    found = run_query(_files(tmp_path, rows), Query(limit=3))
    assert found == HeldRows(rows).search(Query(limit=3))
    assert [str(row.ref) for row in found] == ["a/busy@399", "b/c-4@1", "b/c-3@1"]


def test_a_search_among_some_concepts_leaves_the_others_out(tmp_path: Path):
    rows = _rows(random.Random(9), 30)
    some = [ConceptRef("owner-0", "thing-000"), ConceptRef("owner-1", "thing-004"), ConceptRef("owner-1", "thing-000")]
    query = Query(state=None, all_versions=True)
    found = run_query(_files(tmp_path, rows), query, among=some)
    assert {(row.owner, row.concept) for row in found} == {("owner-0", "thing-000"), ("owner-1", "thing-004")}
    assert run_query(_files(tmp_path, rows), query, among=[]) == []


def test_searches_at_once_find_what_each_finds_alone(tmp_path: Path):
    """They share one database."""
    rows = _rows(random.Random(3), 60)
    paths = _files(tmp_path, rows)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda query: run_query(paths, query), QUERIES * 4))
    assert found == [_plain(rows, query) for query in QUERIES * 4]
