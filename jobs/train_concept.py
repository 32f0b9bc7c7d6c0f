"""From an owner's spec to a published version: validate, stage, train on Ray, verify, sign, publish.

The steps on the owner's side (reading pictures, the key, the signature) never move to a cluster: a worker
sees numbered pictures in the run's private place and leaves an unsigned artifact there.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.metrics import count_publication
from cluster.places import RegistryPlaces
from cluster.progress import Event
from cluster.runs import RunBook, RunRecord
from cluster.staging import GRIDS, delete_pictures, neutral, read_staged, stage_pictures
from cluster.states import RunState
from jobs.specs import ConceptSpec
from mos.concept import ConceptRef
from mos.errors import BadInputError, JobFailedError, MosError

if TYPE_CHECKING:
    from cluster.slots import Limits
    from cluster.trainer import TrainingRequest
    from mos.facts import BaseFacts
    from mos.training import ConceptData, TrainingConfig
    from registry import Registry
    from registry.documents import Envelope
    from registry.keys import SigningKey


CHECKPOINT_EVERY = 100
"""Steps between checkpoints when nobody says otherwise."""

DEFAULT_LICENCE = "cc-by-4.0"
"""Terms of a concept whose owner names none: use it and fuse it, and name the owner."""


@dataclass(frozen=True, kw_only=True)
class PreparedConcept:
    """A spec that has been checked against its pictures and its base.

    Attributes:
        spec: What was asked.
        run_id: The run this spec is.
        config: All training options.
        data: The pictures, with numbers for names.
        spec_sha256: Digest of everything that shapes the result.
        memory_bytes: What its slot takes beside the base, counted from config and base.
    """

    spec: ConceptSpec
    run_id: str
    config: "TrainingConfig"
    data: "ConceptData"
    spec_sha256: str
    memory_bytes: int = 0

    @property
    def grid_steps(self) -> tuple[int, ...]:
        """Steps after which a grid is drawn, the last one by its number."""
        return tuple(sorted({step or self.config.steps for step in self.spec.grid_steps}))


@dataclass(frozen=True, kw_only=True)
class TrainedConcept:
    """One published concept and how it came about.

    Attributes:
        ref: With its version.
        run_id: The run.
        report: Steps, loss, seconds a step, digest of the artifact.
    """

    ref: ConceptRef
    run_id: str
    report: Mapping[str, Any] = field(default_factory=dict)


def prepare(spec: ConceptSpec, facts: "BaseFacts") -> PreparedConcept:
    """Check a spec before anything is sent anywhere.

    Raises:
        BadInputError: If a picture, caption, mask, preset or option cannot be used.
    """
    from jobs.estimates import slot_memory_bytes
    from mos.training import load_concept_data

    config = training_config(spec, facts)
    if late := [step for step in spec.grid_steps if step > config.steps]:
        raise BadInputError(f"grid at step {late[0]}: this training has {config.steps} steps")
    data = load_concept_data(
        spec.pictures,
        name=spec.name,
        class_word=spec.class_word,
        kind=spec.kind,
        resolution=facts.resolution,
        title=spec.title,
    )
    data = neutral(data)
    digest = data.digest()
    return PreparedConcept(
        spec=spec,
        run_id=spec.run_id(digest),
        config=config,
        data=data,
        spec_sha256=spec.digest(digest),
        memory_bytes=spec.num_seeds * slot_memory_bytes(config, facts),
    )


def training_config(spec: ConceptSpec, facts: "BaseFacts") -> "TrainingConfig":
    """The recipe of a spec: the named preset, or the one for the base, with the spec's own options.

    Raises:
        BadInputError: If there is no such preset or option.
    """
    from mos.training import PRESETS, preset_for

    if spec.preset and spec.preset not in PRESETS:
        raise BadInputError(f"preset {spec.preset!r}: expected one of {', '.join(sorted(PRESETS))}")
    config = PRESETS[spec.preset] if spec.preset else preset_for(facts, spec.kind)
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in spec.options.items()}
    return config.with_options(**{"seed": spec.seed} | options)


def describe(prepared: PreparedConcept, facts: "BaseFacts") -> dict[str, Any]:
    """What `--dry-run` prints: resources, estimated minutes, bytes and digests."""
    from cluster.placement import TRAINER
    from jobs.estimates import estimate_training

    size_bytes = sum(picture.pixels.nbytes for picture in prepared.data.pictures)
    return {
        "run": prepared.run_id,
        "concept": str(prepared.spec.ref),
        "word": prepared.spec.ref.word,
        "pictures": len(prepared.data.pictures),
        "picture_bytes": size_bytes,
        "pictures_sha256": prepared.data.digest(),
        "spec_sha256": prepared.spec_sha256,
        "base": facts.name,
        "base_fingerprint": dict(facts.fingerprint),
        "steps": prepared.config.steps,
        "batch_size": prepared.config.batch_size,
        "seeds": prepared.spec.num_seeds,
        "resources": str(TRAINER),
        "memory_bytes": prepared.memory_bytes,
        "estimate": estimate_training(prepared.config, facts, num_seeds=prepared.spec.num_seeds),
    }


def expectation(prepared: PreparedConcept, facts: "BaseFacts") -> str:
    """One line on what a training is about to cost, said before it starts."""
    from jobs.estimates import estimate_training

    spec, config = prepared.spec, prepared.config
    cost = estimate_training(config, facts, num_seeds=spec.num_seeds)
    seeds = f" for each of {spec.num_seeds} seeds" if spec.num_seeds > 1 else ""
    return (
        f"{spec.ref}: {len(prepared.data.pictures)} pictures, {config.steps} steps of {config.batch_size}{seeds}; "
        f"about {cost['cpu_core_minutes']:g} minutes of a CPU core or {cost['gpu_minutes']:g} of a GPU, estimated"
    )


def record_of(prepared: PreparedConcept, registry_url: str, **fields: Any) -> RunRecord:
    """The run's record in the book, before it starts."""
    return RunRecord(
        run_id=prepared.run_id,
        kind="concept",
        owner=prepared.spec.owner,
        subject=str(prepared.spec.ref),
        spec=prepared.spec.to_json() | {"registry": registry_url, "spec_sha256": prepared.spec_sha256},
        **fields,
    )


def publish_staged(
    prepared_run: str,
    spec: ConceptSpec,
    registry: "Registry",
    spec_sha256: str,
    *,
    key: "SigningKey | None" = None,
    grant: "Envelope | None" = None,
) -> TrainedConcept:
    """Verify a staged artifact, sign and publish it, and drop the staged pictures.

    Run again it finds the version it made. Nothing is visible before the manifest is.

    Args:
        prepared_run: The run.
        spec: What it was to make.
        registry: Where it is published.
        spec_sha256: Digest of what was submitted.
        key: Signs; default the owner's, from this machine.
        grant: The owner's permission, when the key is a cluster's.

    Raises:
        TryAgainError: If nothing is staged yet.
        CheckFailedError: If the artifact is not what its report says.
        BadInputError: If it is no valid artifact.
    """
    from registry import Details

    place = RegistryPlaces(registry.url)(prepared_run)
    artifact, report = read_staged(place)
    if key is None:
        key = registry.new_owner(spec.owner) if registry.may_index else registry.home.owner_key(spec.owner)
    licence = spec.licence or DEFAULT_LICENCE
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{spec.name}.safetensors"
        path.write_bytes(artifact)
        details = Details(title=spec.title, spec_sha256=spec_sha256)
        ref = registry.publish(
            path, spec.ref, key=key, run_id=prepared_run, details=details, licence=licence, grant=grant
        )
    count_publication(spec.owner)
    delete_pictures(place)
    if registry.may_index:
        registry.index()
    return TrainedConcept(ref=ref, run_id=prepared_run, report=report)


def stage(prepared: PreparedConcept, registry_url: str) -> int:
    """Send the pictures to the run's private place; returns their bytes."""
    return stage_pictures(RegistryPlaces(registry_url)(prepared.run_id), prepared.data)


def fetch_grids(run_id: str, registry_url: str, folder: Path) -> list[Path]:
    """Bring a run's grids into a folder, named by their steps."""
    place = RegistryPlaces(registry_url)(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    fetched = []
    for name in sorted(place.names(GRIDS)):
        path = folder / f"{run_id}-{name.rpartition('/')[2]}"
        path.write_bytes(place.get(name))
        fetched.append(path)
    return fetched


class Bookkeeper:
    """Turns the supervisor's events into states and lines of the run book, and passes them on.

    Args:
        book: Where runs are remembered.
        also: Called with every event after it is written.
    """

    _STATES: Mapping[str, RunState] = {
        "started": RunState.RUNNING,
        "retrying": RunState.RETRYING,
        "cancelling": RunState.CANCELLING,
        "cancelled": RunState.CANCELLED,
        "staged": RunState.STAGED,
        "failed": RunState.FAILED,
        "published": RunState.DONE,
    }

    def __init__(self, book: RunBook, also: Callable[[str, Event], None] = lambda *_: None) -> None:
        self._book, self._also = book, also

    def __call__(self, run_id: str, event: Event) -> None:
        """Write one event."""
        record = self._book.get(run_id)
        subject = {"subject": record.subject}
        self._book.note(run_id, dict(event))
        state = self._STATES.get(str(event["event"]))
        if state is not None:
            changes: dict[str, Any] = {"error": str(event["error"])} if "error" in event else {}
            changes |= {"attempts": event["attempt"]} if "attempt" in event else {}
            changes |= {"result": str(event["ref"]), "error": ""} if state is RunState.DONE else {}
            self._book.move(run_id, state, **changes)
        self._also(run_id, dict(event) | subject)


def train_on(
    prepared: Sequence[PreparedConcept],
    registry_url: str,
    base: str,
    *,
    is_cancelled: Callable[[str], bool],
    on_event: Callable[[str, Event], None],
    slots_per_worker: int = 1,
    checkpoint_every: int = CHECKPOINT_EVERY,
    report_every: int = 10,
) -> Mapping[str, Event]:
    """Train prepared, staged concepts on the connected Ray; returns each run's last event."""
    from cluster.slots import Limits
    from cluster.trainer import TrainingRequest

    limits = Limits(max_workers=max(1, -(-len(prepared) // slots_per_worker)), slots_per_worker=slots_per_worker)
    requests = [
        TrainingRequest(
            run_id=item.run_id,
            ref=item.spec.ref,
            config=item.config,
            checkpoint_every=checkpoint_every,
            report_every=report_every,
            num_seeds=item.spec.num_seeds,
            grid_steps=item.grid_steps,
            memory_bytes=item.memory_bytes,
        )
        for item in prepared
    ]
    return supervise(requests, registry_url, base, limits, is_cancelled=is_cancelled, on_event=on_event)


def supervise(
    requests: "Sequence[TrainingRequest]",
    registry_url: str,
    base: str,
    limits: "Limits",
    *,
    is_cancelled: Callable[[str], bool],
    on_event: Callable[[str, Event], None],
) -> Mapping[str, Event]:
    """Bring staged requests through training on the connected Ray; returns each run's last event."""
    from cluster.supervisor import PoolConfig, Supervisor

    supervisor = Supervisor(
        RegistryPlaces(registry_url), PoolConfig(limits=limits), on_event=on_event, is_cancelled=is_cancelled
    )
    for request in requests:
        supervisor.enqueue(request, base)
    return supervisor.run()


def raise_if_failed(event: Event) -> None:
    """Raise what ended a run, with the exit code it had on the worker.

    Raises:
        MosError: If the run failed, was cancelled, or was taken over.
    """
    if event["event"] == "staged":
        return
    if event["event"] == "failed":
        error = MosError(str(event["error"]))
        error.exit_code = int(event.get("exit_code", JobFailedError.exit_code))
        raise error
    raise JobFailedError(f"{event['run_id']}: {event['event']}; `mos jobs retry {event['run_id']}` goes on")
