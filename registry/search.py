"""Search over the catalogue: with duckdb over its Parquet files, or over the rows of a small one in memory."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from mos.concept import ConceptRef
from mos.errors import BadInputError
from registry.row import Row, State

MAX_LIMIT = 10_000

MAX_HELD_ROWS = 4_096
"""A catalogue of at most this many rows is held in memory by whoever searches it."""

_DIGEST = re.compile("[0-9a-f]{1,16}")
_Hit = tuple[str, str, int]


@dataclass(frozen=True, kw_only=True)
class Query:
    """What to look for; every field that is set narrows the search.

    Attributes:
        text: Words that all occur in owner, name, class word, title, description or tags.
        tag: A tag.
        base: A base's name, family, or the beginning of a component's fingerprint.
        owner: An owner.
        licence: A licence's name.
        kind: `concept` or `fusion`.
        commercial_use: Whether commercial use must be allowed (or must not).
        derivatives: Whether merging must be allowed (or must not).
        state: A state, or None for every state.
        all_versions: Every version, not only the newest that fits.
        limit: How many rows at most.
    """

    text: str = ""
    tag: str | None = None
    base: str | None = None
    owner: str | None = None
    licence: str | None = None
    kind: str | None = None
    commercial_use: bool | None = None
    derivatives: bool | None = None
    state: str | None = State.LISTED.value
    all_versions: bool = False
    limit: int = 20

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MAX_LIMIT:
            raise BadInputError(f"limit {self.limit}: expected 1 to {MAX_LIMIT}")
        if self.state is not None and self.state not in set(State):
            raise BadInputError(f"state {self.state!r}: expected one of {', '.join(State)}")


class HeldRows:
    """The rows of one small catalogue in memory; a search gives what `run_query` gives, without a database."""

    def __init__(self, rows: Iterable[Row]) -> None:
        """Put them in the order in which they are found."""
        self._newest_first = sorted(
            rows, key=lambda row: (-row.first_seen_snapshot, row.owner, row.concept, -row.version)
        )
        self._versions: dict[tuple[str, str], list[Row]] = {}
        for row in sorted(self._newest_first, key=lambda row: -row.version):
            self._versions.setdefault((row.owner, row.concept), []).append(row)

    def search(self, query: Query) -> list[Row]:
        """The rows that fit, newest first; see `run_query`."""
        if query.all_versions:
            return list(islice((row for row in self._newest_first if _fits(row, query)), query.limit))
        found: dict[tuple[str, str], Row] = {}
        for row in self._newest_first:
            concept = (row.owner, row.concept)
            if concept not in found and _fits(row, query):
                found[concept] = next(one for one in self._versions[concept] if _fits(one, query))
                if len(found) == query.limit:
                    break
        return list(found.values())


def _fits(row: Row, query: Query) -> bool:
    """Whether a row fits; says the same as `_conditions`."""
    return (
        (query.state is None or row.state == query.state)
        and (query.owner is None or row.owner == query.owner)
        and (query.licence is None or row.licence == query.licence)
        and (query.kind is None or row.kind == query.kind)
        and (query.commercial_use is None or row.commercial_use == query.commercial_use)
        and (query.derivatives is None or row.derivatives == query.derivatives)
        and (query.tag is None or query.tag in row.tags)
        and (query.base is None or _is_of_base(row, query.base))
        and all(word in row.search_text for word in query.text.lower().split())
    )


def _is_of_base(row: Row, base: str) -> bool:
    is_digest = _DIGEST.fullmatch(base) is not None
    return base in (row.base_name, row.base_family) or (is_digest and f":{base}" in row.base_key)


def run_query(paths: Sequence[str], query: Query, among: Sequence[ConceptRef] | None = None) -> list[Row]:
    """The rows that fit, newest first: in the order in which their concepts were last seen to grow.

    Args:
        paths: Local Parquet files of one snapshot.
        query: What to look for.
        among: Only look at these concepts, if given.
    """
    if not paths or among == []:
        return []
    where, values = _conditions(query, among)
    with _database(os.getpid()).cursor() as connection:
        connection.execute("SET parquet_metadata_cache = true")  # a file of the catalogue never changes
        hits = _find(connection, paths, query, where, values)
        return _fetch(connection, paths, query, where, values, hits) if hits else []


@cache
def _database(_process: int) -> Any:
    """The database in memory that every search of a process connects to: making one costs a tenth of a search.

    It holds the footers of files, not their bytes. It has one thread; a second one costs a tenth more in all.
    """
    import duckdb  # takes a moment to import

    return duckdb.connect(":memory:", config={"threads": 1, "enable_external_file_cache": False})


def _find(connection: Any, paths: Sequence[str], query: Query, where: str, values: list[object]) -> list[_Hit]:
    """Owner, concept and version of enough of the newest hits, from the narrow columns alone.

    Older versions of one concept take places among the newest hits, so without `all_versions` a few more are
    asked for, and many more if those turn out too few: a window over all hits costs several times as much.
    """
    statement = f"""
        SELECT owner, concept, version FROM read_parquet(?) {where}
        ORDER BY first_seen_snapshot DESC, owner, concept, version DESC LIMIT ?
    """  # noqa: S608 - every value is bound, the text has only names of our own
    wanted = query.limit if query.all_versions else query.limit * 2 + 20
    while True:
        hits: list[_Hit] = connection.execute(statement, [list(paths), *values, wanted]).fetchall()
        if query.all_versions or len(hits) < wanted or len({hit[:2] for hit in hits}) >= query.limit:
            return hits
        wanted *= 8


def _fetch(
    connection: Any, paths: Sequence[str], query: Query, where: str, values: list[object], hits: list[_Hit]
) -> list[Row]:
    """The whole rows of the hits; of each concept the newest version that fits, unless all are wanted."""
    concepts = list(dict.fromkeys(hit[:2] for hit in hits))[: query.limit]
    statement = f"""
        SELECT * FROM read_parquet(?) {where or "WHERE true"}
        AND owner IN (SELECT unnest(?)) AND concept IN (SELECT unnest(?)) ORDER BY version
    """  # noqa: S608 - every value is bound, the text has only names of our own
    owners, names = (sorted({concept[part] for concept in concepts}) for part in range(2))
    cursor = connection.execute(statement, [list(paths), *values, owners, names])
    columns = [column[0] for column in cursor.description or ()]
    rows = [Row.from_dict(dict(zip(columns, record, strict=True))) for record in cursor.fetchall()]
    if query.all_versions:
        by_version = {(row.owner, row.concept, row.version): row for row in rows}
        return [by_version[hit] for hit in hits]
    newest = {(row.owner, row.concept): row for row in rows}  # ordered by version: the last one stays
    return [newest[concept] for concept in concepts]


def _conditions(query: Query, among: Sequence[ConceptRef] | None) -> tuple[str, list[object]]:
    """The WHERE clause and the values bound in it."""
    clauses: list[str] = []
    values: list[object] = []
    columns = {
        "state": query.state,
        "owner": query.owner,
        "licence": query.licence,
        "kind": query.kind,
        "commercial_use": query.commercial_use,
        "derivatives": query.derivatives,
    }
    for column, value in columns.items():
        if value is not None:
            clauses.append(f"{column} = ?")
            values.append(value)
    if query.tag is not None:
        clauses.append("list_contains(tags, ?)")
        values.append(query.tag)
    if query.base is not None:
        is_digest = _DIGEST.fullmatch(query.base) is not None
        clauses.append("(base_name = ? OR base_family = ?" + (" OR contains(base_key, ?))" if is_digest else ")"))
        values += [query.base, query.base] + ([f":{query.base}"] if is_digest else [])
    for word in query.text.lower().split():
        clauses.append("contains(search_text, ?)")
        values.append(word)
    if among is not None:
        clauses.append("owner || '/' || concept IN (SELECT unnest(?))")
        values.append(sorted({f"{ref.owner}/{ref.name}" for ref in among}))
    return ("WHERE " + " AND ".join(clauses) if clauses else ""), values
