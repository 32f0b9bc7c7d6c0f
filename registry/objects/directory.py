"""A registry in a local directory, with the same guarantees as the one on S3.

Create-if-absent is: write a temporary file, fsync it, `link` it to its name, fsync the folder. `link` fails
when the name is taken, so exactly one of any number of racing processes wins, and a name never shows half
an object, whenever a process or the machine dies.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from mos.errors import BadInputError, MosError, NotAllowedError, NotFoundError
from registry.errors import ObjectExistsError, ObjectMissingError, StoreBusyError
from registry.layout import Stored, check_key
from registry.objects import selftest
from registry.ulid import new_ulid

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
        self._root = Path(os.path.abspath(root))  # noqa: PTH100 - resolve() would follow links
        if create:
            with _translated(str(self._root)):
                self._root.mkdir(parents=True, exist_ok=True)
        if not self._root.exists():
            raise NotFoundError(f"{root}: no registry there; make one with mos registry init {root}")
        if not self._root.is_dir():
            raise BadInputError(f"{root}: expected a directory for a registry, found a file")

    @property
    def url(self) -> str:
        """The directory's path."""
        return str(self._root)

    def create(self, key: str, data: bytes) -> None:
        """Write a new object; see `ObjectStore.create`."""
        self._write(key, data, replace=False)

    def put(self, key: str, data: bytes) -> None:
        """Write or replace an object; see `ObjectStore.put`."""
        self._write(key, data, replace=True)

    def get(self, key: str) -> bytes:
        """The whole object; see `ObjectStore.get`."""
        with _translated(self._name(key), missing=f"{self._name(key)}: no such object"):
            path = self._path(key)
            self._refuse_links(path.parent)
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            with os.fdopen(descriptor, "rb") as file:
                return file.read()

    def head(self, key: str) -> Stored | None:
        """Size and time of an object, or None."""
        with _translated(self._name(key)):
            try:
                facts = self._path(key).lstat()
            except (FileNotFoundError, NotADirectoryError):
                return None
            return Stored(key, facts.st_size, facts.st_mtime)

    def list(self, prefix: str, after: str = "") -> Iterator[Stored]:
        """Objects below `prefix` after `after`, in the byte order of their keys."""
        if prefix and not prefix.endswith("/"):
            raise BadInputError(f"listing {prefix!r}: expected a prefix that ends in /")
        folder = self._path(prefix.rstrip("/")) if prefix else self._root
        with _translated(self._name(prefix or ".")):
            self._refuse_links(folder)
            yield from _walk(folder, prefix, after)

    def delete(self, key: str) -> None:
        """Remove an object; none there is not an error."""
        path = self._path(key)
        with _translated(self._name(key)), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._refuse_links(path.parent)
            path.unlink()

    def check_conditional_writes(self, prefix: str) -> None:
        """Try the file system; see `ObjectStore.check_conditional_writes`."""
        selftest.check_conditional_writes(self, prefix)

    def sweep_temporary(self, older_than_s: float) -> int:
        """Remove what killed writers left behind; returns how many files that were."""
        count = 0
        folder = self._root / _TEMPORARY
        with _translated(str(folder)), contextlib.suppress(FileNotFoundError):
            for entry in sorted(folder.iterdir()):
                if time.time() - entry.lstat().st_mtime >= older_than_s:
                    entry.unlink(missing_ok=True)
                    count += 1
        return count

    def _write(self, key: str, data: bytes, *, replace: bool) -> None:
        path = self._path(key)
        temporary = self._root / _TEMPORARY / new_ulid()
        with _translated(self._name(key)):
            made = _make_folders(temporary.parent) + _make_folders(path.parent)
            self._refuse_links(path.parent)
            try:
                _write_durably(temporary, data)
                if replace:
                    temporary.replace(path)
                else:
                    _link_new(temporary, path, self._name(key))
                for folder in {path.parent, *made}:
                    _sync_folder(folder)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    temporary.unlink()

    def _path(self, key: str) -> Path:
        return self._root.joinpath(*check_key(key).split("/"))

    def _name(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _refuse_links(self, folder: Path) -> None:
        """Refuse to go into a folder that a symbolic link leads out of the registry."""
        if not folder.resolve().is_relative_to(self._root.resolve()):
            raise NotAllowedError(f"{folder}: a symbolic link leads out of the registry; remove it")


def _walk(folder: Path, prefix: str, after: str) -> Iterator[Stored]:
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
                yield from _walk(Path(entry.path), key, after)
        elif key > after:
            with contextlib.suppress(FileNotFoundError):
                facts = entry.stat(follow_symlinks=False)
                yield Stored(key, facts.st_size, facts.st_mtime)


def _make_folders(folder: Path) -> list[Path]:
    """Make `folder` and its parents; returns the folders whose entries changed."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
    return [path.parent for path in missing]


def _write_durably(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _link_new(temporary: Path, path: Path, name: str) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise ObjectExistsError(f"{name}: already there") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _translated(name: str, missing: str | None = None) -> Iterator[None]:
    """Turn the operating system's errors into ours, each with the object it happened to."""
    try:
        yield
    except MosError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ObjectMissingError(missing or f"{name}: no such object") from error
    except PermissionError as error:
        raise NotAllowedError(f"{name}: permission denied; ask whoever keeps this registry") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotAllowedError(f"{name}: a symbolic link where an object should be; remove it") from error
        raise StoreBusyError(f"{name}: {_MESSAGES.get(error.errno or 0, error.strerror or str(error))}") from error
