"""A registry in a local directory, with the same guarantees as the one on S3.

Create-if-absent is: write a temporary file, fsync it, `link` it to its name, fsync the folder. `link` fails
when the name is taken, so exactly one of any number of racing processes wins, and a name never shows half
an object, whenever a process or the machine dies. Objects wanted together are all written and synced before
the first is named, and then each folder is synced once.
"""

# Paths are plain strings here: as pathlib's objects they took a third of a publication's CPU time.
# ruff: noqa: PTH100, PTH103, PTH105, PTH108, PTH110, PTH112, PTH120, PTH123

import contextlib
import errno
import os
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from mos.errors import BadInputError, MosError, NotAllowedError, NotFoundError
from registry.errors import ObjectExistsError, ObjectMissingError, StoreBusyError
from registry.layout import Stored, check_key
from registry.objects import selftest
from registry.objects.folders import Folders

_TEMPORARY = ".tmp"
_MESSAGES = {
    errno.ENOSPC: "the disk is full; free some space and run it again",
    errno.EDQUOT: "the disk quota is used up; free some space and run it again",
}


class DirectoryStore:
    """Objects as files below one directory; implements `ObjectStore`."""

    def __init__(self, root: Path, *, create: bool = False) -> None:
        """Open the directory.

        Args:
            root: Where the objects lie.
            create: Make the directory if it is not there.

        Raises:
            NotFoundError: If it is not there and was not to be made.
            BadInputError: If something else lies there.
        """
        self._root = os.path.abspath(root)
        if create:
            with _translated(self._root):
                os.makedirs(self._root, exist_ok=True)
        if not os.path.exists(self._root):
            raise NotFoundError(f"{root}: no registry there; make one with mos registry init {root}")
        if not os.path.isdir(self._root):
            raise BadInputError(f"{root}: expected a directory for a registry, found a file")
        self._folders = Folders(self._root)

    @property
    def url(self) -> str:
        """The directory's path."""
        return self._root

    def create(self, key: str, data: bytes) -> None:
        """Write a new object; see `ObjectStore.create`."""
        path = self._path(key)
        with _translated(path):
            self._folders.make(key)
            temporary = self._write_temporary(data)
            try:
                os.link(temporary, path)
            except FileExistsError as error:
                raise ObjectExistsError(f"{path}: already there") from error
            finally:
                _remove(temporary)
            self._folders.sync([key])

    def put(self, key: str, data: bytes) -> None:
        """Write or replace an object; see `ObjectStore.put`."""
        self.put_all({key: data})

    def put_all(self, objects: Mapping[str, bytes], *, present: Collection[str] = ()) -> None:
        """Write or replace several objects; see `ObjectStore.put_all`."""
        temporaries: dict[str, str] = {}
        try:
            for key, data in objects.items():
                with _translated(self._path(key)):
                    self._folders.make(key)
                    temporaries[key] = self._write_temporary(data)
            for key in objects:
                with _translated(self._path(key)):
                    os.replace(temporaries[key], self._path(key))
                    del temporaries[key]
        finally:
            for temporary in temporaries.values():
                _remove(temporary)
        with _translated(self._root):
            self._folders.sync([*objects, *map(check_key, present)])

    def get(self, key: str, *, at_most: int | None = None) -> bytes:
        """The object or its beginning; see `ObjectStore.get`."""
        path = self._path(key)
        with _translated(path):
            self._folders.refuse_links(key)
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            with open(descriptor, "rb", buffering=0) as file:
                if at_most is None or os.fstat(descriptor).st_size <= at_most:
                    return file.readall()
                return file.read(at_most)

    def head(self, key: str) -> Stored | None:
        """Size and time of an object, or None."""
        path = self._path(key)
        with _translated(path):
            try:
                facts = os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                return None
            return Stored(key, facts.st_size, facts.st_mtime)

    def list(self, prefix: str, after: str = "") -> Iterator[Stored]:
        """Objects below `prefix` after `after`, in the byte order of their keys."""
        if prefix and not prefix.endswith("/"):
            raise BadInputError(f"listing {prefix!r}: expected a prefix that ends in /")
        folder = self._path(prefix[:-1]) if prefix else self._root
        with _translated(folder):
            self._folders.refuse_links(prefix)
            yield from _walk(folder, prefix, after)

    def delete(self, key: str) -> None:
        """Remove an object; none there is not an error."""
        path = self._path(key)
        with _translated(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._folders.refuse_links(key)
            os.unlink(path)

    def check_conditional_writes(self, prefix: str) -> None:
        """Try the file system; see `ObjectStore.check_conditional_writes`."""
        selftest.check_conditional_writes(self, prefix)

    def sweep_temporary(self, older_than_s: float) -> int:
        """Remove what killed writers left behind; returns how many files that were."""
        count = 0
        folder = Path(self._root, _TEMPORARY)
        with _translated(str(folder)), contextlib.suppress(FileNotFoundError):
            for entry in sorted(folder.iterdir()):
                if time.time() - entry.lstat().st_mtime >= older_than_s:
                    entry.unlink(missing_ok=True)
                    count += 1
        return count

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"

    def _write_temporary(self, data: bytes) -> str:
        """A new file with these bytes, on the disk, under a name nobody looks at."""
        path = f"{self._root}/{_TEMPORARY}/{os.urandom(16).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            descriptor = os.open(path, flags, 0o644)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            descriptor = os.open(path, flags, 0o644)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(descriptor, left) :]
            if data:  # an empty object is its name, and that comes with the folder
                os.fsync(descriptor)
        except BaseException:
            _remove(path)
            raise
        finally:
            os.close(descriptor)
        return path


def _remove(temporary: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # it has its name by now
        os.unlink(temporary)


def _walk(folder: str, prefix: str, after: str) -> Iterator[Stored]:
    """Every file below `folder`; temporary and foreign dot files are no objects."""
    try:
        with os.scandir(folder) as entries:
            found = [(f"{e.name}/" if e.is_dir(follow_symlinks=False) else e.name, e) for e in entries]
    except (FileNotFoundError, NotADirectoryError):
        return
    for name, entry in sorted(found, key=lambda pair: pair[0]):
        key = prefix + name
        if name.startswith("."):
            continue
        if name.endswith("/"):
            if not after or after < key + "\U0010ffff":
                yield from _walk(entry.path, key, after)
        elif key > after:
            with contextlib.suppress(FileNotFoundError):
                facts = entry.stat(follow_symlinks=False)
                yield Stored(key, facts.st_size, facts.st_mtime)


@contextlib.contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turn the operating system's errors into ours, each with the object it happened to."""
    try:
        yield
    except MosError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ObjectMissingError(f"{name}: no such object") from error
    except PermissionError as error:
        raise NotAllowedError(f"{name}: permission denied; ask whoever keeps this registry") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotAllowedError(f"{name}: a symbolic link where an object should be; remove it") from error
        raise StoreBusyError(f"{name}: {_MESSAGES.get(error.errno or 0, error.strerror or str(error))}") from error
