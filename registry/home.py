"""What a client keeps at home: keys, a cache of verified files, and what it has seen of each registry.

The home is `MOS_HOME`, by default `~/.mos`. Nothing in it is ever sent anywhere but public keys.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from registry.documents import dump_json, sha256_hex
from registry.errors import FormatError, RollbackError, SignatureError
from registry.keys import OwnerKey, SigningKey
from registry.layout import check_sha256
from registry.ulid import new_ulid


@dataclass(kw_only=True)
class Seen:
    """What a client remembers of one registry.

    Attributes:
        registry_id: Of registry.json at first sight.
        administrator: Its key at first sight (text form).
        snapshot: Highest snapshot number seen.
        snapshot_sha256: Of that snapshot's bytes.
        owners: Owner -> highest serial of the owner's record seen.
    """

    registry_id: str = ""
    administrator: str = ""
    snapshot: int = 0
    snapshot_sha256: str = ""
    owners: dict[str, int] = field(default_factory=dict)


class Home:
    """One folder of keys, cache and memory."""

    def __init__(self, root: Path | str | None = None) -> None:
        named = root if root is not None else os.environ.get("MOS_HOME") or Path.home() / ".mos"
        self.root = Path(named).expanduser()

    def owner_key_path(self, owner: str) -> Path:
        """Where an owner's key lies."""
        return self.root / "keys" / "owners" / f"{owner}.key"

    def owner_key(self, owner: str) -> OwnerKey:
        """An owner's key; raises NotFoundError if it is not here."""
        return OwnerKey.load(self.owner_key_path(owner))

    def has_owner_key(self, owner: str) -> bool:
        """Whether this is a home of `owner`."""
        return self.owner_key_path(owner).is_file()

    def registry_key_path(self, registry_id: str, role: str) -> Path:
        """Where the administrator's or indexer's key of a registry lies."""
        return self.root / "keys" / "registries" / f"{registry_id}-{role}.key"

    def registry_key(self, registry_id: str, role: str) -> SigningKey:
        """The `administrator` or `indexer` key of a registry; raises NotFoundError if it is not here."""
        return SigningKey.read(self.registry_key_path(registry_id, role))

    def has_registry_key(self, registry_id: str, role: str) -> bool:
        """Whether this home can act as the `administrator` or `indexer` of a registry."""
        return self.registry_key_path(registry_id, role).is_file()

    def cached(self, sha256: str, suffix: str = "") -> Path | None:
        """A cached file whose bytes still have this sha256, else None; a damaged one is removed."""
        path = self.cache_path(sha256, suffix)
        try:
            if sha256_hex(path.read_bytes()) == sha256:
                return path
        except FileNotFoundError:
            return None
        path.unlink(missing_ok=True)
        return None

    def keep(self, data: bytes, sha256: str, suffix: str = "") -> Path:
        """Put verified bytes into the cache."""
        path = self.cache_path(sha256, suffix)
        write_atomically(path, data)
        return path

    def drop(self, sha256: str, suffix: str = "") -> None:
        """Remove a file from the cache."""
        self.cache_path(sha256, suffix).unlink(missing_ok=True)

    def fused_path(self, manifest_sha256: str) -> Path:
        """Where the files of a fused model lie together: named by its manifest."""
        return self.root / "cache" / "fused" / check_sha256(manifest_sha256)

    def cache_path(self, sha256: str, suffix: str = "") -> Path:
        """Where a file is cached: named by its content alone."""
        return self.root / "cache" / "sha256" / check_sha256(sha256)[:2] / f"{sha256}{suffix}"

    def seen(self, url: str) -> Seen:
        """What is remembered of the registry at `url`."""
        try:
            return Seen(**json.loads(self._seen_path(url).read_bytes()))
        except FileNotFoundError:
            return Seen()
        except (ValueError, TypeError) as error:
            raise FormatError(f"{self._seen_path(url)}: damaged; remove it to start over with {url}") from error

    def pin(self, url: str, registry_id: str, administrator: str) -> None:
        """Remember a registry at first sight and insist on the same administrator from then on.

        Raises:
            SignatureError: If another registry now answers under this URL.
        """
        seen = self.seen(url)
        if seen.registry_id == registry_id and seen.administrator == administrator:
            return
        if seen.registry_id:
            raise SignatureError(
                f"{url}: its administrator's key is not the one seen before; if the registry was really made anew, "
                f"run mos registry forget {url}"
            )
        with self.updating(url) as seen:
            seen.registry_id, seen.administrator = registry_id, administrator

    def remember_snapshot(self, url: str, number: int, sha256: str) -> None:
        """Insist that the catalogue never goes back.

        Raises:
            RollbackError: If a newer one, or another one of the same number, was seen before.
        """
        seen = self.seen(url)
        if (seen.snapshot, seen.snapshot_sha256) == (number, sha256):
            return
        with self.updating(url) as seen:
            if number < seen.snapshot:
                raise RollbackError(
                    f"{url}: its newest catalogue is number {number}, number {seen.snapshot} was seen before; "
                    "ask whoever keeps this registry"
                )
            if number == seen.snapshot and sha256 != seen.snapshot_sha256:
                raise RollbackError(f"{url}: catalogue {number} is not the one seen before; ask whoever keeps it")
            seen.snapshot, seen.snapshot_sha256 = number, sha256

    def remember_owner(self, url: str, owner: str, serial: int) -> None:
        """Insist that an owner's record never goes back.

        Raises:
            RollbackError: If a newer one was seen before.
        """
        known = self.seen(url).owners.get(owner, 0)
        if serial < known:
            raise RollbackError(f"{url}: record {serial} of owner {owner} is older than record {known} seen before")
        if serial > known:
            with self.updating(url) as seen:
                seen.owners[owner] = max(serial, seen.owners.get(owner, 0))

    def forget(self, url: str) -> None:
        """Forget a registry, for when it was really made anew."""
        self._seen_path(url).unlink(missing_ok=True)

    @contextlib.contextmanager
    def updating(self, url: str) -> Iterator[Seen]:
        """Change what is remembered of a registry, one process at a time."""
        path = self._seen_path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            seen = self.seen(url)
            yield seen
            write_atomically(path, dump_json(vars(seen)))

    def _seen_path(self, url: str) -> Path:
        return self.root / "registries" / f"{sha256_hex(url.encode())[:32]}.json"


def write_atomically(path: Path, data: bytes) -> None:
    """Write a local file so that readers see all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{new_ulid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
