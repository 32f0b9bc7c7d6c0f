"""Runs as Ray jobs: sent to a cluster's job server, named by their run, told by their metadata what they are."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cluster.errors import RayUnavailableError
from cluster.head import token_for
from cluster.session import read_environment_again
from mos.errors import TryAgainError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

EVENT_PREFIX = "MOS-EVENT "
"""Begins a line of a job's log that is an event; everything else there is for people."""

ACTIVE = frozenset({"PENDING", "RUNNING"})


def submit(address: str, entrypoint: str, run_id: str, metadata: Mapping[str, str]) -> str:
    """Send a run as a job, unless a job of this run is at work already.

    The first job of a run has its name; later ones, after a failure or a cancellation, a number besides. Ray keeps one
    log a name, so a name that came back would bring the events of the last attempt along.

    Args:
        address: URL of the job server.
        entrypoint: Command that runs on the cluster.
        run_id: The run.
        metadata: What Ray's dashboard shows: kind, owner, concept, run.

    Returns:
        The name of the job that is at work now.

    Raises:
        RayUnavailableError: If nothing answers there, or it asks for another token.
    """
    with _client(address) as client:
        known = {
            str(job.submission_id): str(job.status)
            for job in client.list_jobs()
            if job.submission_id and (job.metadata or {}).get("run") == run_id
        }
        for submission_id, status in known.items():
            if status in ACTIVE:
                return submission_id
        submission_id = f"{run_id}-{len(known) + 1}" if known else run_id
        client.submit_job(entrypoint=entrypoint, submission_id=submission_id, metadata=dict(metadata))
        return submission_id


def job_status(address: str, submission_id: str) -> str:
    """Ray's status of a job: PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED, or "" when it is not known."""
    with _client(address) as client:
        known = {job.submission_id: job for job in client.list_jobs()}
        return str(known[submission_id].status) if submission_id in known else ""


def wait_until_over(address: str, submission_id: str, *, limit_s: float = 60.0) -> None:
    """Wait for a job whose run has ended: its process still clears up, and `submit` would take it for one at work.

    Raises:
        RayUnavailableError: As `submit`.
        TryAgainError: If it is still there after `limit_s` seconds.
    """
    deadline = time.monotonic() + limit_s
    while job_status(address, submission_id) in ACTIVE:
        if time.monotonic() > deadline:
            raise TryAgainError(f"{submission_id}: its last job still clears up after {limit_s:g} s; try again later")
        time.sleep(0.5)


def job_events(address: str, submission_id: str) -> list[dict[str, Any]]:
    """The events a job has printed so far, in order."""
    with _client(address) as client:
        whole, _, _ = client.get_job_logs(submission_id).rpartition("\n")  # the last line may be half written
    lines = whole.splitlines()
    return [json.loads(line.removeprefix(EVENT_PREFIX)) for line in lines if line.startswith(EVENT_PREFIX)]


def stop_job(address: str, submission_id: str) -> None:
    """End a job's driver and with it all its actors."""
    with _client(address) as client:
        client.stop_job(submission_id)


@contextlib.contextmanager
def _client(address: str) -> "Iterator[JobSubmissionClient]":
    if not address.startswith(("http://", "https://")):
        raise RayUnavailableError(f"{address}: expected the URL of a job server, such as http://127.0.0.1:8265")
    with token_for(address):  # before Ray is imported, which reads the token's place once
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        read_environment_again()
        try:
            yield JobSubmissionClient(address)
        except (AuthenticationError, ConnectionError, RuntimeError, OSError) as error:
            line = str(error).strip().splitlines()[0]
            raise RayUnavailableError(
                f"{address}: no job server answers ({line}); `mos cluster status` shows ours"
            ) from error
