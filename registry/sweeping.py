"""Garbage: what killed writers, lost races, deletions and old snapshots leave behind."""

import contextlib
import math
import time
from collections import defaultdict
from dataclasses import dataclass, field

from mos.errors import MosError
from registry.deletion import is_where_made
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
from registry.manifest import Manifest
from registry.objects.directory import DirectoryStore
from registry.objects.protocol import ObjectStore
from registry.reading import Catalogue, Shelf, readable_manifest
from registry.snapshot import read_snapshot
from registry.writing import REFRESH_AFTER_S

_TICK_S = 1.0
"""A listing and a question for one object may tell the time of writing in different steps."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long things nobody names are left alone, in seconds.

    Attributes:
        files_s: Files of owners that no manifest names: a publication may be under way.
        deleted_s: Files that only deleted versions name: a version published in the last hour, which a listing need
            not show yet, may use such a file; its publisher found it at most six hours old, or wrote it again.
        catalogue_s: Catalogue files since the newest snapshot stopped naming them: an older reader may be at them.
        temporary_s: Half-written files in a directory.
        runs_s: Runs nobody wrote to.
        num_snapshots: How many of the newest snapshots stay; they name the files they had by digest alone.
    """

    files_s: float = 86_400.0
    deleted_s: float = REFRESH_AFTER_S + 2 * 3_600.0
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
    found, deleted = _owners_files(shelf, patience, now_s, swept.problems)
    found += _catalogue_files(shelf, patience, now_s, swept.problems)
    found += _runs(shelf, patience, now_s, deleted)
    for prefix in (INBOX, SELFTEST):
        for stored in shelf.store.list(prefix):
            if parse_hint_key(stored.key) is None and now_s - stored.modified_s >= patience.files_s:
                found.append(stored)
    for stored in found:
        if dry_run or _remove(shelf.store, stored):
            swept.keys.append(stored.key)
            swept.size_bytes += stored.size_bytes
    if not dry_run and isinstance(shelf.store, DirectoryStore):
        swept.num_temporary = shelf.store.sweep_temporary(patience.temporary_s)
    return swept


def _remove(store: ObjectStore, stored: Stored) -> bool:
    """Remove an object, unless somebody has written it again since it was listed."""
    found = store.head(stored.key)
    if found is None or found.modified_s > stored.modified_s + _TICK_S:
        return False
    store.delete(stored.key)
    return True


def _owners_files(
    shelf: Shelf, patience: Patience, now_s: float, problems: list[str]
) -> tuple[list[Stored], list[Manifest]]:
    """Files that no manifest names, and sooner those that only deleted versions name; also what was deleted."""
    garbage: list[Stored] = []
    deleted: list[Manifest] = []
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
                    problems.append(f"{ref}: {problem}; the files of {owner} are left alone")
                    continue
                is_deleted = shelf.is_deleted(ref)
                (doomed if is_deleted else needed)[owner].update(entry.sha256 for entry in signed.manifest.files)
                deleted += [signed.manifest] * is_deleted
    for owner, found in files.items():
        for stored in found:
            name = stored.key.rpartition("/")[2]
            patience_s = patience.deleted_s if name in doomed[owner] else patience.files_s
            if owner not in unsure and name not in needed[owner] and now_s - stored.modified_s >= patience_s:
                garbage.append(stored)
    return garbage, deleted


def _catalogue_files(shelf: Shelf, patience: Patience, now_s: float, problems: list[str]) -> list[Stored]:
    try:
        catalogue = shelf.catalogue()
    except MosError as error:
        problems.append(f"{error}; the catalogue is left alone")
        return []
    garbage: list[Stored] = []
    log = sorted(shelf.store.list(LOG), key=lambda stored: stored.key)
    needed = _files_of(catalogue) | _files_of_late(shelf, catalogue, log, now_s - patience.catalogue_s)
    for prefix in (DATA, EMBEDDINGS):
        for stored in shelf.store.list(prefix):
            name = stored.key.removeprefix(prefix).removesuffix(".parquet")
            if name not in needed and now_s - stored.modified_s >= patience.catalogue_s:
                garbage.append(stored)
    oldest_kept = catalogue.snapshot.number - patience.num_snapshots + 1
    for stored in log:
        number = parse_snapshot_key(stored.key) or oldest_kept
        if number < oldest_kept and now_s - stored.modified_s >= patience.catalogue_s:
            garbage.append(stored)
    return garbage


def _files_of_late(shelf: Shelf, newest: Catalogue, log: list[Stored], since_s: float) -> set[str]:
    """The files of snapshots that were the newest at some time since then.

    What was deleted still stands in older ones, so they are not kept for longer than a reader takes.
    """
    needed: set[str] = set()
    replaced_s = math.inf  # of the last one listed: its successor may not be listed yet
    for stored in reversed(log):
        number, is_late, replaced_s = parse_snapshot_key(stored.key) or 0, replaced_s >= since_s, stored.modified_s
        if is_late and 0 < number < newest.snapshot.number:
            found = read_snapshot(shelf.store, number, shelf.record.registry_id, shelf.record.indexer)
            if found is not None:
                needed |= _files_of(Catalogue(shelf, *found))
    return needed


def _files_of(catalogue: Catalogue) -> set[str]:
    shards = [*catalogue.snapshot.data]
    for more in catalogue.snapshot.embeddings.values():
        shards += more
    return {shard.sha256 for shard in shards}


def _runs(shelf: Shelf, patience: Patience, now_s: float, deleted: list[Manifest]) -> list[Stored]:
    """Runs nobody wrote to for long, and at once those that made what was deleted."""
    runs: dict[str, list[Stored]] = defaultdict(list)
    for stored in shelf.store.list(RUNS):
        runs[stored.key.split("/")[1]].append(stored)
    garbage: list[Stored] = []
    made = defaultdict(list)
    for manifest in deleted:
        made[manifest.run_id].append(manifest)
    for run_id, found in runs.items():
        is_old = now_s - max(stored.modified_s for stored in found) >= patience.runs_s
        if is_old or any(is_where_made(shelf.store, found, manifest) for manifest in made[run_id]):
            garbage += found
    return garbage
