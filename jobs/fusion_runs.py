"""Fusions as runs from the submitter's side: sent or worked here, fetched, published, and not done twice."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import RunCancelledError
from cluster.progress import Terminal
from cluster.runs import RunBook, RunRecord
from cluster.states import RunState
from jobs.recordings import weights_sha256
from jobs.runs import is_at_work, known_run, note_end, outcome_of, spec_of, wait_for
from jobs.specs import FusionSpec

if TYPE_CHECKING:
    from registry import Registry


def submit_fusion(
    spec: FusionSpec,
    registry_url: str,
    *,
    ray_address: str | None = None,
    is_waiting: bool = True,
    is_dry_run: bool = False,
) -> dict[str, Any]:
    """Fuse concepts as a run that the book remembers.

    Raises:
        MosError: Whatever is wrong with the concepts, their licences, the folder or the cluster.
    """
    from jobs.fuse_concepts import describe_fusion, lock_entries, resolve_all
    from jobs.remote_runs import submit_remote_fusion
    from registry import Registry

    registry = Registry.open(registry_url)
    found = resolve_all(registry, spec)
    entries = lock_entries(found)
    run_id = spec.run_id({entry["ref"]: entry["manifest_sha256"] for entry in entries})
    if is_dry_run:
        return describe_fusion(spec, run_id, found)
    book = RunBook()
    known = known_run(book, run_id, registry.url, ray_address)
    if known is not None:
        if _is_done(known, Path(spec.out)):
            return outcome_of(known) | {"note": "this run was done before; nothing was fused"}
        if is_at_work(book, known, ray_address):
            return outcome_of(wait_for(run_id) if is_waiting else known)
    record = RunRecord(
        run_id=run_id,
        kind="fusion",
        owner=spec.refs[0].owner,
        subject=f"fusion of {len(entries)}",
        spec=spec.to_json() | {"registry": registry.url},
    )
    if ray_address:
        return outcome_of(submit_remote_fusion(record, book, ray_address, is_waiting=is_waiting))
    return outcome_of(_fuse_here(spec, registry, book, replace(record, process_id=os.getpid())))


def take_fusion(record: RunRecord, registry: "Registry", book: RunBook) -> RunRecord:
    """Fetch a fusion that a cluster has staged into its folder, and publish it if that was asked for."""
    from jobs.fuse_concepts import publish_fusion
    from jobs.remote_runs import fetch_fusion

    spec = FusionSpec.from_json(spec_of(record))
    out = Path(spec.out)
    fetch_fusion(record, out)
    published = ""
    if spec.publish:
        published = str(publish_fusion(registry, out, spec.publish, record.run_id, allow_unlisted=spec.allow_unlisted))
    return _note_done(book, record, out, published)


def _fuse_here(spec: FusionSpec, registry: "Registry", book: RunBook, record: RunRecord) -> RunRecord:
    from jobs.fuse_concepts import run_fusion

    record = book.start(record)
    book.move(record.run_id, RunState.RUNNING)
    terminal = Terminal()
    try:
        outcome = run_fusion(spec, registry, say=_until_cancelled(book, record.run_id, terminal.say))
    except BaseException as error:
        note_end(book, record.run_id, error)
        raise
    return _note_done(book, record, outcome.out, outcome.published)


def _until_cancelled(book: RunBook, run_id: str, say: Callable[[str], None]) -> Callable[[str], None]:
    """Write progress, and end the work between two lines of it once somebody asked for that."""

    def checked(text: str) -> None:
        if book.is_cancelled(run_id):
            raise RunCancelledError(f"{run_id}: cancelled; `mos jobs retry {run_id}` begins again")
        say(text)

    return checked


def _note_done(book: RunBook, record: RunRecord, out: Path, published: str) -> RunRecord:
    """Remember that a fusion is done, and the digest of what it wrote."""
    spec = record.spec | {"fused_sha256": weights_sha256(out)}
    return book.move(record.run_id, RunState.DONE, result=published or str(out), error="", spec=spec)


def _is_done(record: RunRecord, out: Path) -> bool:
    """Whether a fusion was done before and its folder still holds what it wrote."""
    written = record.spec.get("fused_sha256", "")
    return record.state is RunState.DONE and written != "" and written == weights_sha256(out)
