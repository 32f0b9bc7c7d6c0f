"""Garbage: what killed writers, lost races, deletions and old snapshots leave behind."""

import contextlib
import time
from collections import defaultdict
from dataclasses import dataclass, field

from mos.errors import MosError
from registry.errors import ObjectMissingError
from registry.layout import (
    DATA,
    EMBEDDINGS,
    INBOX,
    LOG,
    RUNS,
    SELFTEST,
    USERS,
    Stored,
    parse_hint_key,
    parse_manifest_key,
    parse_snapshot_key,
)
from registry.objects.directory import DirectoryStore
from registry.reading import Catalogue, Shelf, readable_manifest
from registry.snapshot import read_snapshot


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long things nobody names are left alone, in seconds.

    Attributes:
        files_s: Files of owners that no manifest names: a publication may be under way.
        catalogue_s: Catalogue files that no kept snapshot names: an older reader may be at them.
        temporary_s: Half-written files in a directory.
        runs_s: Runs nobody wrote to.
        num_snapshots: How many of the newest snapshots stay.
    """

    files_s: float = 86_400.0
    catalogue_s: float = 86_400.0
    temporary_s: float = 3_600.0
    runs_s: float = 30 * 86_400.0
    num_snapshots: int = 20


@dataclass(kw_only=True)
class Swept:
    """What was, or would be, removed.

    Attributes:
        keys: Objects, in order.
        size_bytes: Of them all.
        num_temporary: Half-written files.
        problems: Why something was left alone, a line each.
    """

    keys: list[str] = field(default_factory=list)
    size_bytes: int = 0
    num_temporary: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, stored: Stored) -> None:
        """Count an object."""
        self.keys.append(stored.key)
        self.size_bytes += stored.size_bytes


def sweep(
    shelf: Shelf, patience: Patience | None = None, *, dry_run: bool = False, now_s: float | None = None
) -> Swept:
    """Remove what nobody needs; safe beside publishers, readers and indexers.

    Args:
        shelf: The registry; its credentials must allow deleting.
        patience: How long things are left alone.
        dry_run: Only say what would go.
        now_s: Unix seconds; the present if None.
    """
    patience = patience or Patience()
    now_s = time.time() if now_s is None else now_s
    swept = Swept()
    _owners_files(shelf, patience, now_s, swept)
    _catalogue_files(shelf, patience, now_s, swept)
    _runs(shelf, patience, now_s, swept)
    for prefix in (INBOX, SELFTEST):
        for stored in shelf.store.list(prefix):
            if parse_hint_key(stored.key) is None and now_s - stored.modified_s >= patience.files_s:
                swept.add(stored)
    if not dry_run:
        for key in swept.keys:
            shelf.store.delete(key)
        if isinstance(shelf.store, DirectoryStore):
            swept.num_temporary = shelf.store.sweep_temporary(patience.temporary_s)
    return swept


def _owners_files(shelf: Shelf, patience: Patience, now_s: float, swept: Swept) -> None:
    """Files that no manifest names, and at once those that only deleted versions name."""
    files: dict[str, list[Stored]] = defaultdict(list)
    needed: dict[str, set[str]] = defaultdict(set)
    doomed: dict[str, set[str]] = defaultdict(set)
    unsure: set[str] = set()
    for stored in shelf.store.list(USERS):
        owner = stored.key.split("/")[1]
        ref = parse_manifest_key(stored.key)
        if "/blobs/" in stored.key or "/selftest/" in stored.key:
            files[owner].append(stored)
        elif ref is not None:
            with contextlib.suppress(ObjectMissingError):
                signed, problem, _ = readable_manifest(shelf, ref)
                if signed is None:
                    unsure.add(owner)
                    swept.problems.append(f"{ref}: {problem}; the files of {owner} are left alone")
                    continue
                deleted = any(item.event.action == "delete" for item in shelf.events(ref)[0])
                (doomed if deleted else needed)[owner].update(entry.sha256 for entry in signed.manifest.files)
    for owner, found in files.items():
        for stored in found:
            name = stored.key.rpartition("/")[2]
            old = now_s - stored.modified_s >= patience.files_s
            if owner not in unsure and name not in needed[owner] and (old or name in doomed[owner]):
                swept.add(stored)


def _catalogue_files(shelf: Shelf, patience: Patience, now_s: float, swept: Swept) -> None:
    try:
        catalogue = shelf.catalogue()
    except MosError as error:
        swept.problems.append(f"{error}; the catalogue is left alone")
        return
    oldest_kept = catalogue.snapshot.number - patience.num_snapshots + 1
    needed = _files_of(catalogue)
    for number in range(max(1, oldest_kept), catalogue.snapshot.number):
        found = read_snapshot(shelf.store, number, shelf.record.registry_id, shelf.record.indexer)
        if found is not None:
            needed |= _files_of(Catalogue(shelf, *found))
    for prefix in (DATA, EMBEDDINGS):
        for stored in shelf.store.list(prefix):
            name = stored.key.removeprefix(prefix).removesuffix(".parquet")
            if name not in needed and now_s - stored.modified_s >= patience.catalogue_s:
                swept.add(stored)
    for stored in shelf.store.list(LOG):
        number = parse_snapshot_key(stored.key) or oldest_kept
        if number < oldest_kept and now_s - stored.modified_s >= patience.catalogue_s:
            swept.add(stored)


def _files_of(catalogue: Catalogue) -> set[str]:
    shards = [*catalogue.snapshot.data]
    for more in catalogue.snapshot.embeddings.values():
        shards += more
    return {shard.sha256 for shard in shards}


def _runs(shelf: Shelf, patience: Patience, now_s: float, swept: Swept) -> None:
    runs: dict[str, list[Stored]] = defaultdict(list)
    for stored in shelf.store.list(RUNS):
        runs[stored.key.split("/")[1]].append(stored)
    for found in runs.values():
        if now_s - max(stored.modified_s for stored in found) >= patience.runs_s:
            for stored in found:
                swept.add(stored)
