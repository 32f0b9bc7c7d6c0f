"""Runs from the submitter's side: submit, look at, wait for, cancel and try again, here or on a cluster."""

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cluster.errors import RayUnavailableError, RunCancelledError
from cluster.places import RegistryPlaces
from cluster.progress import Event, Terminal
from cluster.runs import RunBook, RunRecord
from cluster.staging import delete_pictures, read_staged_report
from cluster.states import RunState
from jobs.opening import open_base
from jobs.options import DEFAULT_REGISTRY
from jobs.specs import ConceptSpec, FusionSpec
from jobs.train_concept import (
    CHECKPOINT_EVERY,
    Bookkeeper,
    PreparedConcept,
    describe,
    expectation,
    prepare,
    publish_staged,
    raise_if_failed,
    record_of,
    stage,
    train_on,
)
from mos.errors import BadInputError, JobFailedError, MosError, TryAgainError

if TYPE_CHECKING:
    from mos.facts import BaseFacts
    from registry import Registry

_POLL_S = 0.5
_RECORDED = frozenset({"registry", "spec_sha256", "granted", "fused_sha256"})
"""What records of runs hold beside the spec as it was given."""


def submit_concept(
    spec: ConceptSpec,
    registry_url: str,
    *,
    ray_address: str | None = None,
    is_waiting: bool = True,
    is_dry_run: bool = False,
    checkpoint_every: int = CHECKPOINT_EVERY,
    grant_days: int = 0,
    publisher: str = "",
    grant: bytes | None = None,
) -> dict[str, Any]:
    """Train and publish a concept, or say what that would take.

    Without an address a private Ray runs in this process, so there is nothing to wait for elsewhere.

    Args:
        spec: What to train.
        registry_url: Where to publish it.
        ray_address: Job server of a cluster; None trains here.
        is_waiting: Whether to wait for the end and publish from here.
        is_dry_run: Only say what it would take.
        checkpoint_every: Steps between checkpoints.
        grant_days: Let the cluster publish by itself for so many days; 0 for not at all.
        publisher: The cluster's public key; default that of the head started here.
        grant: One signed for this run before, when no days are given.

    Raises:
        MosError: Whatever is wrong with the spec, the pictures, the registry, the cluster or the training.
    """
    from registry import Registry

    _check_alone(ray_address, is_waiting=is_waiting, grant_days=grant_days)
    facts = facts_for(spec)
    prepared = prepare(spec, facts)
    if is_dry_run:
        return describe(prepared, facts)
    registry = Registry.open(registry_url, create=registry_url == DEFAULT_REGISTRY)  # one's own needs no ceremony
    book = RunBook()
    known = known_run(book, prepared.run_id, registry.url, ray_address)
    if known is not None:
        if known.state is RunState.DONE:
            return outcome_of(known) | {"note": "this run was done before; nothing was trained"}
        if not grant_days and is_at_work(book, known, ray_address):
            return outcome_of(wait_for(known.run_id) if is_waiting else known)
    Terminal().say(expectation(prepared, facts))
    if not ray_address:
        return outcome_of(_train_here(prepared, registry, book, checkpoint_every))
    from jobs.grants import publisher_of, sign_grant
    from jobs.remote_runs import submit_remote_concept

    if grant_days:
        grant = sign_grant(prepared, registry, publisher_of(ray_address, publisher), grant_days)
    record = submit_remote_concept(
        prepared, registry, book, ray_address, checkpoint_every=checkpoint_every, grant=grant
    )
    return outcome_of(wait_for(record.run_id) if is_waiting else record)


def _check_alone(ray_address: str | None, *, is_waiting: bool, grant_days: int) -> None:
    """Refuse what only a cluster that goes on alone can do."""
    if not ray_address and not is_waiting:
        raise BadInputError(
            "--no-wait needs a cluster that goes on alone; give --ray-address (`mos cluster up` starts one)"
        )
    if grant_days and not ray_address:
        raise BadInputError("--grant-days is for a cluster that publishes while you are away; give --ray-address")


def _train_here(prepared: PreparedConcept, registry: "Registry", book: RunBook, checkpoint_every: int) -> RunRecord:
    from cluster.session import local_ray

    run_id, spec = prepared.run_id, prepared.spec
    book.start(record_of(prepared, registry.url, process_id=os.getpid()))
    terminal = Terminal()
    keeper = Bookkeeper(book, terminal)
    place = RegistryPlaces(registry.url)(run_id)
    if read_staged_report(place) is not None:  # trained before; only the publication is missing
        book.move(run_id, RunState.STAGED)
        return _publish(run_id, spec, registry, book, prepared.spec_sha256, terminal)
    stage(prepared, registry.url)
    try:
        with local_ray():
            event = train_on(
                [prepared],
                registry.url,
                spec.base,
                is_cancelled=book.is_cancelled,
                on_event=keeper,
                checkpoint_every=checkpoint_every,
            )
            raise_if_failed(event[run_id])
            return _publish(run_id, spec, registry, book, prepared.spec_sha256, terminal)
    except BaseException as error:
        note_end(book, run_id, error)
        delete_pictures(place)
        raise


def _publish(
    run_id: str, spec: ConceptSpec, registry: "Registry", book: RunBook, spec_sha256: str, terminal: Terminal
) -> RunRecord:
    trained = publish_staged(run_id, spec, registry, spec_sha256)
    event: Event = {"event": "published", "run_id": run_id, "ref": str(trained.ref)}
    book.note(run_id, dict(event))
    terminal(run_id, dict(event) | {"subject": str(spec.ref)})
    return book.move(run_id, RunState.DONE, result=str(trained.ref), error="")


def note_end(book: RunBook, run_id: str, error: BaseException) -> None:
    """Write down why a run ended here, whatever state it was in."""
    record = book.get(run_id)
    if record.state.is_final or record.state is RunState.STAGED:
        return
    interrupted = isinstance(error, KeyboardInterrupt | SystemExit | RunCancelledError)
    state = RunState.CANCELLED if interrupted else RunState.FAILED
    book.move(run_id, state, error="interrupted" if interrupted else str(error))


def facts_for(spec: ConceptSpec) -> "BaseFacts":
    """What is known of a concept's base (loads it; weights are dropped again).

    Raises:
        NotFoundError: If there is no such base.
        BadInputError: If it cannot be loaded or does not know the concept's class word.
    """
    from mos.training.parameters import class_token

    base = open_base(spec.base or None)
    for encoder in base.tokenizers:
        class_token(base, encoder, spec.class_word)
    return base.facts


def outcome_of(record: RunRecord) -> dict[str, Any]:
    """What commands print of a run."""
    outcome = {"run": record.run_id, "state": record.state.value, "subject": record.subject}
    outcome |= {"result": record.result} if record.result else {}
    outcome |= {"ray_job": record.submission_id} if record.submission_id else {}
    return outcome | ({"error": record.error} if record.error else {})


def known_runs(*, max_age_s: float | None) -> list[RunRecord]:
    """The runs of this machine, newest first, their states brought up to date."""
    book = RunBook()
    newest = [record for record in book.all() if max_age_s is None or time.time() - record.created_at <= max_age_s]
    silent: set[str] = set()
    return [_as_known(book, record, silent) for record in newest]


def _as_known(book: RunBook, record: RunRecord, silent: set[str]) -> RunRecord:
    """A record up to date if its cluster answers, else as it was last seen; each silent cluster is named once."""
    try:
        return record if record.address in silent else refreshed(book, record)
    except RayUnavailableError as error:
        silent.add(record.address)
        Terminal().say(str(error))
        return record


def refreshed(book: RunBook, record: RunRecord) -> RunRecord:
    """A record whose state agrees with what can be known now: a driver that died did not finish."""
    if record.state.is_final or _is_alive(record):
        return record
    if record.state is RunState.STAGED and not record.spec.get("granted"):
        return record
    if record.address:
        from jobs.remote_runs import remote_state

        return remote_state(book, record)
    return book.move(
        record.run_id, RunState.FAILED, error=f"its process ended{_clear(record)}; `mos jobs retry` goes on"
    )


def _clear(record: RunRecord) -> str:
    """Delete the pictures a dead driver left staged; says so if that cannot be done."""
    if record.kind != "concept" or "registry" not in record.spec:
        return ""
    try:
        delete_pictures(RegistryPlaces(record.spec["registry"])(record.run_id))
    except MosError as error:
        return f" and left its pictures in {record.spec['registry']} ({error})"
    return ""


def known_run(book: RunBook, run_id: str, registry_url: str, address: str | None) -> RunRecord | None:
    """What is known of a run in this registry, brought up to date if it was sent to the cluster at `address`."""
    record = book.find(run_id)
    if record is None or record.spec["registry"] != registry_url:  # done for another one, it says nothing
        return None
    return refreshed(book, record) if record.submission_id and record.address == address else record


def is_at_work(book: RunBook, record: RunRecord, address: str | None) -> bool:
    """Whether a run is under way here or on the cluster at `address`, and nobody has asked it to stop."""
    was_sent = bool(record.submission_id) and record.address == address
    is_wanted = not record.state.is_final and not book.is_cancelled(record.run_id)
    return is_wanted and (was_sent or _is_alive(record))


def _is_alive(record: RunRecord) -> bool:
    if not record.process_id:
        return False
    try:
        os.kill(record.process_id, 0)
    except OSError:
        return False
    return record.process_id != os.getpid()


def events_of(run: str, *, follow: bool = False) -> Iterator[Event]:
    """A run's events so far, and with `follow` those to come until it ends."""
    book = RunBook()
    run_id = book.get(run).run_id
    seen = 0
    while True:
        record = refreshed(book, book.get(run_id))
        for event in book.events(run_id, skip=seen):
            seen += 1
            yield event | {"subject": record.subject}
        if not follow or record.state.is_final or record.state is RunState.STAGED:
            return
        time.sleep(_POLL_S)


def wait_for(run: str, *, timeout_s: float | None = None) -> RunRecord:
    """Wait until a run ends, its progress on stderr; a staged result is published here, where its owner's key is.

    Raises:
        TryAgainError: If it has not ended within `timeout_s`.
        JobFailedError: If it failed or was cancelled.
    """
    book = RunBook()
    run_id = book.get(run).run_id
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    terminal, seen = Terminal(), sum(1 for _ in book.events(run_id))
    while True:
        record = refreshed(book, book.get(run_id))
        for event in book.events(run_id, skip=seen):
            seen += 1
            terminal(run_id, event | {"subject": record.subject})
        if record.state is RunState.STAGED and not _is_alive(record) and not _is_published_there(record):
            record = refreshed(book, book.get(run_id))  # the cluster may have published it between two looks
            if record.state is RunState.STAGED:
                return _publish_record(record, book)
        if record.state is RunState.DONE:
            return record
        if record.state.is_final:
            raise JobFailedError(f"{run_id}: {record.state.value}: {record.error or 'see mos jobs logs'}")
        if deadline is not None and time.monotonic() > deadline:
            raise TryAgainError(f"{run_id}: still {record.state.value} after {timeout_s:g} s; wait again")
        time.sleep(_POLL_S)


def _is_published_there(record: RunRecord) -> bool:
    """Whether the cluster is about to publish this staged run by a grant: its job is still at work."""
    if not record.spec.get("granted"):
        return False
    from cluster.submission import ACTIVE, job_status

    return job_status(record.address, record.submission_id) in ACTIVE


def _publish_record(record: RunRecord, book: RunBook) -> RunRecord:
    from registry import Registry

    registry = Registry.open(record.spec["registry"])
    if record.kind == "fusion":
        from jobs.fusion_runs import take_fusion

        return take_fusion(record, registry, book)
    if record.kind == "evaluation":
        return book.move(record.run_id, RunState.DONE, result=f"evaluation {record.spec['digest'][:12]}", error="")
    spec = ConceptSpec.from_json(spec_of(record))
    return _publish(record.run_id, spec, registry, book, record.spec["spec_sha256"], Terminal())


def spec_of(record: RunRecord) -> dict[str, Any]:
    """The spec as it was given, without what the record adds to it."""
    return {name: value for name, value in record.spec.items() if name not in _RECORDED}


def cancel_run(run: str) -> RunRecord:
    """Ask a run to stop.

    Raises:
        BadInputError: If it has ended already.
    """
    book = RunBook()
    record = refreshed(book, book.get(run))
    if record.state.is_final or record.state is RunState.STAGED:
        raise BadInputError(f"{record.run_id}: already {record.state.value}; there is nothing to stop")
    book.ask_to_cancel(record.run_id)
    if record.address:
        from jobs.remote_runs import ask_remote_to_cancel

        ask_remote_to_cancel(record)
    return record


def retry_run(run: str, *, is_waiting: bool = True) -> RunRecord:
    """Submit a run that was cancelled or failed again; it goes on from its last checkpoint, with its grant.

    Raises:
        BadInputError: If it is done, or still at work.
    """
    book = RunBook()
    record = refreshed(book, book.get(run))
    if record.state is RunState.STAGED:
        return wait_for(record.run_id)
    if record.state not in (RunState.CANCELLED, RunState.FAILED):
        raise BadInputError(f"{record.run_id}: {record.state.value}; only cancelled or failed runs are tried again")
    values = spec_of(record)
    if record.kind == "evaluation":
        from jobs.evaluate import prepare_evaluation
        from jobs.remote_evaluation import from_json, submit_remote_evaluation

        request = from_json(record.spec)
        submit_remote_evaluation(request, prepare_evaluation(request), record.address, is_waiting=is_waiting)
    elif record.kind == "fusion":
        from jobs.fusion_runs import submit_fusion

        submit_fusion(
            FusionSpec.from_json(values),
            record.spec["registry"],
            ray_address=record.address or None,
            is_waiting=is_waiting or not record.address,
        )
    else:
        from jobs.grants import grant_in_force

        submit_concept(
            ConceptSpec.from_json(values),
            record.spec["registry"],
            ray_address=record.address or None,
            is_waiting=is_waiting or not record.address,
            grant=grant_in_force(record),
        )
    return book.get(record.run_id)
