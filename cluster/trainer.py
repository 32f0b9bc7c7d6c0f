"""The trainer: an actor that trains several owners' concepts on one frozen base.

A worker only ever adds to its run's private place: checkpoints, and at the end the unsigned artifact. It
tells its supervisor what happens through events, which the supervisor fetches (`poll`); a poll that is
answered is the heartbeat. Everything a worker does to the outside may happen twice (after a kill the next
attempt goes on from the last checkpoint), and nothing of it can contradict what is already there.
"""

import contextlib
import dataclasses
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from cluster import metrics
from cluster.checkpoint import Checkpoints, RunPlace
from cluster.failure import FaultKind, classify
from cluster.machine import device, free_memory_bytes
from cluster.placement import TRAINER, Resources
from cluster.progress import event_line
from cluster.staging import grid_name, read_pictures, read_staged_report, stage_result
from cluster.timeline import Stopwatch, process_cpu_s
from mos.concept import ConceptRef
from mos.errors import JobFailedError, MosError

if TYPE_CHECKING:
    from mos.artifact import EDLoRA
    from mos.base_model import BaseModel
    from mos.training import StepReport, TrainingConfig
    from mos.training.contest import ContestTrainer

OpenPlace = Callable[[str], RunPlace]
"""Run id -> the private place of that run; it travels to the worker by pickling."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """One concept to train; its pictures are staged under its run id.

    Attributes:
        run_id: Names the private place that holds its pictures and will hold its artifact.
        ref: The concept.
        config: All training options.
        checkpoint_every: Steps between checkpoints; 0 for none but at cancellation.
        report_every: Steps between reports.
        num_seeds: Train so many seeds side by side and stage the one whose words alone fit the pictures best.
        grid_steps: After these steps draw the concept at several LoRA scales into the run's place.
        memory_bytes: What its slot takes beside the base; 0 when nobody has counted.
    """

    run_id: str
    ref: ConceptRef
    config: "TrainingConfig"
    checkpoint_every: int = 100
    report_every: int = 10
    num_seeds: int = 1
    grid_steps: tuple[int, ...] = ()
    memory_bytes: int = 0


def step_group(base: str, config: "TrainingConfig") -> str:
    """What two runs must have in common to share a trainer: the base, and the options that shape a step."""
    from mos.training.parameters import SHARED_OPTIONS

    return repr((base, *(getattr(config, name) for name in SHARED_OPTIONS)))


@dataclasses.dataclass
class _Active:
    """A request in a slot of this worker."""

    request: TrainingRequest
    place: RunPlace
    checkpoints: Checkpoints
    watch: Stopwatch
    first_step: int
    step: int
    losses: list[float] = dataclasses.field(default_factory=list)
    step_seconds: list[float] = dataclasses.field(default_factory=list)

    @property
    def labels(self) -> dict[str, str]:
        """The run's labels on metrics."""
        return {"run": self.request.run_id, "owner": self.request.ref.owner, "concept": self.request.ref.name}


class TrainerWorker:
    """The body of a trainer actor; `work` runs in one thread, the other methods answer at once in others.

    Args:
        name: Readable name for logs and timelines.
        base: Folder or hub id of the base; empty for the small world.
        open_place: Opens runs' private places.
        resources: What it was given, which bounds the memory it offers to slots.
    """

    def __init__(self, *, name: str, base: str, open_place: OpenPlace, resources: Resources = TRAINER) -> None:
        self._name, self._base, self._open_place, self._resources = name, base, open_place, resources
        self._seconds: dict[int, deque[float]] = {}
        self._inbox: list[tuple[TrainingRequest, int]] = []
        self._active: dict[str, _Active] = {}
        self._cancelled: set[str] = set()
        self._events: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._is_closing = False
        self._trainer: ContestTrainer | None = None

    def place(self) -> int:
        """Answer with the process id: the worker has its resources."""
        return os.getpid()

    def admit(self, request: TrainingRequest, attempt: int) -> None:
        """Take a run in before the next step."""
        with self._lock:
            self._inbox.append((request, attempt))
        self._wake.set()

    def cancel(self, run_id: str) -> None:
        """Stop a run after the step under way, its checkpoint written."""
        with self._lock:
            self._cancelled.add(run_id)

    def close(self) -> None:
        """Let `work` return once no run is left."""
        self._is_closing = True
        self._wake.set()

    def poll(self, after: int) -> list[dict[str, Any]]:
        """Events with a number above `after`, oldest first."""
        with self._lock:
            return self._events[after:]

    def work(self) -> None:
        """Load the base, then step all slots until closed; errors of one run stay with that run."""
        from mos.base_model import load_base
        from mos.training.contest import ContestTrainer
        from mos.training.memory import keep_freed_memory

        keep_freed_memory()
        self._trainer = trainer = ContestTrainer(load_base(self._base or None, device=device()))
        self._tell("", "ready", memory_bytes=free_memory_bytes(self._resources))
        while not (self._is_closing and not self._active and not self._inbox):
            self._take_in(trainer)
            self._obey(trainer)
            if self._active:
                self._step(trainer)
            else:
                self._wake.wait(timeout=0.2)
                self._wake.clear()

    def _take_in(self, trainer: "ContestTrainer") -> None:
        with self._lock:
            arrived, self._inbox = self._inbox, []
        for request, attempt in arrived:
            with self._errors_of(request.run_id):
                self._start(trainer, request, attempt)

    def _start(self, trainer: "ContestTrainer", request: TrainingRequest, attempt: int) -> None:
        from mos.training import SlotSpec

        place = self._open_place(request.run_id)
        report = read_staged_report(place)
        if report is not None:  # an earlier attempt was killed after its last step
            self._tell(request.run_id, "staged", **report)
            return
        watch = Stopwatch("trainer", str(request.ref), self._name)
        checkpoints = Checkpoints(place, attempt=attempt)
        newest = checkpoints.newest()
        spec = SlotSpec(key=request.run_id, data=read_pictures(place), config=request.config)
        trainer.admit(spec, newest.data if newest else None, num_seeds=request.num_seeds)
        step = newest.pointer.step if newest else 0
        self._active[request.run_id] = _Active(
            request=request, place=place, checkpoints=checkpoints, watch=watch, first_step=step, step=step
        )
        metrics.put("mos_slots", {"worker": self._name}, len(self._active))
        self._tell(
            request.run_id,
            "started",
            step=step,
            steps=request.config.steps,
            attempt=attempt,
            pid=os.getpid(),
            worker=self._name,
        )

    def _obey(self, trainer: "ContestTrainer") -> None:
        with self._lock:
            cancelled = self._cancelled & self._active.keys()
        for run_id in sorted(cancelled):
            with self._errors_of(run_id):
                active = self._active[run_id]
                if active.step > active.first_step:
                    self._save(trainer, active)
                trainer.remove(run_id)
                self._leave(run_id)
                self._tell(run_id, "cancelled", step=active.step, interval=active.watch.stop().as_dict())

    def _step(self, trainer: "ContestTrainer") -> None:
        started = time.monotonic()
        reports = trainer.step()
        seconds = time.monotonic() - started
        self._seconds.setdefault(len(reports), deque(maxlen=20)).append(seconds)
        for report in reports:
            active = self._active[report.key]
            with self._errors_of(report.key):
                self._digest(trainer, active, report, seconds)

    def _digest(self, trainer: "ContestTrainer", active: _Active, report: "StepReport", seconds: float) -> None:
        request = active.request
        active.step = report.step
        active.losses.append(report.loss)
        active.step_seconds.append(seconds)
        metrics.add("mos_steps_total", active.labels)
        metrics.observe("mos_step_seconds", active.labels, seconds)
        if report.failure:
            raise JobFailedError(report.failure)
        if report.step % request.report_every == 0 or report.is_done:
            self._report(active, report)
        if report.is_done:
            self._finish(trainer, active)
            return
        if report.step in request.grid_steps:
            self._draw(trainer.base, active, trainer.snapshot(request.run_id))
        if request.checkpoint_every and report.step % request.checkpoint_every == 0:
            self._save(trainer, active)

    def _report(self, active: _Active, report: "StepReport") -> None:
        recent = active.request.report_every
        loss = statistics.fmean(active.losses[-recent:])
        metrics.put("mos_loss", active.labels, loss)
        self._tell(
            active.request.run_id,
            "step",
            step=report.step,
            steps=report.steps,
            loss=loss,
            step_s=statistics.fmean(active.step_seconds[-recent:]),
            embedding_norm=report.embedding_norm,
            cpu_s=process_cpu_s(),
            **self._pace(),
        )

    def _pace(self) -> dict[str, float]:
        """How many slots step together now, and the median duration of such a step."""
        slots = len(self._active)
        seconds = self._seconds.get(slots)
        return {"slots": slots, "slots_step_s": statistics.median(seconds)} if seconds else {}

    def _save(self, trainer: "ContestTrainer", active: _Active) -> None:
        run_id = active.request.run_id
        pointer = active.checkpoints.save(active.step, trainer.slot_state_bytes(run_id))
        metrics.add("mos_checkpoints_total", active.labels)
        self._tell(run_id, "checkpoint", step=pointer.step, size_bytes=pointer.size_bytes)

    def _draw(self, base: "BaseModel", active: _Active, edlora: "EDLoRA") -> None:
        from mos.training.grids import png_grid

        name = grid_name(active.step)
        active.place.put(name, png_grid(base, edlora))
        self._tell(active.request.run_id, "grid", step=active.step, name=name)

    def _finish(self, trainer: "ContestTrainer", active: _Active) -> None:
        from mos.artifact import artifact_bytes
        from mos.training.contest import best_of, verdict

        run_id = active.request.run_id
        results = trainer.results(run_id)
        edlora = best_of(run_id, results)
        if active.step in active.request.grid_steps:
            self._draw(trainer.base, active, edlora)
        artifact = b"".join(artifact_bytes(edlora))
        report = {
            "ref": str(active.request.ref),
            "step": active.step,
            "loss": statistics.fmean(active.losses[-active.request.report_every :]),
            "step_s": statistics.fmean(active.step_seconds),
            "size_bytes": len(artifact),
        } | verdict(results)
        stage_result(active.place, artifact, report)
        self._leave(run_id)
        staged = read_staged_report(active.place) or report
        self._tell(run_id, "staged", interval=active.watch.stop().as_dict(), **staged)

    def _leave(self, run_id: str) -> None:
        del self._active[run_id]
        metrics.put("mos_slots", {"worker": self._name}, len(self._active))

    @contextlib.contextmanager
    def _errors_of(self, run_id: str) -> Iterator[None]:
        """Turn an error of one run into its last event; the worker and its other runs go on."""
        try:
            yield
        except Exception as error:
            kind = classify(error)
            event = {FaultKind.FENCED: "fenced", FaultKind.SYSTEM: "faulted"}.get(kind, "failed")
            self._active.pop(run_id, None)
            if self._trainer is not None and run_id in self._trainer.keys:
                self._trainer.remove(run_id)
            message = str(error) if isinstance(error, MosError) else f"{type(error).__name__}: {error}"
            code = getattr(error, "exit_code", JobFailedError.exit_code)
            self._tell(run_id, event, error=message, exit_code=code)

    def _tell(self, run_id: str, event: str, **fields: Any) -> None:
        with self._lock:
            entry = {"seq": len(self._events) + 1, "run_id": run_id, "event": event, "at": time.time()} | fields
            self._events.append(entry)
        print(event_line(entry), flush=True)
