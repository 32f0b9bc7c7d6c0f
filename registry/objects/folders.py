"""Folders below a registry's root: made as needed, synced, and never entered through a link that leads out."""

# Paths are plain strings here: as pathlib's objects they took a third of a publication's CPU time.
# ruff: noqa: PTH102

import os
import stat
from collections.abc import Iterable, Iterator

from mos.errors import NotAllowedError


def folders_of(root: str, key: str) -> Iterator[str]:
    """The folders below `root` on the way to an object, outermost first; `key` is a checked key."""
    path = root
    for part in key.split("/")[:-1]:
        path = f"{path}/{part}"
        yield path


def make_folders(root: str, key: str) -> set[str]:
    """Make the folders an object needs.

    Returns:
        The folders to sync once the object has its name: its own, and those in which a folder was made.

    Raises:
        NotAllowedError: If a symbolic link leads out of the registry.
    """
    changed = set()
    parent = root
    for folder in folders_of(root, key):
        if not _is_there(root, folder):
            changed.add(parent)
            try:
                os.mkdir(folder)
            except FileExistsError:  # another publisher was faster; syncing what it made is ours as well
                _is_there(root, folder)
        parent = folder
    return changed | {parent}


def refuse_links(root: str, key: str) -> None:
    """Refuse to go to an object through a symbolic link that leads out of the registry.

    Raises:
        NotAllowedError: If there is one.
    """
    for folder in folders_of(root, key):
        if not _is_there(root, folder):
            return


def sync_folders(folders: Iterable[str]) -> None:
    """Wait until the entries of folders are on the disk."""
    for folder in sorted(folders):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_there(root: str, folder: str) -> bool:
    try:
        mode = os.lstat(folder).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISLNK(mode):
        target, home = os.path.realpath(folder), os.path.realpath(root)
        if os.path.commonpath([target, home]) != home:
            raise NotAllowedError(f"{folder}: a symbolic link leads out of the registry; remove it")
    return True
