"""The demo's page and the figures behind it: report.html and demo.json."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.timeline import WorkInterval, most_at_once, num_processes
from jobs.gallery.demo import ConceptPictures, DemoReport, Lineage, Phase, Together, write_demo_report
from jobs.gallery.timeline import ProcessSpan
from jobs.phases import PhaseCost

if TYPE_CHECKING:
    from jobs.demo import Owner
    from jobs.demo_pictures import DemoPictures
    from mos.base_model import BaseModel
    from mos.evaluation.claim import ClaimResult
    from registry import Resolved


def write_report(
    out: Path,
    *,
    owners: Sequence["Owner"],
    found: Sequence["Resolved"],
    base: "BaseModel",
    pictures: "DemoPictures",
    claim: "ClaimResult | None",
    intervals: Sequence[WorkInterval],
    costs: Sequence[PhaseCost],
) -> Path:
    """Write report.html and demo.json into `out`; returns the page's path."""
    report = DemoReport(
        concepts=_concepts(owners, found, pictures),
        together=[
            Together(image=image, prompt=prompt, regions=pictures.regions) for prompt, image in pictures.together
        ],
        claim=claim,
        processes=[_span(interval) for interval in intervals],
        phases=[
            Phase(name=cost.name, wall_s=cost.wall_s, cpu_s=cost.cpu_s, peak_memory_bytes=cost.peak_memory_bytes)
            for cost in costs
        ],
        lineage=_lineage(out, found, base),
        facts=_facts(base),
    )
    (out / "demo.json").write_text(json.dumps(_figures(intervals, costs, claim), indent=1, sort_keys=True) + "\n")
    return write_demo_report(report, out)


def _concepts(
    owners: Sequence["Owner"], found: Sequence["Resolved"], pictures: "DemoPictures"
) -> list[ConceptPictures]:
    by_owner = {owner.name: owner for owner in owners}
    return [
        ConceptPictures(
            ref=str(item.ref),
            word=item.ref.word,
            class_word=by_owner[item.ref.owner].class_word,
            training=by_owner[item.ref.owner].pictures,
            alone=pictures.alone[str(item.ref)],
            prompts=[prompt.format(item.ref.word) for prompt in pictures.prompts],
        )
        for item in found
    ]


def _span(interval: WorkInterval) -> ProcessSpan:
    return ProcessSpan(
        name=f"{interval.role} {interval.label}",
        role=interval.role,
        pid=interval.process_id,
        started=interval.started_at,
        ended=interval.ended_at,
    )


def _lineage(out: Path, found: Sequence["Resolved"], base: "BaseModel") -> list[Lineage]:
    record = json.loads((out / "fused" / "fused.json").read_text())
    trained_on = f"{base.facts.name} {base.facts.fingerprint['unet'][:12]}"
    made = [
        Lineage(name=str(item.ref), kind="concept", sha256=item.manifest.weights.sha256, made_from=trained_on)
        for item in found
    ]
    sources = ", ".join(str(item.ref) for item in found)
    return [*made, Lineage(name="fused", kind="fusion", sha256=record["weights_sha256"], made_from=sources)]


def _facts(base: "BaseModel") -> dict[str, str]:

    from jobs.demo import IDENTITY_SEED, machine

    return {
        "base": base.facts.name,
        "machine": machine(),
        "identity seed": str(IDENTITY_SEED),
        "versions": ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers", "ray")),
    }


def _figures(
    intervals: Sequence[WorkInterval], costs: Sequence[PhaseCost], claim: "ClaimResult | None"
) -> dict[str, Any]:
    trainers = [item for item in intervals if item.role == "trainer"]
    solvers = [item for item in intervals if item.role == "solver"]
    figures: dict[str, Any] = {
        "phases": [asdict(cost) for cost in costs],
        "intervals": [interval.as_dict() for interval in intervals],
        "trainers_at_once": most_at_once(trainers),
        "solver_processes": num_processes(solvers),
        "recorder_processes": num_processes([item for item in intervals if item.role == "recorder"]),
    }
    if claim is not None:
        figures["cells"] = {
            cell.method: {name: [part.mean, part.low, part.high] for name, part in cell.intervals.items()}
            for cell in claim.cells
        }
        figures["verdicts"] = [asdict(verdict) for verdict in claim.verdicts]
    return figures
