"""What an administrator's key does: found a registry, enrol owners, replace their keys, set limits."""

from dataclasses import replace

from mos.concept import check_name
from mos.errors import NotAllowedError, NotFoundError
from registry.errors import ObjectExistsError, ObjectMissingError
from registry.fields import format_time
from registry.home import Home
from registry.keys import PublicKey, SigningKey
from registry.layout import OWNERS, REGISTRY, SELFTEST, hint_key, owner_key
from registry.objects.protocol import ObjectStore
from registry.reading import Shelf
from registry.records import KeyRecord, Limits, OwnerRecord, RegistryRecord
from registry.screening import check_confusable
from registry.ulid import new_ulid


def found_registry(store: ObjectStore, home: Home, limits: Limits | None = None) -> RegistryRecord:
    """Make a new registry; its administrator's and indexer's keys are made and kept in `home`.

    Raises:
        UnsafeBackendError: If the store ignores conditional writes.
        ObjectExistsError: If a registry is there already.
    """
    store.check_conditional_writes(SELFTEST)
    registry_id = new_ulid()
    administrator, indexer = SigningKey.generate("administrator"), SigningKey.generate("indexer")
    record = RegistryRecord(
        registry_id=registry_id,
        administrator=administrator.public,
        indexer=indexer.public,
        limits=limits or Limits(),
    )
    administrator.save(home.registry_key_path(registry_id, "administrator"))
    indexer.save(home.registry_key_path(registry_id, "indexer"))
    try:
        store.create(REGISTRY, record.sign(administrator))
    except ObjectExistsError as error:
        if store.get(REGISTRY) != record.sign(administrator):
            for role in ("administrator", "indexer"):
                home.registry_key_path(registry_id, role).unlink()
            raise ObjectExistsError(f"{store.url}: a registry is there already; open it, or choose another") from error
    home.forget(store.url)
    return record


class Administrator:
    """Acts with the administrator's key of one registry."""

    def __init__(self, shelf: Shelf, now_s: float) -> None:
        """Load the key from home.

        Raises:
            NotAllowedError: If it is not here.
        """
        if not shelf.home.has_registry_key(shelf.record.registry_id, "administrator"):
            raise NotAllowedError(
                f"{shelf.store.url}: no administrator's key in {shelf.home.root}; ask whoever keeps the registry"
            )
        self._shelf = shelf
        self._key = shelf.home.registry_key(shelf.record.registry_id, "administrator")
        self._now = format_time(now_s)

    @property
    def key(self) -> SigningKey:
        """The administrator's key."""
        return self._key

    def enrol(self, owner: str, public: PublicKey, **quota: int | None) -> OwnerRecord:
        """Enrol an owner with a first key; enrolling the same key again changes nothing.

        Args:
            owner: The owner's name.
            public: The owner's public key.
            quota: `max_versions` and `max_bytes`, where they differ from the registry's.

        Raises:
            NotAllowedError: If the name is taken by another key.
            ScreeningError: If the name looks like another owner's.
        """
        check_name(owner, "owner")
        known = self._find(owner)
        if known is not None:
            if known.active_key == public:
                return known
            raise NotAllowedError(f"owner {owner}: enrolled with another key; use mos owner rotate")
        check_confusable(owner, self.owners(), "owner")
        record = OwnerRecord(
            owner=owner,
            serial=1,
            keys=(KeyRecord(public=public, status="active", enrolled_at=self._now),),
            max_versions=quota.get("max_versions"),
            max_bytes=quota.get("max_bytes"),
        )
        return self._write(record)

    def rotate(self, owner: str, public: PublicKey) -> OwnerRecord:
        """Replace an owner's key; versions signed with the old one stay verifiable."""
        return self._write(self._shelf.owner(owner).with_key(public, self._now))

    def revoke(self, owner: str, key_id: str | None = None, since: str | None = None) -> OwnerRecord:
        """Revoke a lost or stolen key; versions first seen after `since` are no longer listed.

        Args:
            owner: The owner.
            key_id: Which key; the active one if None.
            since: The time up to which it is trusted; now if None.
        """
        record = self._shelf.owner(owner)
        active = record.active_key
        if key_id is None and active is None:
            raise NotFoundError(f"owner {owner}: has no active key to revoke")
        return self._write(record.with_revoked(key_id or (active.key_id if active else ""), since or self._now))

    def set_standing(
        self,
        owner: str,
        *,
        suspended: bool | None = None,
        max_versions: int | None = None,
        max_bytes: int | None = None,
    ) -> OwnerRecord:
        """Suspend an owner or lift it, or set another quota; None leaves a value as it is."""
        record = self._shelf.owner(owner)
        changed = replace(
            record,
            serial=record.serial + 1,
            suspended=record.suspended if suspended is None else suspended,
            max_versions=max_versions or record.max_versions,
            max_bytes=max_bytes or record.max_bytes,
        )
        return self._write(changed)

    def owners(self) -> list[str]:
        """Names of all enrolled owners."""
        names = (stored.key.removeprefix(OWNERS) for stored in self._shelf.store.list(OWNERS))
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def _find(self, owner: str) -> OwnerRecord | None:
        try:
            return self._shelf.owner(owner)
        except ObjectMissingError:
            return None

    def _write(self, record: OwnerRecord) -> OwnerRecord:
        """Write a record and send the indexer to look at the owner again."""
        self._shelf.store.put(owner_key(record.owner), record.sign(self._key))
        self._shelf.store.put(hint_key(record.owner, None, new_ulid()), b"")
        self._shelf.home.remember_owner(self._shelf.store.url, record.owner, record.serial)
        return record
