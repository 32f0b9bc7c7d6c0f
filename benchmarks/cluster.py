"""What the cluster costs and gains: `python -m benchmarks.cluster [--base PATH] [--steps N]`.

Every figure is a ratio within one run or CPU seconds; wall time stands beside them. The simulation of 1,000
owners on 64 GPUs needs step times measured on a GPU (benchmarks/results/train.json); without them its rows say so.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.owners import arrivals, simulate
from benchmarks.results_file import RESULTS, Row, write_results
from cluster.places import RegistryPlaces
from cluster.session import Session, local_ray
from cluster.slots import Limits
from cluster.staging import stage_pictures
from cluster.supervisor import PoolConfig, Supervisor
from cluster.timeline import process_cpu_s
from cluster.trainer import TrainingRequest
from mos.base_model import load_base
from mos.concept import ConceptRef
from mos.smallworld.concepts import concept_identity, concept_pictures
from mos.training import PRESETS, ConceptData, SlotSpec, Trainer, TrainingConfig, concept_data
from mos.training.memory import keep_freed_memory

OWNERS = (1, 2, 4, 8)
GPUS, NUM_OWNERS, HOURS = 64, 1000, 8.0
CLASSES = ("robot", "cat", "house", "car", "mug", "tree", "fish", "flower")


@dataclass
class Watch:
    """The events of one pool, with the time each arrived here."""

    events: list[tuple[float, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, _: str, event: Any) -> None:
        self.events.append((time.time(), dict(event)))

    def first(self, kind: str) -> dict[str, Any]:
        return next(event for _, event in self.events if event["event"] == kind)

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [event for _, event in self.events if event["event"] == kind]


def pictures(class_word: str) -> ConceptData:
    """Eight pictures of one individual of the small world."""
    shown = concept_pictures(concept_identity(1, class_word), 1)
    return concept_data(shown, name=class_word, class_word=class_word)


def request(number: int, url: str, config: TrainingConfig, *, checkpoint_every: int = 0) -> TrainingRequest:
    """Stage one owner's pictures and ask for their training."""
    class_word, run_id = CLASSES[number], f"bench-{number}-{time.time_ns():x}"
    stage_pictures(RegistryPlaces(url)(run_id), pictures(class_word))
    return TrainingRequest(
        run_id=run_id,
        ref=ConceptRef(f"owner-{number}", class_word),
        config=config,
        checkpoint_every=checkpoint_every,
        report_every=1,
    )


def on_actors(
    number: int, url: str, base: str, config: TrainingConfig, *, slots: int, checkpoint_every: int = 0
) -> tuple[Watch, Supervisor, float]:
    """Train `number` owners at once; returns the events, the supervisor, and the wall seconds."""
    watch = Watch()
    limits = Limits(max_workers=-(-number // slots), slots_per_worker=slots)
    pool = PoolConfig(limits=limits, heartbeat_timeout_s=600.0, pending_timeout_s=600.0)
    supervisor = Supervisor(RegistryPlaces(url), pool, on_event=watch)
    started = time.monotonic()
    for index in range(number):
        supervisor.enqueue(request(index, url, config, checkpoint_every=checkpoint_every), base)
    outcomes = supervisor.run()
    assert all(event["event"] == "staged" for event in outcomes.values()), outcomes
    return watch, supervisor, time.monotonic() - started


def plain_step_cpu_s(base: str, config: TrainingConfig) -> float:
    """CPU seconds of a step of the plain loop in this process, the median after the first."""
    keep_freed_memory()  # as trainers do
    trainer = Trainer(load_base(base or None))
    trainer.admit(SlotSpec(key="plain", data=pictures(CLASSES[0]), config=config))
    marks = []
    while trainer.keys:
        trainer.step()
        marks.append(process_cpu_s())
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(marks))


def actor_step_cpu_s(watch: Watch) -> float:
    """The same of a trainer's process, from its reports: one a step."""
    marks = [float(event["cpu_s"]) for event in watch.all("step")]
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(marks))


def first_step_and_overhead(url: str, base: str, config: TrainingConfig) -> list[Row]:
    """Submit to first step, and what an actor's step costs beside the plain loop's, measured before and after it."""
    before = plain_step_cpu_s(base, config)
    watch, _, _ = on_actors(1, url, base, config, slots=1)
    plain = (before + plain_step_cpu_s(base, config)) / 2
    submitted = watch.events[0][0]
    first = watch.first("step")["at"] - submitted
    return [
        Row(name="submit to first step", value=first, unit="s wall", how="one owner, workers and base cold"),
        Row(
            name="a step by an actor / by the plain loop",
            value=actor_step_cpu_s(watch) / plain,
            unit="ratio",
            goal="<= 1.1",
            how=f"CPU seconds of whole processes, median of {config.steps} steps of batch {config.batch_size}",
        ),
    ]


def throughput(url: str, base: str, config: TrainingConfig) -> list[Row]:
    """N owners in the slots of one trainer against one alone in it just before: CPU seconds of the steps themselves."""
    rows = []
    for number in OWNERS:
        watch, _, _ = on_actors(1, url, base, config, slots=1)
        alone = cpu_s_a_slot_step(watch.all("step"), 1)
        if number > 1:
            watch, _, _ = on_actors(number, url, base, config, slots=number)
        together = cpu_s_a_slot_step(watch.all("step"), number)
        how = f"one thread, {config.steps} steps of batch {config.batch_size}, while all {number} step at once"
        many = f"{number} owner{'s' if number > 1 else ''} in one trainer"
        rows.append(Row(name=many, value=1 / together, unit="concept-steps/CPU s", how=how))
        if number > 1:
            name = f"{many} / one after another"
            rows.append(Row(name=name, value=alone / together, unit="ratio", goal=">= 1.0", how=how))
    return rows


def cpu_s_a_slot_step(steps: Sequence[Mapping[str, Any]], slots: int) -> float:
    """CPU seconds of a trainer's process for one step of one slot, while so many step at once.

    Reports from before and after that do not count: encoding an owner's pictures and judging a finished concept
    cost what they cost alone.
    """
    marks = [float(event["cpu_s"]) for event in steps if event.get("slots") == slots]
    return (marks[-1] - marks[0]) / (len(marks) - 1)


def recovery(url: str, base: str, config: TrainingConfig) -> list[Row]:
    """SIGKILL a trainer halfway: seconds until it steps again, and steps done twice."""
    every = max(1, config.steps // 4)
    watch, killed_at = Watch(), 0.0
    pool = PoolConfig(limits=Limits(max_workers=1), heartbeat_timeout_s=600.0, pending_timeout_s=600.0)
    supervisor = Supervisor(RegistryPlaces(url), pool, on_event=watch)
    supervisor.enqueue(request(0, url, config, checkpoint_every=every), base)
    while not supervisor.is_idle:
        supervisor.tick()
        steps = watch.all("step")
        if not killed_at and steps and steps[-1]["step"] > 2 * every:
            (process_id,) = supervisor.worker_pids().values()
            os.kill(process_id, signal.SIGKILL)
            killed_at = time.time()
        time.sleep(0.05)
    supervisor.close()
    again = watch.all("started")[-1]
    after = next(event for event in watch.all("step") if event["at"] > again["at"])
    redone = sum(1 for event in watch.all("step") if event["at"] < killed_at and event["step"] > again["step"])
    return [
        Row(name="kill to next step", value=after["at"] - killed_at, unit="s wall", how="a new process loads the base"),
        Row(
            name="steps done twice after a kill",
            value=redone,
            unit="steps",
            goal=f"<= {every}",
            how=f"checkpoint every {every}",
        ),
    ]


def many_owners(results: Path) -> list[Row]:
    """1,000 owners on 64 GPUs, from GPU step times if there are any."""
    seconds = gpu_step_seconds(results)
    names = ("utilisation", "median wait", "95th percentile wait", "fairness (Jain)", "concepts per GPU hour")
    if not seconds:
        how = "needs GPU step times in benchmarks/results/train.json"
        return [Row(name=f"{NUM_OWNERS} owners on {GPUS} GPUs: {name}", value=None, unit="", how=how) for name in names]
    slots = max(seconds, key=lambda count: count / seconds[count])
    runs = arrivals(num_owners=NUM_OWNERS, hours=HOURS, steps=(500, 1000), seed=0)
    found = simulate(runs, num_gpus=GPUS, slots_per_gpu=slots, step_seconds=seconds, limits=Limits())
    waits = sorted(found.waits_s)
    values = (
        found.utilisation,
        statistics.median(waits),
        waits[int(0.95 * len(waits))],
        found.fairness,
        found.concepts_per_gpu_hour,
    )
    units = ("share", "s", "s", "index", "1/h")
    how = f"{len(runs)} runs in {HOURS:g} h, {slots} slots a GPU, measured {seconds[slots] * 1000:.0f} ms a step"
    return [
        Row(name=f"{NUM_OWNERS} owners on {GPUS} GPUs: {name}", value=value, unit=unit, how=how)
        for name, value, unit in zip(names, values, units, strict=True)
    ]


def gpu_step_seconds(results: Path) -> dict[int, float]:
    """Slots -> seconds of a step of all of them, from the rows `GPU: K slots` of the training benchmark."""
    if not results.exists():
        return {}
    found = {}
    for row in json.loads(results.read_text())["rows"]:
        measured = re.fullmatch(r"GPU: (\d+) slots?", str(row["name"]))
        if measured and row["value"] is not None:
            slots = int(measured[1])
            found[slots] = slots / float(row["value"])  # the rows are concept-steps a second
    return found


def measure(session: Session, base: str, steps: int) -> list[Row]:
    """All rows on one private Ray."""
    config = PRESETS["small-world"].with_options(steps=steps, batch_size=2)
    rows = [Row(name="processes of a private Ray", value=len(session.processes()), unit="processes")]
    with tempfile.TemporaryDirectory() as url:
        rows += first_step_and_overhead(url, base, config)
        rows += throughput(url, base, config)
        rows += recovery(url, base, config)
    return rows + many_owners(RESULTS / "train.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="", help="folder of the base; default the small world")
    parser.add_argument("--steps", type=int, default=32)
    options = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        started = time.monotonic()
        session = stack.enter_context(local_ray(num_cpus=2))
        start = Row(name="start of a private Ray", value=time.monotonic() - started, unit="s wall")
        rows = [start, *measure(session, options.base, options.steps)]
    write_results("cluster", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
