"""The indexer: alone trusted to write the catalogue, which it derives from what the owners published.

One run reads the newest snapshot, examines the versions that hints (or a sweep) point at, rules on their
owners, writes the changed files and then the next snapshot, whose creation is the moment of the change.
It may be killed anywhere: files nobody names are swept later, hints are removed last.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from mos.concept import ConceptRef
from mos.errors import MosError, NotFoundError, TryAgainError
from registry.errors import ObjectExistsError, ObjectMissingError
from registry.examine import ArtifactCheck, examine
from registry.fields import format_time
from registry.keys import SigningKey
from registry.layout import (
    DATA,
    EMBEDDINGS,
    INBOX,
    USERS,
    Stored,
    manifest_key,
    manifests_prefix,
    parse_hint_key,
    parse_manifest_key,
    snapshot_key,
)
from registry.reading import Catalogue, Shelf
from registry.row import Row, State
from registry.screening import rivals, rule_on_owner, rule_on_words
from registry.similarity import EmbeddingJob, Scorer
from registry.snapshot import ShardEntry, Snapshot
from registry.writing import create_or_same, holds_blob

Scope = Literal["hints", "sweep", "rebuild"]

_HINT_PATIENCE_S = 900.0
"""A hint that leads to nothing new may be ahead of its manifest; it is kept this long."""


@dataclass(frozen=True, kw_only=True)
class IndexReport:
    """What one run of the indexer did.

    Attributes:
        snapshot: The number of the newest snapshot afterwards.
        num_examined: Versions examined.
        num_changed: Rows that are new or different.
        states: State -> number of rows examined that are in it now.
        problems: What was odd and left out of account, a line each.
    """

    snapshot: int
    num_examined: int
    num_changed: int
    states: dict[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


class Indexer:
    """Derives the catalogue of one registry."""

    def __init__(
        self,
        shelf: Shelf,
        key: SigningKey,
        check_artifact: ArtifactCheck,
        *,
        scorers: Iterable[Scorer] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            shelf: The registry.
            key: The indexer's key.
            check_artifact: Looks into weights.
            scorers: Compute the embeddings that pictures and prompts are compared with.
            clock: Unix seconds.
        """
        self._shelf = shelf
        self._key = key
        self._check_artifact = check_artifact
        self._scorers = tuple(scorers)
        self._clock = clock

    def run(self, scope: Scope = "hints") -> IndexReport:
        """Bring the catalogue up to date.

        Args:
            scope: `hints` looks where publishers say; `sweep` also lists everything for versions nobody
                told of; `rebuild` examines every version anew, files included.

        Raises:
            TryAgainError: If other indexers kept being faster.
        """
        for _ in range(8):
            with contextlib.suppress(ObjectExistsError):
                return self._attempt(scope)
        raise TryAgainError(f"{self._shelf.store.url}: other indexers write all the time; run it again")

    def _attempt(self, scope: Scope) -> IndexReport:
        now = self._clock()
        catalogue = self._shelf.catalogue()
        run = _Run(self._shelf, catalogue, self._check_artifact, format_time(now), rebuild=scope == "rebuild")
        hints = list(self._shelf.store.list(INBOX))
        run.look_at_hints(hints)
        if scope != "hints":
            run.sweep()
        changes = run.rule()
        number = self._commit(catalogue, changes, run.now)
        self._drop_hints(hints, run, now)
        states = Counter(row.state for row in run.examined.values())
        return IndexReport(
            snapshot=number,
            num_examined=len(run.examined),
            num_changed=len(changes),
            states=dict(sorted(states.items())),
            problems=tuple(run.problems),
        )

    def _commit(self, catalogue: Catalogue, changes: dict[ConceptRef, Row], now: str) -> int:
        """Write the changed files and the next snapshot; returns the number of the newest one."""
        from registry.shards import ROW_SCHEMA, merge  # pyarrow takes a moment to import

        old = catalogue.snapshot
        records: dict[tuple[str, str, int], dict[str, Any] | None] = {
            (row.owner, row.concept, row.version): row.to_dict() for row in changes.values()
        }
        data, written = merge(old.data, records, ROW_SCHEMA, catalogue.load) if records else (old.data, {})
        self._write(written, DATA)
        embeddings = self._embed(catalogue, changes)
        if data == old.data and embeddings == dict(old.embeddings):
            return old.number
        snapshot = Snapshot(
            registry_id=old.registry_id,
            number=old.number + 1,
            previous_sha256=catalogue.sha256,
            at=now,
            data=data,
            embeddings=embeddings,
        )
        create_or_same(self._shelf.store, snapshot_key(snapshot.number), snapshot.sign(self._key))
        return snapshot.number

    def _embed(self, catalogue: Catalogue, changes: dict[ConceptRef, Row]) -> dict[str, tuple[ShardEntry, ...]]:
        embeddings = dict(catalogue.snapshot.embeddings)
        job = EmbeddingJob(self._shelf, catalogue)
        for scorer in self._scorers:
            shards, written = job.update(scorer, changes)
            self._write(written, EMBEDDINGS)
            embeddings[scorer.name] = shards
        for name in set(embeddings) - {scorer.name for scorer in self._scorers}:
            shards, written = job.forget(name, changes)
            self._write(written, EMBEDDINGS)
            embeddings[name] = shards
        return embeddings

    def _write(self, written: dict[str, bytes], prefix: str) -> None:
        for sha256, data in written.items():
            key = f"{prefix}{sha256}.parquet"
            if not holds_blob(self._shelf.store, key, sha256, len(data), self._clock()):
                self._shelf.store.put(key, data)
            self._shelf.home.keep(data, sha256, ".parquet")

    def _drop_hints(self, hints: list[Stored], run: "_Run", now: float) -> None:
        for stored in hints:
            if stored.key in run.fruitful_hints or now - stored.modified_s > _HINT_PATIENCE_S:
                self._shelf.store.delete(stored.key)


class _Run:
    """The reading half of one run: which versions to look at, and what they turn out to be."""

    def __init__(
        self, shelf: Shelf, catalogue: Catalogue, check_artifact: ArtifactCheck, now: str, *, rebuild: bool
    ) -> None:
        self._shelf = shelf
        self._catalogue = catalogue
        self._check_artifact = check_artifact
        self._rebuild = rebuild
        self._owners: dict[str, Any] = {}
        self._known: dict[str, dict[ConceptRef, Row]] = {}
        self._moves_left: dict[ConceptRef, int] = {}
        self.now = now
        self.examined: dict[ConceptRef, Row] = {}
        self.problems: list[str] = []
        self.fruitful_hints: set[str] = set()

    def look_at_hints(self, hints: list[Stored]) -> None:
        """Examine what the inbox points at.

        A hint comes before its manifest, so only as many are used up as versions turned out new or changed.
        """
        for stored in hints:
            target = parse_hint_key(stored.key)
            if target is None:
                continue
            owner, name = target
            if name is None:
                self._look_at_owner(owner)
                self.fruitful_hints.add(stored.key)
                continue
            concept = ConceptRef(owner, name)
            if concept not in self._moves_left:
                self._moves_left[concept] = self._look_at_concept(concept)
            if self._moves_left[concept] > 0:
                self._moves_left[concept] -= 1
                self.fruitful_hints.add(stored.key)

    def sweep(self) -> None:
        """Examine every version the store lists that is unknown or unsettled, or all of them in a rebuild."""
        listed = {ref for stored in self._shelf.store.list(USERS) if (ref := parse_manifest_key(stored.key))}
        remembered = {ref for owner in self._all_owners(listed) for ref in self._rows(owner)}
        for ref in sorted(listed | remembered):
            known = self._rows(ref.owner).get(ref)
            if known is None or self._rebuild or known.verdict in (State.UPLOADED, State.CHECKED):
                self._examine(ref)

    def rule(self) -> dict[ConceptRef, Row]:
        """Rule on every owner touched; returns the rows that differ from the catalogue's."""
        changes: dict[ConceptRef, Row] = {}
        touched = sorted({ref.owner for ref in self.examined})
        whole: dict[str, dict[ConceptRef, Row]] = {}
        for owner in touched:
            rows = {**self._rows(owner), **{ref: row for ref, row in self.examined.items() if ref.owner == owner}}
            record = self._owner(owner)
            ruled = (
                list(rows.values())
                if isinstance(record, MosError)
                else rule_on_owner(list(rows.values()), record, self._shelf.record.limits)
            )
            whole[owner] = {row.ref: row for row in ruled}
        for owner in touched:
            for ref, row in whole[owner].items():
                final = rule_on_words(row, self._rivals(row, whole))
                if ref in self.examined:
                    self.examined[ref] = final
                if final != self._rows(owner).get(ref):
                    changes[ref] = final
        return changes

    def _look_at_owner(self, owner: str) -> None:
        listed = {
            ref for stored in self._shelf.store.list(manifests_prefix(owner)) if (ref := parse_manifest_key(stored.key))
        }
        for ref in sorted(listed | set(self._rows(owner))):
            self._examine(ref)

    def _look_at_concept(self, concept: ConceptRef) -> int:
        """Examine a concept's known versions and the next ones by key; returns how many are new or changed."""
        known = {ref: row for ref, row in self._rows(concept.owner).items() if ref.name == concept.name}
        moved = 0
        for ref, row in sorted(known.items()):
            self._examine(ref)
            finding = self.examined.get(ref, row)
            moved += (finding.verdict, finding.num_events) != (row.verdict, row.num_events)
        version = max((ref.version or 0 for ref in known), default=0) + 1
        while self._exists(concept.at(version)):
            self._examine(concept.at(version))
            version, moved = version + 1, moved + 1
        return moved

    def _exists(self, ref: ConceptRef) -> bool:
        return ref in self.examined or self._shelf.store.head(manifest_key(ref)) is not None

    def _examine(self, ref: ConceptRef) -> None:
        if ref in self.examined:
            return
        with contextlib.suppress(ObjectMissingError):
            finding = examine(
                self._shelf,
                ref,
                self._owner(ref.owner),
                self._rows(ref.owner).get(ref),
                now=self.now,
                snapshot=self._catalogue.snapshot.number + 1,
                check_artifact=self._check_artifact,
                reread_files=self._rebuild,
            )
            self.examined[ref] = finding.row
            self.problems += finding.problems

    def _owner(self, owner: str) -> Any:
        """The owner's record, or why there is none that counts."""
        if owner not in self._owners:
            try:
                self._owners[owner] = self._shelf.owner(owner)
            except TryAgainError:
                raise
            except NotFoundError:
                self._owners[owner] = NotFoundError(f"owner {owner} is not enrolled")
            except MosError as error:
                self._owners[owner] = error
        return self._owners[owner]

    def _rows(self, owner: str) -> dict[ConceptRef, Row]:
        if owner not in self._known:
            self._known[owner] = {row.ref: row for row in self._catalogue.owner(owner)}
        return self._known[owner]

    def _all_owners(self, listed: set[ConceptRef]) -> set[str]:
        from registry.shards import owners_in

        known = {owner for shard in self._catalogue.snapshot.data for owner in owners_in(self._catalogue.load(shard))}
        return known | {ref.owner for ref in listed}

    def _rivals(self, row: Row, whole: dict[str, dict[ConceptRef, Row]]) -> list[Row]:
        found = []
        for concept in sorted(rivals(row)):
            rows = whole.get(concept.owner) or self._rows(concept.owner)
            found += [other for other in rows.values() if other.concept == concept.name]
        return found
