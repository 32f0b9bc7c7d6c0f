"""Folders below a registry's root: made as needed, synced, and never entered through a link that leads out."""

# Paths are plain strings here: as pathlib's objects they took a third of a publication's CPU time.
# ruff: noqa: PTH102

import os
import stat
from collections.abc import Iterable, Iterator

from mos.errors import NotAllowedError


class Folders:
    """The folders of one registry, as one process knows them."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._settled: set[str] = set()  # their names in the folders above them are on the disk

    def make(self, key: str) -> None:
        """Make the folders an object needs.

        Raises:
            NotAllowedError: If a symbolic link leads out of the registry.
        """
        for folder in self._of(key):
            if not self._is_there(folder):
                try:
                    os.mkdir(folder)
                except FileExistsError:  # another publisher was faster
                    self._is_there(folder)

    def sync(self, keys: Iterable[str]) -> None:
        """Wait until the names of these objects are on the disk, each folder's entries once.

        A folder found rather than made counts as new the first time: whoever made it may have died before its name
        was on the disk.
        """
        changed: set[str] = set()
        found: set[str] = set()
        for key in keys:
            parent = self._root
            for folder in self._of(key):
                if folder not in self._settled:
                    changed.add(parent)
                    found.add(folder)
                parent = folder
            changed.add(parent)
        for folder in sorted(changed):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._settled.update(found)

    def refuse_links(self, key: str) -> None:
        """Refuse to go to an object through a symbolic link that leads out of the registry.

        Raises:
            NotAllowedError: If there is one.
        """
        for folder in self._of(key):
            if not self._is_there(folder):
                return

    def _of(self, key: str) -> Iterator[str]:
        """The folders on the way to an object, outermost first."""
        path = self._root
        for part in key.split("/")[:-1]:
            path = f"{path}/{part}"
            yield path

    def _is_there(self, folder: str) -> bool:
        try:
            mode = os.lstat(folder).st_mode
        except FileNotFoundError:
            return False
        if stat.S_ISLNK(mode):
            target, home = os.path.realpath(folder), os.path.realpath(self._root)
            if os.path.commonpath([target, home]) != home:
                raise NotAllowedError(f"{folder}: a symbolic link leads out of the registry; remove it")
        return True
