"""Private objects of a run: checkpoints and staged artifacts, never indexed, expiring.

Objects are created once and never changed, so a restarted worker that repeats a step changes nothing;
pointers say which of them counts, and only ever move forward.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from registry.documents import dump_json, parse_json, sha256_hex
from registry.errors import IntegrityError, ObjectExistsError, ObjectMissingError
from registry.fields import Fields
from registry.layout import check_key, run_prefix
from registry.objects.protocol import ObjectStore
from registry.writing import create_or_same


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """Where a pointer points.

    Attributes:
        number: Grows; the highest one counts.
        target: Name of an object of the same run.
        sha256: Of that object.
    """

    number: int
    target: str
    sha256: str


@dataclass(frozen=True)
class ObjectPrefix:
    """The objects of one run. Names are plain segments, such as `checkpoints/000100.safetensors`."""

    store: ObjectStore
    prefix: str

    @classmethod
    def of_run(cls, store: ObjectStore, run_id: str) -> "ObjectPrefix":
        """The private objects of `run_id`."""
        return cls(store, run_prefix(run_id))

    def create(self, name: str, data: bytes) -> bool:
        """Create an object; True if this call did, False if these very bytes were there.

        Raises:
            ObjectExistsError: If other bytes are there.
        """
        return create_or_same(self.store, self._key(name), data)

    def put(self, name: str, data: bytes) -> None:
        """Write or replace an object, for what may be lost or doubled without harm."""
        self.store.put(self._key(name), data)

    def get(self, name: str) -> bytes:
        """An object's bytes; raises ObjectMissingError (a NotFoundError) if there is none."""
        return self.store.get(self._key(name))

    def find(self, name: str) -> bytes | None:
        """An object's bytes, or None."""
        try:
            return self.get(name)
        except ObjectMissingError:
            return None

    def names(self, folder: str = "") -> Iterator[str]:
        """Names of the objects, all or below `folder/`, sorted."""
        prefix = self.prefix + (f"{check_key(folder)}/" if folder else "")
        for stored in self.store.list(prefix):
            yield stored.key.removeprefix(self.prefix)

    def delete(self, name: str) -> None:
        """Remove an object; none there is not an error."""
        self.store.delete(self._key(name))

    def clear(self, folder: str = "") -> int:
        """Remove all objects, or those below `folder/`; returns how many."""
        names = list(self.names(folder))
        for name in names:
            self.delete(name)
        return len(names)

    def point(self, pointer: str, number: int, target: str) -> Pointer:
        """Move a pointer to `target`; a number lower than one set before changes nothing that counts.

        Raises:
            ObjectMissingError: If there is no such target.
            ObjectExistsError: If this number was used for another target.
        """
        made = Pointer(number=number, target=target, sha256=sha256_hex(self.get(target)))
        self.create(self._pointer_name(pointer, number), dump_json({"target": made.target, "sha256": made.sha256}))
        return made

    def pointer(self, pointer: str) -> Pointer | None:
        """Where a pointer points now, or None if it was never set."""
        folder = f"pointers/{check_key(pointer)}"
        newest = max(self.names(folder), default=None)
        if newest is None:
            return None
        fields = Fields(parse_json(self.get(newest), newest), newest)
        number = int(newest.rpartition("/")[2])
        return Pointer(number=number, target=fields.text("target"), sha256=fields.text("sha256", longest=64))

    def follow(self, pointer: str) -> tuple[Pointer, bytes] | None:
        """What a pointer points at, verified, or None if it was never set.

        Raises:
            IntegrityError: If the object changed since.
        """
        found = self.pointer(pointer)
        if found is None:
            return None
        data = self.get(found.target)
        if sha256_hex(data) != found.sha256:
            raise IntegrityError(f"{self.store.url}/{self._key(found.target)}: changed since it was written")
        return found, data

    def _pointer_name(self, pointer: str, number: int) -> str:
        if not 0 <= number < 10**20:
            raise ObjectExistsError(f"pointer {pointer}: number {number} is out of range")
        return f"pointers/{check_key(pointer)}/{number:020d}"

    def _key(self, name: str) -> str:
        return self.prefix + check_key(name)
