"""The administrator's documents: what the registry is, and who its owners are."""

from dataclasses import dataclass, field, fields, replace
from typing import Literal, Self

from mos.concept import check_name
from mos.errors import BadInputError, ConflictError, NotFoundError
from registry.documents import Envelope, Json, check_format
from registry.fields import Fields, check_time
from registry.keys import PublicKey, SigningKey

REGISTRY_FORMAT = 1
OWNER_FORMAT = 1
REGISTRY_TYPE = "application/vnd.mos.registry+json"
OWNER_TYPE = "application/vnd.mos.owner+json"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a registry accepts.

    Attributes:
        max_file_bytes: Longest single file.
        max_versions: Versions an owner may have, unless the owner's record says otherwise.
        max_owner_bytes: Bytes of all versions of an owner, unless the owner's record says otherwise.
        max_rank: Largest rank of a single concept.
        max_norm_ratio: Largest Frobenius norm of a concept's weight update, as a multiple of the base weight's.
        needs_approval: Whether an administrator must approve a version before it is listed.
        grant_grace_s: How long after a grant's expiry the indexer may first see its manifest, seconds.
    """

    max_file_bytes: int = 1 << 30
    max_versions: int = 10_000
    max_owner_bytes: int = 1 << 40
    max_rank: int = 256
    max_norm_ratio: int = 4
    needs_approval: bool = False
    grant_grace_s: int = 86_400

    def __post_init__(self) -> None:
        for item in fields(self):
            if item.name != "needs_approval" and getattr(self, item.name) < 1:
                raise BadInputError(f"{item.name} is {getattr(self, item.name)}, expected at least 1")

    def to_json(self) -> Json:
        """As stored."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @classmethod
    def read(cls, source: Fields) -> Self:
        """Read from registry.json."""
        numbers = {
            item.name: source.integer(item.name, least=1) for item in fields(cls) if item.name != "needs_approval"
        }
        limits = cls(**numbers, needs_approval=source.boolean("needs_approval"))
        source.finish()
        return limits


@dataclass(frozen=True, kw_only=True)
class RegistryRecord:
    """registry.json, signed by the administrator.

    Attributes:
        registry_id: Random name that clients remember the registry by.
        administrator: Key that signs this document and the owners' records.
        indexer: Key that alone signs the catalogue.
        limits: What is accepted.
    """

    registry_id: str
    administrator: PublicKey
    indexer: PublicKey
    limits: Limits = field(default_factory=Limits)

    def sign(self, key: SigningKey) -> bytes:
        """The envelope's bytes."""
        document = {
            "format": REGISTRY_FORMAT,
            "registry_id": self.registry_id,
            "administrator": self.administrator.text,
            "indexer": self.indexer.text,
            "limits": self.limits.to_json(),
        }
        return Envelope.seal(document, REGISTRY_TYPE, key).to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes, url: str) -> Self:
        """Read registry.json and check that its own administrator signed it.

        Raises:
            FormatError: If it is malformed or of a newer format.
            SignatureError: If it was changed.
        """
        what = f"{url}/registry.json"
        envelope = Envelope.from_bytes(data, REGISTRY_TYPE, what)
        document = envelope.document(what)
        check_format(document, REGISTRY_FORMAT, what)
        source = Fields(document, what)
        source.integer("format", least=1)
        record = cls(
            registry_id=source.text("registry_id", pattern="[0-9A-Z]{26}"),
            administrator=PublicKey(source.text("administrator", longest=43)),
            indexer=PublicKey(source.text("indexer", longest=43)),
            limits=Limits.read(source.nested("limits") or Fields(None, what)),
        )
        source.finish()
        envelope.verify(record.administrator, what)
        return record


@dataclass(frozen=True, kw_only=True)
class KeyRecord:
    """One key of an owner.

    Attributes:
        public: The key.
        status: `active` signs; `retired` was replaced in order; `revoked` is lost or stolen.
        enrolled_at: When the administrator added it.
        ended_at: When it was retired; for a revoked key the time since which it is not trusted.
    """

    public: PublicKey
    status: Literal["active", "retired", "revoked"]
    enrolled_at: str
    ended_at: str | None = None

    def to_json(self) -> Json:
        """As stored."""
        return {
            "public": self.public.text,
            "status": self.status,
            "enrolled_at": self.enrolled_at,
            "ended_at": self.ended_at,
        }

    @classmethod
    def read(cls, source: Fields) -> Self:
        """Read from an owner's record."""
        status = source.text("status", pattern="active|retired|revoked")
        record = cls(
            public=PublicKey(source.text("public", longest=43)),
            status="active" if status == "active" else "retired" if status == "retired" else "revoked",
            enrolled_at=source.time("enrolled_at"),
            ended_at=source.optional_text("ended_at", longest=20),
        )
        if record.ended_at is not None:
            check_time(record.ended_at, source.what)
        elif record.status != "active":
            raise BadInputError(f"{source.what}: a {record.status} key without the time it ended")
        source.finish()
        return record


@dataclass(frozen=True, kw_only=True)
class OwnerRecord:
    """owners/<owner>.json, signed by the administrator; replaced when a key changes.

    Attributes:
        owner: The owner's name.
        serial: Grows by one with every replacement; an older one is refused.
        keys: Every key the owner ever had, oldest first, so that old versions stay verifiable.
        max_versions: The owner's own quota of versions, or None for the registry's.
        max_bytes: The owner's own quota of bytes, or None for the registry's.
        suspended: Whether new versions are refused.
    """

    owner: str
    serial: int
    keys: tuple[KeyRecord, ...]
    max_versions: int | None = None
    max_bytes: int | None = None
    suspended: bool = False

    @property
    def active_key(self) -> PublicKey | None:
        """The key that signs today, or None after a revocation without a successor."""
        return next((key.public for key in reversed(self.keys) if key.status == "active"), None)

    def key(self, key_id: str) -> KeyRecord:
        """The record of one key.

        Raises:
            NotFoundError: If the owner never had it.
        """
        for record in self.keys:
            if record.public.key_id == key_id:
                return record
        raise NotFoundError(f"owner {self.owner}: no key {key_id} was ever enrolled")

    def with_key(self, public: PublicKey, now: str) -> "OwnerRecord":
        """The record after rotating to `public`; the key active before is retired.

        Raises:
            ConflictError: If the owner already had this key.
        """
        if any(record.public == public for record in self.keys):
            raise ConflictError(f"owner {self.owner}: key {public.key_id} was enrolled before; make a new one")
        retired = tuple(
            replace(record, status="retired", ended_at=now) if record.status == "active" else record
            for record in self.keys
        )
        added = KeyRecord(public=public, status="active", enrolled_at=now)
        return replace(self, serial=self.serial + 1, keys=(*retired, added))

    def with_revoked(self, key_id: str, since: str) -> "OwnerRecord":
        """The record after revoking a key; what was first seen after `since` no longer counts."""
        self.key(key_id)
        keys = tuple(
            replace(record, status="revoked", ended_at=since) if record.public.key_id == key_id else record
            for record in self.keys
        )
        return replace(self, serial=self.serial + 1, keys=keys)

    def sign(self, key: SigningKey) -> bytes:
        """The envelope's bytes."""
        document = {
            "format": OWNER_FORMAT,
            "owner": self.owner,
            "serial": self.serial,
            "keys": [record.to_json() for record in self.keys],
            "quota": {"max_versions": self.max_versions or 0, "max_bytes": self.max_bytes or 0},
            "suspended": self.suspended,
        }
        return Envelope.seal(document, OWNER_TYPE, key).to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes, owner: str, administrator: PublicKey) -> Self:
        """Read a record and check the administrator's signature.

        Raises:
            FormatError: If it is malformed, of a newer format or of another owner.
            SignatureError: If the administrator did not sign it.
        """
        what = f"owner record of {owner}"
        envelope = Envelope.from_bytes(data, OWNER_TYPE, what)
        envelope.verify(administrator, what)
        document = envelope.document(what)
        check_format(document, OWNER_FORMAT, what)
        source = Fields(document, what)
        source.integer("format", least=1)
        quota = source.nested("quota") or Fields(None, what)
        record = cls(
            owner=check_name(source.text("owner", pattern=owner), "owner"),
            serial=source.integer("serial", least=1),
            keys=tuple(KeyRecord.read(Fields(item, what)) for item in source.items("keys", most=1000)),
            max_versions=quota.integer("max_versions") or None,
            max_bytes=quota.integer("max_bytes") or None,
            suspended=source.boolean("suspended"),
        )
        quota.finish()
        source.finish()
        return record
