"""Verified reading: registry.json, owners, manifests, events and the catalogue, each checked as it is read."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from mos.concept import ConceptRef
from mos.errors import MosError
from registry.documents import MAX_DOCUMENT_BYTES, sha256_hex
from registry.errors import FormatError, IntegrityError, ObjectMissingError, RollbackError
from registry.event import SignedEvent
from registry.home import Home
from registry.layout import (
    DATA,
    EMBEDDINGS,
    REGISTRY,
    blob_key,
    event_key,
    manifest_key,
    manifests_prefix,
    owner_key,
    parse_manifest_key,
)
from registry.manifest import FileEntry, SignedManifest, check_digest
from registry.objects.protocol import ObjectStore
from registry.objects.settled import read_settled
from registry.records import OwnerRecord, RegistryRecord
from registry.row import Row
from registry.snapshot import ShardEntry, Snapshot, newest_snapshot_number, read_snapshot


@dataclass(frozen=True)
class Shelf:
    """A store, its signed record, and the home of whoever reads it."""

    store: ObjectStore
    record: RegistryRecord
    home: Home
    _verified: dict[str, tuple[bytes, OwnerRecord]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, store: ObjectStore, home: Home) -> "Shelf":
        """Read registry.json and pin its administrator.

        Raises:
            NotFoundError: If there is no registry.
            SignatureError: If it was changed, or is another one than was seen here before.
        """
        try:
            data = store.get(REGISTRY)
        except ObjectMissingError as error:
            raise ObjectMissingError(
                f"{store.url}: no registry there; make one with mos registry init {store.url}"
            ) from error
        record = RegistryRecord.from_bytes(data, store.url)
        home.pin(store.url, record.registry_id, record.administrator.text)
        return cls(store, record, home)

    def owner(self, owner: str) -> OwnerRecord:
        """An owner's record, signed by the administrator and not older than one seen before.

        Raises:
            NotFoundError: If the owner is not enrolled.
        """
        try:
            data = self.store.get(owner_key(owner))
        except ObjectMissingError as error:
            raise ObjectMissingError(
                f"owner {owner}: not enrolled in {self.store.url}; run mos owner enrol {owner}"
            ) from error
        record = self._owner_record(owner, data)
        self.home.remember_owner(self.store.url, owner, record.serial)
        return record

    def _owner_record(self, owner: str, data: bytes) -> OwnerRecord:
        """Parse and verify a record, unless these very bytes were verified before."""
        known = self._verified.get(owner)
        if known is not None and known[0] == data:
            return known[1]
        try:
            record = OwnerRecord.from_bytes(data, owner, self.record.administrator)
        except MosError:  # the record, or only this answer
            data = read_settled(self.store, owner_key(owner))
            record = OwnerRecord.from_bytes(data, owner, self.record.administrator)
        self._verified[owner] = (data, record)
        return record

    def manifest(self, ref: ConceptRef, *, settled: bool = False) -> SignedManifest:
        """A version's manifest, parsed; its signature is for the caller to check.

        `settled` guards against a damaged answer where something lasting follows from it, see `read_settled`.
        """
        try:
            key = manifest_key(ref)
            data = read_settled(self.store, key) if settled else self.store.get(key, at_most=MAX_DOCUMENT_BYTES + 1)
            return SignedManifest.from_bytes(data, ref)
        except ObjectMissingError as error:
            raise ObjectMissingError(f"{ref}: no such version in {self.store.url}; see mos concept ls") from error

    def versions(self, ref: ConceptRef, *, past_listing: bool = True) -> list[int]:
        """The versions of a concept, oldest first.

        A listing may be stale, so after it the next versions are asked for by key; `past_listing` says whether.
        """
        found = (parse_manifest_key(stored.key) for stored in self.store.list(manifests_prefix(ref.owner, ref.name)))
        versions = sorted(one.version for one in found if one is not None and one.version is not None)
        following = versions[-1] + 1 if versions else 1
        while past_listing and self.store.head(manifest_key(ref.at(following))) is not None:
            versions.append(following)
            following += 1
        return versions

    def events(self, ref: ConceptRef, num_known: int = 0) -> tuple[list[SignedEvent], list[str]]:
        """The events of a version, by key from number 1 on (a listing may be stale), and what was unreadable.

        Args:
            ref: The version.
            num_known: How many there are at least; one missing before is reported.
        """
        events: list[SignedEvent] = []
        problems: list[str] = []
        number = 1
        while True:
            try:
                events.append(SignedEvent.from_bytes(read_settled(self.store, event_key(ref, number)), ref, number))
            except ObjectMissingError:
                if number > num_known:
                    return events, problems
                problems.append(f"event {number} of {ref} is gone")
            except FormatError as error:
                problems.append(str(error))
            number += 1

    def is_deleted(self, ref: ConceptRef) -> bool:
        """Whether a version has an event that deletes it."""
        return any(item.event.action == "delete" for item in self.events(ref)[0])

    def file(self, ref: ConceptRef, entry: FileEntry) -> bytes:
        """A file of a version, verified; a damaged answer is asked for once more."""
        key, at_most = blob_key(ref.owner, entry.sha256), entry.size_bytes + 1
        try:
            return check_digest(self.store.get(key, at_most=at_most), entry, str(ref))
        except IntegrityError:
            return check_digest(self.store.get(key, at_most=at_most), entry, str(ref))

    def catalogue(self) -> "Catalogue":
        """The newest snapshot of the catalogue.

        Raises:
            RollbackError: If it is older than one seen before.
        """
        seen = self.home.seen(self.store.url)
        number = newest_snapshot_number(self.store, seen.snapshot)
        found = read_snapshot(self.store, number, self.record.registry_id, self.record.indexer) if number else None
        if number and found is None:
            raise RollbackError(
                f"{self.store.url}: catalogue {number}, seen before, is gone; ask whoever keeps this registry"
            )
        if found is None:
            empty = Snapshot(registry_id=self.record.registry_id, number=0, previous_sha256="", at="")
            return Catalogue(self, empty, "")
        snapshot, sha256 = found
        self.home.remember_snapshot(self.store.url, number, sha256)
        return Catalogue(self, snapshot, sha256)


@dataclass(frozen=True)
class Catalogue:
    """One snapshot with its files, which are fetched into the cache and verified as they are needed."""

    shelf: Shelf
    snapshot: Snapshot
    sha256: str

    def load(self, shard: ShardEntry, prefix: str = DATA) -> bytes:
        """The bytes of a catalogue file.

        Raises:
            IntegrityError: If they are not those the snapshot names.
        """
        cached = self.shelf.home.cached(shard.sha256, ".parquet")
        if cached is not None:
            return cached.read_bytes()
        data = self._fetch(shard, prefix)
        self.shelf.home.keep(data, shard.sha256, ".parquet")
        return data

    def load_embeddings(self, shard: ShardEntry) -> bytes:
        """The bytes of a file of embeddings."""
        return self.load(shard, EMBEDDINGS)

    def paths(self) -> list[str]:
        """Local paths of every file with rows."""
        for shard in self.snapshot.data:
            self.load(shard)
        return [str(self.shelf.home.cache_path(shard.sha256, ".parquet")) for shard in self.snapshot.data]

    def rows(self) -> Iterator[Row]:
        """Every row, in order."""
        from registry.shards import read_table

        for shard in self.snapshot.data:
            for record in read_table(self.load(shard)).to_pylist():
                yield Row.from_dict(record)

    def concept(self, ref: ConceptRef) -> list[Row]:
        """Every known version of a concept, oldest first."""
        from registry.shards import read_concept  # pyarrow takes a moment to import

        records = [
            record
            for shard in self.snapshot.data
            if shard.may_hold(ref)
            for record in read_concept(self.load(shard), ref)
        ]
        return [Row.from_dict(record) for record in records]

    def owner(self, owner: str) -> list[Row]:
        """Every known version of an owner."""
        from registry.shards import read_owner

        shards = [shard for shard in self.snapshot.data if shard.first[0] <= owner <= shard.last[0]]
        return [Row.from_dict(record) for shard in shards for record in read_owner(self.load(shard), owner)]

    def version(self, ref: ConceptRef) -> Row | None:
        """The row of one version, or None if the indexer has not seen it."""
        return next((row for row in self.concept(ref) if row.version == ref.version), None)

    def _fetch(self, shard: ShardEntry, prefix: str) -> bytes:
        key = f"{prefix}{shard.sha256}.parquet"
        for _ in range(2):
            data = self.shelf.store.get(key)
            if sha256_hex(data) == shard.sha256:
                return data
        raise IntegrityError(f"{self.shelf.store.url}/{key}: damaged; rebuild with mos registry rebuild")


def readable_manifest(shelf: Shelf, ref: ConceptRef, known_sha256: str = "") -> tuple[SignedManifest | None, str, str]:
    """A manifest, or why it cannot be read, and the sha256 of its bytes; a damaged answer is asked for again.

    Raises:
        ObjectMissingError: If there is none.
    """
    data = read_settled(shelf.store, manifest_key(ref), known_sha256)
    try:
        return SignedManifest.from_bytes(data, ref), "", sha256_hex(data)
    except MosError as error:
        return None, str(error), sha256_hex(data)
