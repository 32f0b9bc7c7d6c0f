"""The demo's report: what was trained, published, fused and drawn, by which processes, and how well.

The caller fills a `DemoReport` with plain data and calls `write_demo_report(report, directory)`, which writes
`report.html` there. Every part but the concepts may be empty; an empty part leaves no section behind::

    report = DemoReport(
        concepts=[ConceptPictures(ref="alice/robot@1", word="<alice-robot>", class_word="robot",
                                  training=[image, ...], alone=[image, ...], prompts=["...", ...])],
        before_after=[BeforeAfter(ref="alice/robot@1", prompt="...", seed=3,
                                  pictures={"single": image, "average": image, "gradient": image})],
        together=[Together(image=image, prompt="...", regions=["<alice-robot> left", ...])],
        claim=claim_result,                       # mos.evaluation.claim.ClaimResult or None
        processes=[ProcessSpan(name="train alice/robot", role="trainer", pid=1, started=t0, ended=t1)],
        phases=[Phase(name="train", wall_s=40.0, cpu_s=78.0, peak_memory_bytes=1_200_000_000)],
        lineage=[Lineage(name="alice/robot@1", kind="concept", sha256="...", made_from="base ...")],
        facts={"base": "small world", "machine": "2 cores"},
    )
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.gallery.document import (
    Block,
    Document,
    Drawing,
    Grid,
    Picture,
    Section,
    Statements,
    Table,
    write_document,
)
from jobs.gallery.scores import difference_table, score_charts, score_table
from jobs.gallery.timeline import ProcessSpan, most_at_once, timeline_svg

if TYPE_CHECKING:
    from PIL import Image

    from mos.evaluation.claim import ClaimResult


@dataclass(frozen=True, kw_only=True)
class ConceptPictures:
    """One concept: the pictures it was taught with and what it draws alone (`prompts`: one a sample)."""

    ref: str
    word: str
    class_word: str
    training: Sequence["Image.Image"]
    alone: Sequence["Image.Image"] = ()
    prompts: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class BeforeAfter:
    """The same prompt and seed drawn by each method, in the order of `pictures`."""

    ref: str
    prompt: str
    seed: int
    pictures: Mapping[str, "Image.Image"]


@dataclass(frozen=True, kw_only=True)
class Together:
    """All concepts in one picture: the global prompt and one line a region."""

    image: "Image.Image"
    prompt: str
    regions: Sequence[str] = ()
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What one phase took: wall seconds, CPU seconds of all processes, largest memory of all together."""

    name: str
    wall_s: float
    cpu_s: float
    peak_memory_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """One thing that was made: its digest and what it was made from."""

    name: str
    kind: str
    sha256: str
    made_from: str = ""


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """Everything the demo's page shows; see the module's example.

    Attributes:
        concepts: At least one.
        before_after: Rows of the comparison grid; taken from the claim's pictures when empty.
        together: Pictures with all concepts by regional sampling.
        claim: The identity claim as measured, or None.
        processes: Spans of work of every process.
        phases: Times and memory, in order; the page adds the total, so one named "all" is left out.
        lineage: Digests, in order.
        facts: Short facts for the end of the page (base, machine, seed, versions).
        command: The command that made the page again.
        notes: What is weak and should be known.
    """

    concepts: Sequence[ConceptPictures]
    before_after: Sequence[BeforeAfter] = ()
    together: Sequence[Together] = ()
    claim: "ClaimResult | None" = None
    processes: Sequence[ProcessSpan] = ()
    phases: Sequence[Phase] = ()
    lineage: Sequence[Lineage] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    command: str = "make demo"
    notes: Sequence[str] = ()


def write_demo_report(report: DemoReport, directory: Path) -> Path:
    """Write `report.html` into `directory` (made if missing) and return its path."""
    return write_document(demo_document(report), directory / "report.html")


def demo_document(report: DemoReport) -> Document:
    """The page of a demo as data."""
    report = replace(report, phases=[phase for phase in report.phases if phase.name != "all"])
    sections = [
        _concepts_section(report),
        _together_section(report),
        _before_after_section(report),
        _scores_section(report),
        _processes_section(report),
        _lineage_section(report),
    ]
    return Document(
        title="Concepts trained apart, fused, drawn together",
        subtitle="Each owner trained one concept from a few pictures; nobody shared pictures. The published "
        "concepts were fused into one model and drawn alone and together.",
        tiles=_tiles(report),
        sections=[section for section in sections if section.blocks],
        footer=[
            f"Made by: {report.command}",
            *(f"{name}: {value}" for name, value in report.facts.items()),
            *report.notes,
        ],
    )


def _tiles(report: DemoReport) -> list[tuple[str, str]]:
    tiles = [(str(len(report.concepts)), "concepts by as many owners")]
    for role, label in (("trainer", "trainers at work at once"), ("solver", "solvers at work at once")):
        if any(span.role == role for span in report.processes):
            tiles.append((str(most_at_once(report.processes, role)), label))
    if report.phases:
        tiles.append((_seconds(sum(phase.wall_s for phase in report.phases)), "wall time"))
        tiles.append((_seconds(sum(phase.cpu_s for phase in report.phases)), "CPU time of all processes"))
        memory = max(phase.peak_memory_bytes for phase in report.phases)
        if memory:
            tiles.append((f"{memory / 1e9:.1f} GB", "largest memory"))
    return tiles


def _concepts_section(report: DemoReport) -> Section:
    training = [
        (
            concept.ref,
            [
                Picture(image=image, alt=f"{concept.ref}: training picture {i + 1}")
                for i, image in enumerate(concept.training)
            ],
        )
        for concept in report.concepts
    ]
    alone = [
        (
            f"{concept.ref}, typed as {concept.word}",
            [
                Picture(image=image, alt=f"{concept.ref} alone: {prompt}", caption=prompt)
                for image, prompt in _zip_prompts(concept)
            ],
        )
        for concept in report.concepts
        if concept.alone
    ]
    blocks: list[Block] = [Grid(rows=training, note="The pictures each owner trained with.")]
    if alone:
        blocks.append(Grid(rows=alone, note="Each concept alone, drawn by the fused model on new prompts."))
    return Section(title="The concepts", blocks=blocks, lead="What was taught, and what each concept draws alone.")


def _zip_prompts(concept: ConceptPictures) -> list[tuple["Image.Image", str]]:
    prompts = list(concept.prompts) or [""] * len(concept.alone)
    return list(zip(concept.alone, prompts, strict=True))


def _together_section(report: DemoReport) -> Section:
    blocks: list[Block] = []
    if report.together:
        pictures = [
            Picture(image=row.image, alt=f"{row.prompt}: {'; '.join(row.regions)}", caption=row.caption)
            for row in report.together
        ]
        is_wide = any(row.image.width > 1.5 * row.image.height for row in report.together)
        in_row = 2 if is_wide else 3
        size = 432 if is_wide else 288 if len(pictures) <= 3 else 224
        rows = [("", pictures[start : start + in_row]) for start in range(0, len(pictures), in_row)]
        first = report.together[0]
        note = f"Prompt: {first.prompt}. Regions: {'; '.join(first.regions)}."
        blocks.append(Grid(rows=rows, size_px=size, note=note))
    return Section(
        title="Together",
        blocks=blocks,
        lead="All concepts in one picture, each in its own region, from the fused model.",
    )


def _before_after_section(report: DemoReport) -> Section:
    rows = list(report.before_after) or _pictures_of_claim(report.claim)
    blocks: list[Block] = []
    if rows:
        methods = list(dict.fromkeys(method for row in rows for method in row.pictures))
        grid = [
            (
                f"{row.ref} · seed {row.seed}",
                [
                    Picture(image=row.pictures[method], alt=f"{method}: {row.prompt}, seed {row.seed}")
                    if method in row.pictures
                    else None
                    for method in methods
                ],
            )
            for row in rows
        ]
        blocks.append(Grid(columns=methods, rows=grid, note="Same prompt and same first noise along a row."))
    return Section(title="Before and after fusion", blocks=blocks, lead="What each way of merging keeps of a concept.")


def _pictures_of_claim(claim: "ClaimResult | None") -> list[BeforeAfter]:
    if claim is None:
        return []
    return [
        BeforeAfter(ref=row.concept, prompt=row.prompt, seed=row.seed, pictures=row.pictures) for row in claim.examples
    ]


def _scores_section(report: DemoReport) -> Section:
    blocks: list[Block] = []
    if report.claim is not None:
        claim = report.claim
        blocks = [
            Statements(rows=[(verdict.holds, verdict.statement, verdict.evidence) for verdict in claim.verdicts]),
            score_charts(
                claim.cells,
                highlight="gradient",
                note="Dots are means, bars 95 % bootstrap intervals. Hollow marks are ceilings (what perfect "
                "pictures score) and floors (what comes without the identity).",
            ),
            score_table(claim.cells, highlight="gradient"),
            difference_table(claim.differences, note="Differences are paired: same concept, prompt and seed."),
        ]
    return Section(
        title="Scores", blocks=blocks, lead="How much of each identity is left, and how far the prompt is obeyed."
    )


def _processes_section(report: DemoReport) -> Section:
    blocks: list[Block] = []
    if report.processes:
        blocks.append(Drawing(drawings=[("", timeline_svg(report.processes))], wide=True))
    if report.phases:
        rows = [
            [
                phase.name,
                _seconds(phase.wall_s),
                _seconds(phase.cpu_s),
                f"{phase.peak_memory_bytes / 1e9:.2f} GB" if phase.peak_memory_bytes else "",
            ]
            for phase in report.phases
        ]
        total = [_seconds(sum(p.wall_s for p in report.phases)), _seconds(sum(p.cpu_s for p in report.phases))]
        memory = max(phase.peak_memory_bytes for phase in report.phases)
        rows.append(["all", *total, f"{memory / 1e9:.2f} GB" if memory else ""])
        columns = ["phase", "wall", "CPU, all processes", "largest memory"]
        blocks.append(Table(columns=columns, rows=rows, numeric=(1, 2, 3), emphasis=(len(rows) - 1,)))
    return Section(
        title="Processes and times", blocks=blocks, lead="Who worked when; bars of one colour that overlap ran at once."
    )


def _lineage_section(report: DemoReport) -> Section:
    blocks: list[Block] = []
    if report.lineage:
        rows = [[row.name, row.kind, row.sha256, row.made_from] for row in report.lineage]
        blocks.append(Table(columns=["", "kind", "sha256", "made from"], rows=rows))
    return Section(title="Lineage", blocks=blocks, lead="What was made from what, by content.")


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 100 else f"{value:.0f} s"
