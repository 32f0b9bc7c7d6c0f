"""The paper's claims, answered from the rows of a table: docs/claims.md, its figures and its HTML report."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.table_config import FUSIONS, SCALE_ZERO, SINGLES, TableConfig, TableRun, fused_method
from jobs.table_figures import grid_sizes, kept_figure, write_grid
from mos.evaluation.drawing import CEILING_AUTOENCODER, CEILING_RENDERS, FLOOR_BASE, FLOOR_OTHER
from mos.evaluation.intervals import Interval
from mos.evaluation.results import METRICS, PictureScore, summarise, values_of
from mos.evaluation.verdicts import (
    MAX_LOSS_SHARE,
    PRIMARY,
    Values,
    Verdict,
    combined,
    comparable,
    primary_metric,
    readiness,
)

BY_HAND = "<!-- Written by hand from here on; kept when the page is made again. -->"

SHOWN = (
    PRIMARY,
    "probe_pattern",
    "probe_accessory",
    "image_alignment_pairwise",
    "text_alignment",
    "probe_backdrop",
    "drift",
)
"""What the two tables show; the others stand in a table of their own."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What fusing `size` concepts by one row costs: single minus fused, paired, interval over concepts."""

    row: str
    size: int
    level: Interval
    loss: Interval


def losses(values: Values, config: TableConfig) -> list[Loss]:
    """The loss of every fused row at every size."""
    found = []
    for row in config.fusions:
        for size in config.sizes:
            fused, single = fused_method(row, size), FUSIONS[row][0]
            if comparable(values, fused, single):
                level = combined(values, {fused: 1.0}, True)
                found.append(
                    Loss(row=row, size=size, level=level, loss=combined(values, {single: 1.0, fused: -1.0}, True))
                )
    return found


def answers(values: Values, config: TableConfig) -> dict[str, dict[int, Verdict]]:
    """The paper's questions about fusing: question -> number of concepts -> answer, paired, over concepts."""
    found: dict[str, dict[int, Verdict]] = {}
    for size in config.sizes:
        for verdict in _answers_of(size, values):
            found.setdefault(verdict.statement, {})[size] = verdict
    return found


def _answers_of(size: int, values: Values) -> Iterator[Verdict]:
    name = {row: fused_method(row, size) for row in FUSIONS}
    averaged = name["ED-LoRA + average"]
    if comparable(values, "LoRA", "ED-LoRA", name["LoRA + average"], averaged):
        margin = {"LoRA": 1.0, name["LoRA + average"]: -1.0, "ED-LoRA": -1.0, averaged: 1.0}
        yield _answer("Averaging costs ED-LoRA less than LoRA.", values, margin)
    for row in FUSIONS:
        if "gradient" in row and comparable(values, "ED-LoRA", averaged, name[row]):
            yield _answer(f"{row} keeps more than averaging.", values, {name[row]: 1.0, averaged: -1.0})
            yield _third(row, values, name[row], averaged)


def scale_zero(values: Values) -> Verdict | None:
    """Whether the words carry an identity without the updates; None where they were not drawn."""
    if not comparable(values, SCALE_ZERO, FLOOR_BASE):
        return None
    claim = "At LoRA scale 0 the words alone show more of the identity than the untrained base."
    return _answer(claim, values, {SCALE_ZERO: 1.0, FLOOR_BASE: -1.0})


def _third(row: str, values: Values, fused: str, averaged: str) -> Verdict:
    averaging = combined(values, {"ED-LoRA": 1.0, averaged: -1.0}, True)
    claim = f"{row} loses at most a third of what averaging loses."
    if not averaging.above_zero:
        return Verdict(statement=claim, holds=None, evidence=f"averaging itself loses {averaging}")
    verdict = _answer(claim, values, {"ED-LoRA": MAX_LOSS_SHARE - 1.0, fused: 1.0, averaged: -MAX_LOSS_SHARE})
    own = combined(values, {"ED-LoRA": 1.0, fused: -1.0}, True)
    return Verdict(statement=claim, holds=verdict.holds, evidence=f"{own} against {averaging}")


def _answer(statement: str, values: Values, weights: dict[str, float]) -> Verdict:
    interval = combined(values, weights, True)
    holds = True if interval.above_zero else (False if interval.below_zero else None)
    return Verdict(statement=statement, holds=holds, evidence=str(interval))


def write_claims(run: TableRun, digest: str, blocks: Sequence[str], docs: Path | None) -> Path:
    """Write `claims.md`, its figures and `evaluation.html` into the table's folder; the page also as `docs`."""
    from cluster.evaluation import score_store
    from jobs.gallery.evaluation import write_evaluation_report

    store = score_store(str(run.folder / "registry"), digest)
    rows = store.read(blocks)
    write_evaluation_report(digest, store.settings(), rows, run.folder, highlight="")
    for page in [run.folder / "claims.md", *([docs] if docs else [])]:
        figures = page.parent / page.stem
        figures.mkdir(parents=True, exist_ok=True)
        for size in grid_sizes(run.config):
            write_grid(rows, run.config, size, figures / f"grid-{size}.png")
        (figures / "kept.svg").write_text(kept_figure([row.score for row in rows], run.config), encoding="utf-8")
        text = claims_page(run, digest, [row.score for row in rows], figures.name)
        page.write_text(text + _by_hand(page), encoding="utf-8")
    return run.folder / "claims.md"


def _by_hand(page: Path) -> str:
    """What people wrote below the mark of the page that is there."""
    written = page.read_text(encoding="utf-8") if page.exists() else ""
    _, mark, rest = written.partition(BY_HAND)
    return f"\n{mark}{rest}" if mark else ""


def claims_page(run: TableRun, digest: str, scores: Sequence[PictureScore], figures: str) -> str:
    """The page as Markdown."""
    primary = primary_metric(scores)
    values = {
        method: values_of((row for row in scores if row.method == method), primary)
        for method in dict.fromkeys(row.method for row in scores)
    }
    values = {method: found for method, found in values.items() if found}
    unfused = [CEILING_RENDERS, CEILING_AUTOENCODER, *SINGLES, SCALE_ZERO, FLOOR_OTHER, FLOOR_BASE]
    fused = [fused_method(row, size) for size in run.config.sizes for row in FUSIONS]
    parts = [
        "# The paper's claims, measured on the small world",
        _introduction(run, digest, scores, primary),
        "## May this base tell?",
        _gate(scores),
        "## Answers",
        _answer_table(answers(values, run.config), run.config.sizes),
        _scale_zero_line(scale_zero(values)),
        _missing(run.config, scores),
        "## Before fusion, with ceilings and floors",
        _table(scores, unfused, SHOWN),
        "## After fusion",
        _table(scores, fused, SHOWN),
        f"## What fusing costs: {primary}, single minus fused",
        _loss_table(losses(values, run.config)),
        "Means over the concepts that were fused; dashed what the same concepts keep alone. Intervals: the tables.",
        f"![Each measure over the number of concepts fused]({figures}/kept.svg)",
        "## The other measures",
        _table(scores, unfused + fused, [metric.name for metric in METRICS if metric.name not in SHOWN]),
        "## Pictures",
        "One prompt and one first noise along a row; columns as named above the pictures.",
        *(f"![{size} concepts fused]({figures}/grid-{size}.png)" for size in grid_sizes(run.config)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(run: TableRun, digest: str, scores: Sequence[PictureScore], primary: str) -> str:
    config = run.config
    sizes = ", ".join(map(str, config.sizes))
    trainings = f"{config.num_seeds} training{'s'[: config.num_seeds > 1]}"
    return (
        f"{config.num_concepts} concepts, {trainings} of each, fused {sizes} at a time; "
        f"{len(scores)} scored pictures; the suite `{Path(config.suite).stem}` with {config.prompt_seeds} fixed seeds "
        "a prompt, "
        f"{config.num_inference_steps} denoising steps, guidance {config.guidance_scale}. Same prompts and first "
        "noise for every method. Intervals are 95 % bootstrap intervals that draw whole concepts again. The "
        f"measure that decides was fixed beforehand: `{primary}`. `probe_identity` is the share of class, pattern, "
        "accessory and main colour that the attribute probe finds again in a picture.\n\n"
        f"Evaluation `{digest}`, made and made again by\n\n```\n{command_line(run)}\n```"
    )


def command_line(run: TableRun) -> str:
    """The command that makes this table."""
    config, plain = run.config, TableConfig()
    words = ["python -m jobs.evaluate_table --out runs/table --docs docs/claims.md"]
    options = {
        "--concepts": (config.num_concepts, plain.num_concepts),
        "--seeds": (config.num_seeds, plain.num_seeds),
        "--sizes": (",".join(map(str, config.sizes)), ",".join(map(str, plain.sizes))),
        "--suite": (config.suite, plain.suite),
        "--prompt-seeds": (config.prompt_seeds, plain.prompt_seeds),
        "--steps": (config.num_inference_steps, plain.num_inference_steps),
        "--guidance": (config.guidance_scale, plain.guidance_scale),
        "--training-steps": (config.training_steps, plain.training_steps),
        "--singles": (",".join(config.singles), ",".join(plain.singles)),
        "--fusions": (",".join(config.fusions), ",".join(plain.fusions)),
    }
    for name, (value, default) in options.items():
        if value != default:
            words.append(f"{name} '{value}'" if " " in str(value) else f"{name} {value}")
    return " ".join(words)


def _missing(config: TableConfig, scores: Sequence[PictureScore]) -> str:
    """What the full table has and this one has not yet."""
    full, methods = TableConfig(), {row.method for row in scores}
    lacking = [row for row in (*SINGLES, SCALE_ZERO) if row not in methods]
    lacking += [f"{row} of {size}" for row in FUSIONS for size in full.sizes if fused_method(row, size) not in methods]
    shares = (
        (config.num_concepts, full.num_concepts, "concepts"),
        (config.num_seeds, full.num_seeds, "trainings of each concept"),
        (config.prompt_seeds, full.prompt_seeds, "pictures a prompt"),
    )
    lacking = [*[f"only {have} of {whole} {what}" for have, whole, what in shares if have < whole], *lacking]
    if not lacking:
        return ""
    lines = "\n".join(f"- {item}" for item in lacking)
    return f"## Not measured yet\n\nThe same command without its options goes on where this stopped.\n\n{lines}"


def _gate(scores: Sequence[PictureScore]) -> str:
    """Whether the autoencoder keeps what the claims are about."""
    ready = readiness(scores)
    if ready is None:
        return "The probe, the autoencoder's ceiling or the untrained base took no part, so this is not known."
    tail = "" if ready.holds else " The answers below are then about this base more than about the method."
    return f"{'Yes' if ready.holds else 'No'}: {ready.evidence}.{tail}"


WORDS = {True: "yes", False: "no", None: "cannot be told"}


def _answer_table(found: Mapping[str, Mapping[int, Verdict]], sizes: Sequence[int]) -> str:
    """A question a line, a size a column: the answer, then the difference that decides or both losses."""
    lines = ["| concepts fused | " + " | ".join(map(str, sizes)) + " |", "|---" * (len(sizes) + 1) + "|"]
    for question, verdicts in found.items():
        cells = [f"**{WORDS[verdicts[n].holds]}** {verdicts[n].evidence}" if n in verdicts else "" for n in sizes]
        lines.append(f"| {question} | " + " | ".join(cells) + " |")
    return "\n".join(lines) if found else ""


def _scale_zero_line(verdict: Verdict | None) -> str:
    return f"{verdict.statement.rstrip('.')}: **{WORDS[verdict.holds]}**, {verdict.evidence}." if verdict else ""


def _table(scores: Sequence[PictureScore], methods: Sequence[str], metrics: Sequence[str]) -> str:
    cells = {cell.method: cell for cell in summarise(scores, by_concept=True)}
    present = [method for method in methods if method in cells]
    columns = [name for name in metrics if any(name in cells[method].intervals for method in present)]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for method in present:
        shown = [str(cells[method].intervals[name]) if name in cells[method].intervals else "" for name in columns]
        lines.append(f"| {method} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _loss_table(found: Sequence[Loss]) -> str:
    lines = ["| | concepts | kept | lost |", "|---|---|---|---|"]
    lines += [f"| {item.row} | {item.size} | {item.level} | {item.loss} |" for item in found]
    return "\n".join(lines)
