"""Screening before listing: names that look alike, words that would hijack others, licences, quotas.

Every check is a pure function; the indexer runs them all and writes the names of those passed into the row.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from mos.concept import ConceptRef, check_word
from mos.errors import CheckFailedError, MosError
from registry.manifest import MAX_PREVIEW_BYTES, Manifest
from registry.records import Limits, OwnerRecord
from registry.row import Row, State

_LOOK_ALIKES = (("rn", "m"), ("vv", "w"), ("cl", "d"), ("0", "o"), ("1", "l"), ("i", "l"), ("5", "s"), ("8", "b"))


class ScreeningError(CheckFailedError):
    """Raised when a version must not be listed; the message becomes the row's reason."""


def skeleton(name: str) -> str:
    """What a name looks like at a glance: hyphens dropped, look-alike letters and digits made one."""
    name = name.replace("-", "")
    for pattern, replacement in _LOOK_ALIKES:
        name = name.replace(pattern, replacement)
    return name


def check_confusable(name: str, others: Iterable[str], what: str) -> None:
    """Refuse a name that looks like another one.

    Raises:
        ScreeningError: Names the other.
    """
    mine = skeleton(name)
    for other in sorted(others):
        if other != name and skeleton(other) == mine:
            raise ScreeningError(f"{what} {name!r} looks like {other!r}, which was here first; choose another")


def check_words(manifest: Manifest) -> None:
    """Refuse words a concept may not bring along.

    Its own words must be well formed, different, and may not be what people type for any concept of another
    owner (words are renamed at fusion, but a stranger's tool may bind them as they stand).

    Raises:
        ScreeningError: Names the word.
    """
    if manifest.kind == "fusion":
        return
    if len(set(manifest.words)) != len(manifest.words):
        raise ScreeningError("the concept's words are not different from one another")
    for word in manifest.words:
        try:
            check_word(word)
        except MosError as error:
            raise ScreeningError(str(error)) from error
    if not re.fullmatch(r"[a-z]{1,40}", manifest.class_word):
        raise ScreeningError(f"class word {manifest.class_word!r}: expected one plain English word")


def refs_with_word(word: str) -> Iterator[ConceptRef]:
    """Every concept that would be typed as this word: `<a-b-c>` may be `a/b-c` or `a-b/c`."""
    parts = word.strip("<>").split("-")
    for cut in range(1, len(parts)):
        try:
            yield ConceptRef("-".join(parts[:cut]), "-".join(parts[cut:]))
        except MosError:
            continue


def rivals(row: Row) -> set[ConceptRef]:
    """Concepts that people type with the same word as this one, or with a word it brings along.

    The two words every concept gets by default (`<name-rand>`, `<name-class>`) are exempt.
    """
    ref = ConceptRef(row.owner, row.concept)
    same = {other for other in refs_with_word(ref.word) if other != ref}
    foreign = set(row.words) - set(ref.words)
    return same | {other for word in foreign for other in refs_with_word(word) if other.owner != row.owner}


def check_licence(manifest: Manifest) -> None:
    """Refuse a human concept without a person, and a person without consent.

    Raises:
        ScreeningError: Says which is missing.
    """
    if manifest.concept_kind == "human" and not manifest.licence.persons:
        raise ScreeningError("a human concept names no person; publish it with --person and --consent")
    if manifest.licence.lacks_consent:
        raise ScreeningError("a person is depicted and no consent is recorded; publish it with --consent")


def check_limits(manifest: Manifest, limits: Limits) -> None:
    """Refuse files and ranks over the registry's limits.

    Raises:
        ScreeningError: Says which limit.
    """
    for file in manifest.files:
        longest = min(limits.max_file_bytes, MAX_PREVIEW_BYTES) if file.role == "preview" else limits.max_file_bytes
        if file.size_bytes > longest:
            raise ScreeningError(f"{file.role} of {file.size_bytes} bytes, allowed are {longest}")
    if manifest.kind == "concept" and manifest.rank > limits.max_rank:
        raise ScreeningError(f"rank {manifest.rank}, allowed is {limits.max_rank}")


def rule_on_owner(rows: Sequence[Row], owner: OwnerRecord, limits: Limits) -> list[Row]:
    """Apply what depends on all of an owner's versions: suspension, quota, names that look alike.

    Args:
        rows: Every version of the owner; only `verdict` is read, so ruling twice changes nothing.
        owner: The owner's record.
        limits: The registry's.

    Returns:
        The rows in order of first sight, those over the line quarantined; what was seen first stands.
    """
    quota = (owner.max_versions or limits.max_versions, owner.max_bytes or limits.max_owner_bytes)
    num_versions = size_bytes = 0
    names: dict[str, str] = {}
    ruled = []
    for row in sorted((_as_judged(row) for row in rows), key=seniority):
        if row.verdict in _FINAL:
            ruled.append(row)
            continue
        other = names.setdefault(skeleton(row.concept), row.concept)
        over = num_versions + 1 > quota[0] or size_bytes + row.size_bytes > quota[1]
        if other == row.concept and not over:
            num_versions, size_bytes = num_versions + 1, size_bytes + row.size_bytes
        if owner.suspended:
            ruled.append(quarantined(row, "the owner is suspended"))
        elif other != row.concept:
            ruled.append(quarantined(row, f"concept {row.concept!r} looks like the owner's {other!r}; choose another"))
        elif over:
            ruled.append(quarantined(row, f"over the quota of {quota[0]} versions and {quota[1]} bytes"))
        else:
            ruled.append(row)
    return ruled


def rule_on_words(row: Row, others: Sequence[Row]) -> Row:
    """Quarantine a version one of whose words belongs to a concept that was seen before."""
    if row.state not in (State.LISTED, State.CHECKED):
        return row
    for other in others:
        if seniority(other) < seniority(row):
            typed = ConceptRef(other.owner, other.concept)
            return quarantined(row, f"one of its words is {typed.word}, what people type for {typed}")
    return row


_FINAL = (State.DELETED.value, State.TAMPERED.value, State.QUARANTINED.value)


def seniority(row: Row) -> tuple[int, str, str, int]:
    """Sorts rows by when they were first seen."""
    return row.first_seen_snapshot, row.owner, row.concept, row.version


def quarantined(row: Row, reason: str) -> Row:
    """The row, quarantined for a reason that lies outside of it."""
    return replace(row, state=State.QUARANTINED.value, reason=reason)


def _as_judged(row: Row) -> Row:
    return replace(row, state=row.verdict, reason=row.verdict_reason)
