"""Snapshots of the catalogue: numbered, chained, signed by the indexer; the newest one is the truth."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from mos.concept import ConceptRef
from registry.documents import Envelope, Json, check_format, sha256_hex
from registry.errors import FormatError, ObjectMissingError
from registry.fields import Fields
from registry.keys import PublicKey, SigningKey
from registry.layout import LOG, parse_snapshot_key, snapshot_key
from registry.objects.protocol import ObjectStore

SNAPSHOT_FORMAT = 1
SNAPSHOT_TYPE = "application/vnd.mos.snapshot+json"


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One Parquet file of the catalogue: a run of rows sorted by owner, concept, version.

    Attributes:
        sha256: Of its bytes; also its name.
        num_rows: How many rows.
        first: `(owner, concept)` of the first row.
        last: `(owner, concept)` of the last row.
    """

    sha256: str
    num_rows: int
    first: tuple[str, str]
    last: tuple[str, str]

    def may_hold(self, ref: ConceptRef) -> bool:
        """Whether rows of a concept can be in this file."""
        return self.first <= (ref.owner, ref.name) <= self.last

    def to_json(self) -> Json:
        """As stored."""
        return {"sha256": self.sha256, "rows": self.num_rows, "first": list(self.first), "last": list(self.last)}

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """Read from a snapshot."""
        first, last = fields.texts("first", most=2), fields.texts("last", most=2)
        if len(first) != 2 or len(last) != 2:
            raise FormatError(f"{fields.what}: a file's bounds are owner and concept")
        entry = cls(
            sha256=fields.text("sha256", pattern="[0-9a-f]{64}"),
            num_rows=fields.integer("rows"),
            first=(first[0], first[1]),
            last=(last[0], last[1]),
        )
        fields.finish()
        return entry


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The whole catalogue at one moment.

    Attributes:
        registry_id: Of the registry it belongs to.
        number: 1 for the first; there are no gaps.
        previous_sha256: Of the snapshot before, empty for the first.
        at: When the indexer wrote it.
        data: The files with the rows, in order.
        embeddings: Scorer name -> files with the embeddings, in order.
    """

    registry_id: str
    number: int
    previous_sha256: str
    at: str
    data: tuple[ShardEntry, ...] = ()
    embeddings: Mapping[str, tuple[ShardEntry, ...]] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Versions known, in any state."""
        return sum(shard.num_rows for shard in self.data)

    def sign(self, key: SigningKey) -> bytes:
        """The envelope's bytes."""
        document = {
            "format": SNAPSHOT_FORMAT,
            "registry_id": self.registry_id,
            "number": self.number,
            "previous_sha256": self.previous_sha256,
            "at": self.at,
            "data": [shard.to_json() for shard in self.data],
            "embeddings": {name: [s.to_json() for s in shards] for name, shards in self.embeddings.items()},
        }
        return Envelope.seal(document, SNAPSHOT_TYPE, key).to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes, number: int, registry_id: str, indexer: PublicKey) -> Self:
        """Read a snapshot and check that the indexer signed it for this registry and place.

        Raises:
            FormatError: If it is malformed, of a newer format, or of another registry or number.
            SignatureError: If the indexer did not sign it.
        """
        what = f"catalogue snapshot {number}"
        envelope = Envelope.from_bytes(data, SNAPSHOT_TYPE, what)
        envelope.verify(indexer, what)
        document = envelope.document(what)
        check_format(document, SNAPSHOT_FORMAT, what)
        fields = Fields(document, what)
        fields.integer("format", least=1)
        embeddings = fields.document("embeddings")
        snapshot = cls(
            registry_id=fields.text("registry_id", pattern=registry_id),
            number=fields.integer("number", least=number, most=number),
            previous_sha256=fields.text("previous_sha256", longest=64),
            at=fields.time("at"),
            data=_read_shards(fields, "data"),
            embeddings={name: _read_shards(Fields(embeddings, what), name) for name in embeddings},
        )
        fields.finish()
        return snapshot


def newest_snapshot_number(store: ObjectStore, at_least: int = 0) -> int:
    """The number of the newest snapshot, or `at_least` if no newer one is there.

    A listing may be stale, so after it the next numbers are asked for by key.
    """
    newest = at_least
    for stored in store.list(LOG, after=snapshot_key(at_least) if at_least else ""):
        newest = max(newest, parse_snapshot_key(stored.key) or 0)
    while store.head(snapshot_key(newest + 1)) is not None:
        newest += 1
    return newest


def read_snapshot(store: ObjectStore, number: int, registry_id: str, indexer: PublicKey) -> tuple[Snapshot, str] | None:
    """Snapshot `number` and the sha256 of its bytes, or None if there is none."""
    try:
        data = store.get(snapshot_key(number))
    except ObjectMissingError:
        return None
    return Snapshot.from_bytes(data, number, registry_id, indexer), sha256_hex(data)


def _read_shards(fields: Fields, name: str) -> tuple[ShardEntry, ...]:
    return tuple(ShardEntry.read(Fields(item, fields.what)) for item in fields.items(name, most=4096))
