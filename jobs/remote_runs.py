"""Runs whose driver works on a cluster: sent as Ray jobs, followed by their events, published from here."""

import dataclasses
import hashlib
import json
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.places import RegistryPlaces
from cluster.runs import RunBook, RunRecord
from cluster.staging import delete_pictures
from cluster.states import RunState, may_follow
from cluster.submission import ACTIVE, job_events, job_status, stop_job, submit, wait_until_over
from jobs.driver import CANCEL, REQUEST, RESULT
from jobs.grants import GRANT
from jobs.train_concept import Bookkeeper, PreparedConcept, record_of, stage
from mos.errors import CheckFailedError, UsageError

if TYPE_CHECKING:
    from registry import Registry

PYTHON = "python"
"""Interpreter on the cluster's machines; its images have mos installed."""


_SENDING_S = 120.0
"""How long a run may be on its way to the job server before it counts as never sent."""


def submit_remote_concept(
    prepared: PreparedConcept,
    registry: "Registry",
    book: RunBook,
    address: str,
    *,
    checkpoint_every: int,
    grant: bytes | None = None,
) -> RunRecord:
    """Stage pictures and request, and send the job; with a grant the cluster publishes the result by itself."""
    check_reachable(registry.url, address)
    run_id, spec = prepared.run_id, prepared.spec
    record = record_of(prepared, registry.url, address=address)
    let_last_job_end(book, run_id, address)
    record = book.start(dataclasses.replace(record, spec=record.spec | {"granted": grant is not None}))
    stage(prepared, registry.url)
    place = RegistryPlaces(registry.url)(run_id)
    if grant is None:
        place.delete(GRANT)
    else:
        place.put(GRANT, grant)
    request = {
        "kind": "concept",
        "ref": str(spec.ref),
        "base": spec.base,
        "config": dataclasses.asdict(prepared.config),
        "num_seeds": spec.num_seeds,
        "grid_steps": prepared.grid_steps,
        "checkpoint_every": checkpoint_every,
        "memory_bytes": prepared.memory_bytes,
        "spec": spec.to_json() | {"pictures": "staged"},
        "spec_sha256": prepared.spec_sha256,
    }
    return send(record, registry.url, request, {"kind": "concept", "owner": spec.owner, "concept": spec.name})


def submit_remote_fusion(record: RunRecord, book: RunBook, address: str, *, is_waiting: bool) -> RunRecord:
    """Send a fusion, and fetch its result if it is waited for."""
    from jobs.runs import wait_for

    url = record.spec["registry"]
    check_reachable(url, address)
    let_last_job_end(book, record.run_id, address)
    record = book.start(dataclasses.replace(record, address=address))
    spec = {name: value for name, value in record.spec.items() if name != "registry"}
    metadata = {"kind": "fusion", "owner": record.owner, "concept": ", ".join(spec["concepts"])}
    record = send(record, url, {"kind": "fusion", "spec": spec}, metadata)
    return wait_for(record.run_id) if is_waiting else record


def send(record: RunRecord, url: str, request: Mapping[str, Any], metadata: Mapping[str, str]) -> RunRecord:
    """Leave the request in the run's place and send the job that reads it; returns the record with the job's name."""
    place = RegistryPlaces(url)(record.run_id)
    place.delete(CANCEL)
    place.put(REQUEST, json.dumps(request, sort_keys=True).encode())
    entrypoint = shlex.join([PYTHON, "-P", "-m", "jobs.driver", record.run_id, url])
    submission_id = submit(record.address, entrypoint, record.run_id, dict(metadata) | {"run": record.run_id})
    book = RunBook()
    book.note(record.run_id, {"event": "submitted", "text": f"sent to {record.address}"})
    return book.move(record.run_id, record.state, submission_id=submission_id)


def let_last_job_end(book: RunBook, run_id: str, address: str) -> None:
    """Wait for the job there of a run that has ended or is to end, which may not have deleted its pictures yet.

    Raises:
        TryAgainError: If that job does not end.
    """
    known = book.find(run_id)
    if known is None or known.address != address or not known.submission_id:
        return
    if known.state.is_final or book.is_cancelled(run_id):
        wait_until_over(address, known.submission_id)


def check_reachable(url: str, address: str) -> None:
    """Insist that a cluster can read the registry.

    Raises:
        UsageError: If the registry is a directory of this machine and the cluster is not on it.
    """
    is_local = "://127.0.0.1" in address or "://localhost" in address
    if not url.startswith("s3://") and not is_local:
        raise UsageError(f"{url}: a cluster at {address} cannot read a directory here; use an s3:// registry")


def remote_state(book: RunBook, record: RunRecord) -> RunRecord:
    """Bring a record up to date with the job's events and status; other terminals may be at the same."""
    with book.locked(record.run_id):
        return _up_to_date(book, book.get(record.run_id))


def _up_to_date(book: RunBook, record: RunRecord) -> RunRecord:
    if record.state.is_final or (not record.submission_id and time.time() - record.updated_at < _SENDING_S):
        return record
    keeper = Bookkeeper(book)
    seen = _events_seen(book, record.run_id)
    status = job_status(record.address, record.submission_id)
    if status:
        for event in job_events(record.address, record.submission_id)[seen:]:
            keeper(record.run_id, event)
    record = book.get(record.run_id)
    if status not in ACTIVE and not record.state.is_final and record.state is not RunState.STAGED:
        delete_pictures(RegistryPlaces(record.spec["registry"])(record.run_id))
        if book.is_cancelled(record.run_id):
            return book.move(record.run_id, RunState.CANCELLED, error="stopped")
        reason = f"its job ended as {status.lower() or 'unknown to the cluster'}; `mos jobs retry` goes on"
        if may_follow(record.state, RunState.FAILED):
            return book.move(record.run_id, RunState.FAILED, error=reason)
    return record


def _events_seen(book: RunBook, run_id: str) -> int:
    """How many of the present job's events are written down already: those after the last submission."""
    seen = 0
    for event in book.events(run_id):
        seen = 0 if event["event"] == "submitted" else seen + 1
    return seen


def ask_remote_to_cancel(record: RunRecord) -> None:
    """Leave the request to stop where a trainer's driver looks for it; end a driver that has no checkpoint to write."""
    RegistryPlaces(record.spec["registry"])(record.run_id).put(CANCEL, b"1")
    if record.kind != "concept":
        stop_job(record.address, record.submission_id)


def fetch_fusion(record: RunRecord, out: Path) -> None:
    """Bring a staged fusion into its folder.

    Raises:
        CheckFailedError: If bytes changed on the way; nothing is written then.
    """
    place = RegistryPlaces(record.spec["registry"])(record.run_id)
    digests = json.loads(place.get(f"{RESULT}.json"))
    contents = {name: place.get(f"{RESULT}/{name}") for name in digests}
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != digests[name]:
            raise CheckFailedError(f"{record.run_id}: {name} is not what its job wrote; `mos jobs retry` fuses again")
    out.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (out / Path(name).name).write_bytes(content)
