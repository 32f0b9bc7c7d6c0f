"""Search over the catalogue's Parquet files with duckdb."""

from collections.abc import Sequence
from dataclasses import dataclass

from mos.errors import BadInputError
from registry.row import Row, State

MAX_LIMIT = 10_000


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


def run_query(paths: Sequence[str], query: Query) -> list[Row]:
    """The rows that fit, newest first.

    Args:
        paths: Local Parquet files of one snapshot.
        query: What to look for.
    """
    if not paths:
        return []
    import duckdb  # takes a moment to import

    where, values = _conditions(query)
    newest = (
        ""
        if query.all_versions
        else "QUALIFY row_number() OVER (PARTITION BY owner, concept ORDER BY version DESC) = 1"
    )
    # The hits are found in the narrow columns; the wide ones are then read for them alone.
    find = f"""
        SELECT filename, owner, concept, version
        FROM read_parquet(?, filename = true) {where} {newest}
        ORDER BY first_seen_snapshot DESC, owner, concept, version DESC LIMIT ?
    """  # noqa: S608 - every value is bound, the text has only names of our own
    fetch = """
        SELECT * FROM read_parquet(?)
        WHERE owner IN (SELECT unnest(?)) AND concept IN (SELECT unnest(?))
    """
    with duckdb.connect(":memory:", config={"threads": 2}) as connection:
        hits = connection.execute(find, [list(paths), *values, query.limit]).fetchall()
        if not hits:
            return []
        files, owners, concepts = (sorted({hit[column] for hit in hits}) for column in range(3))
        cursor = connection.execute(fetch, [files, owners, concepts])
        names = [column[0] for column in cursor.description or ()]
        rows = [Row.from_dict(dict(zip(names, record, strict=True))) for record in cursor.fetchall()]
    by_key = {(row.owner, row.concept, row.version): row for row in rows}
    return [by_key[hit[1:]] for hit in hits]


def _conditions(query: Query) -> tuple[str, list[object]]:
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
        clauses.append("(base_name = ? OR base_family = ? OR contains(base_key, ?))")
        values += [query.base, query.base, f":{query.base}"]
    for word in query.text.lower().split():
        clauses.append("contains(search_text, ?)")
        values.append(word)
    return ("WHERE " + " AND ".join(clauses) if clauses else ""), values
