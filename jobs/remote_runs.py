"""Runs whose driver works on a cluster: sent as Ray jobs, followed by their events, published from here."""

import dataclasses
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.places import RegistryPlaces
from cluster.runs import RunBook, RunRecord
from cluster.staging import delete_pictures
from cluster.states import RunState, may_follow
from cluster.submission import ACTIVE, job_events, job_status, submit
from jobs.driver import CANCEL, REQUEST, RESULT
from jobs.train_concept import Bookkeeper, PreparedConcept, record_of, stage
from mos.errors import UsageError

if TYPE_CHECKING:
    from registry import Registry

PYTHON = "python"
"""Interpreter on the cluster's machines; its images have mos installed."""


def submit_remote_concept(prepared: PreparedConcept, registry: "Registry", book: RunBook, address: str) -> RunRecord:
    """Stage pictures and request, and send the job."""
    _check_reachable(registry.url, address)
    run_id, spec = prepared.run_id, prepared.spec
    record = book.start(record_of(prepared, registry.url, address=address, submission_id=run_id))
    stage(prepared, registry.url)
    request = {
        "kind": "concept",
        "ref": str(spec.ref),
        "base": spec.base,
        "config": dataclasses.asdict(prepared.config),
        "num_seeds": spec.num_seeds,
        "grid_steps": prepared.grid_steps,
    }
    _send(record, registry.url, request, {"kind": "concept", "owner": spec.owner, "concept": spec.name})
    return record


def submit_remote_fusion(record: RunRecord, book: RunBook, address: str, *, is_waiting: bool) -> dict[str, Any]:
    """Send a fusion, and fetch its result if it is waited for."""
    from jobs.runs import outcome_of, wait_for

    url = record.spec["registry"]
    _check_reachable(url, address)
    record = book.start(dataclasses.replace(record, address=address, submission_id=record.run_id))
    spec = {name: value for name, value in record.spec.items() if name != "registry"}
    _send(record, url, {"kind": "fusion", "spec": spec}, {"kind": "fusion", "owner": record.owner})
    return outcome_of(wait_for(record.run_id) if is_waiting else record)


def _send(record: RunRecord, url: str, request: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    place = RegistryPlaces(url)(record.run_id)
    place.delete(CANCEL)
    place.put(REQUEST, json.dumps(request, sort_keys=True).encode())
    entrypoint = shlex.join([PYTHON, "-P", "-m", "jobs.driver", record.run_id, url])
    submit(record.address, entrypoint, record.submission_id, dict(metadata) | {"run": record.run_id})
    RunBook().note(record.run_id, {"event": "submitted", "text": f"sent to {record.address}"})


def _check_reachable(url: str, address: str) -> None:
    is_local = "://127.0.0.1" in address or "://localhost" in address
    if not url.startswith("s3://") and not is_local:
        raise UsageError(f"{url}: a cluster at {address} cannot read a directory here; use an s3:// registry")


def remote_state(book: RunBook, record: RunRecord) -> RunRecord:
    """Bring a record up to date with the job's events and status."""
    keeper = Bookkeeper(book)
    seen = _events_seen(book, record.run_id)
    status = job_status(record.address, record.submission_id)
    if status:
        for event in job_events(record.address, record.submission_id)[seen:]:
            keeper(record.run_id, event)
    record = book.get(record.run_id)
    if status not in ACTIVE and not record.state.is_final and record.state is not RunState.STAGED:
        delete_pictures(RegistryPlaces(record.spec["registry"])(record.run_id))
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
    """Leave the request to stop where the driver looks for it."""
    RegistryPlaces(record.spec["registry"])(record.run_id).put(CANCEL, b"1")


def fetch_fusion(record: RunRecord, out: Path) -> None:
    """Bring a staged fusion into its folder."""
    place = RegistryPlaces(record.spec["registry"])(record.run_id)
    out.mkdir(parents=True, exist_ok=True)
    for name in json.loads(place.get(f"{RESULT}.json")):
        (out / Path(name).name).write_bytes(place.get(f"{RESULT}/{name}"))
