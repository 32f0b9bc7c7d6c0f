"""The paper's claims, answered from the rows of a table: docs/claims.md, its figures and its HTML report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.table_config import FUSIONS, SCALE_ZERO, SINGLES, TableConfig, TableRun, fused_method
from mos.evaluation.drawing import CEILING_AUTOENCODER, CEILING_RENDERS, FLOOR_BASE, FLOOR_OTHER
from mos.evaluation.intervals import Interval
from mos.evaluation.results import PictureScore, summarise, values_of
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

if TYPE_CHECKING:
    from cluster.evaluation_rows import ScoredPicture

BY_HAND = "<!-- Written by hand from here on; kept when the page is made again. -->"

SHOWN = (PRIMARY, "probe_pattern", "probe_accessory", "image_alignment_pairwise", "text_alignment", "probe_backdrop")


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


def answers(values: Values, config: TableConfig) -> list[Verdict]:
    """The questions of the paper, each at every size, with its paired interval over concepts."""
    verdicts = []
    for size in config.sizes:
        name = {row: fused_method(row, size) for row in FUSIONS}
        if comparable(values, "LoRA", "ED-LoRA", name["LoRA + average"], name["ED-LoRA + average"]):
            margin = {"LoRA": 1.0, name["LoRA + average"]: -1.0, "ED-LoRA": -1.0, name["ED-LoRA + average"]: 1.0}
            verdicts.append(_answer(f"Averaging {size} concepts costs ED-LoRA less than LoRA.", values, margin))
        for row in FUSIONS:
            if "gradient" in row and comparable(values, "ED-LoRA", name["ED-LoRA + average"], name[row]):
                claim = f"{row} of {size} keeps more of the identities than averaging."
                margin = {name[row]: 1.0, name["ED-LoRA + average"]: -1.0}
                verdicts += [_answer(claim, values, margin), _third(row, size, values, name)]
    if comparable(values, SCALE_ZERO, FLOOR_BASE):
        claim = "At LoRA scale 0 the words alone show more of the identity than the untrained base."
        verdicts.append(_answer(claim, values, {SCALE_ZERO: 1.0, FLOOR_BASE: -1.0}))
    return verdicts


def _third(row: str, size: int, values: Values, name: Mapping[str, str]) -> Verdict:
    averaging = combined(values, {"ED-LoRA": 1.0, name["ED-LoRA + average"]: -1.0}, True)
    claim = f"{row} of {size} loses at most a third of what averaging loses."
    if not averaging.above_zero:
        return Verdict(statement=claim, holds=None, evidence=f"averaging itself loses {averaging}")
    weights = {"ED-LoRA": MAX_LOSS_SHARE - 1.0, name[row]: 1.0, name["ED-LoRA + average"]: -MAX_LOSS_SHARE}
    verdict = _answer(claim, values, weights)
    own = combined(values, {"ED-LoRA": 1.0, name[row]: -1.0}, True)
    return Verdict(statement=claim, holds=verdict.holds, evidence=f"it loses {own}, averaging {averaging}")


def _answer(statement: str, values: Values, weights: dict[str, float]) -> Verdict:
    interval = combined(values, weights, True)
    holds = True if interval.above_zero else (False if interval.below_zero else None)
    return Verdict(statement=statement, holds=holds, evidence=f"margin {interval} over {interval.count} pairs")


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
        write_grid(rows, run.config, figures / "grid.png")
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
    parts = [
        "# The paper's claims, measured on the small world",
        _introduction(run, digest, scores, primary),
        "## May this base tell?",
        _gate(scores),
        "## Answers",
        *(_verdict_line(verdict) for verdict in answers(values, run.config)),
        _missing(run.config, scores),
        "## Before fusion, with ceilings and floors",
        _table(scores, [CEILING_RENDERS, CEILING_AUTOENCODER, *SINGLES, SCALE_ZERO, FLOOR_OTHER, FLOOR_BASE]),
        "## After fusion",
        _table(scores, [fused_method(row, size) for size in run.config.sizes for row in FUSIONS]),
        f"## What fusing costs: {primary}, single minus fused",
        _loss_table(losses(values, run.config)),
        "## Pictures",
        "One prompt and one first noise along a row; columns as named above the picture.",
        f"![The same prompts drawn by each method]({figures}/grid.png)",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(run: TableRun, digest: str, scores: Sequence[PictureScore], primary: str) -> str:
    config = run.config
    sizes = ", ".join(map(str, config.sizes))
    return (
        f"{config.num_concepts} concepts, {config.num_seeds} trainings of each, fused {sizes} at a time; "
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


def _verdict_line(verdict: Verdict) -> str:
    word = {True: "Yes", False: "No", None: "Cannot be told"}[verdict.holds]
    return f"- **{word}.** {verdict.statement} ({verdict.evidence})"


def _table(scores: Sequence[PictureScore], methods: Sequence[str]) -> str:
    cells = {cell.method: cell for cell in summarise(scores, by_concept=True)}
    present = [method for method in methods if method in cells]
    metrics = [name for name in (*SHOWN, "drift") if any(name in cells[method].intervals for method in present)]
    lines = ["| | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for method in present:
        shown = [str(cells[method].intervals[name]) if name in cells[method].intervals else "" for name in metrics]
        lines.append(f"| {method} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _loss_table(found: Sequence[Loss]) -> str:
    lines = ["| | concepts | kept | lost |", "|---|---|---|---|"]
    lines += [f"| {item.row} | {item.size} | {item.level} | {item.loss} |" for item in found]
    return "\n".join(lines)


def write_grid(rows: "Sequence[ScoredPicture]", config: TableConfig, path: Path) -> None:
    """One row a concept, one column a method: the first prompt's first seed, training seed 0, smallest fusion."""
    import io

    from PIL import Image, ImageDraw

    size = config.sizes[0] if config.sizes else 0
    methods = [CEILING_RENDERS, *SINGLES, SCALE_ZERO, *(fused_method(row, size) for row in FUSIONS), FLOOR_BASE]
    found: dict[tuple[str, str], tuple[int, bytes]] = {}
    for row in rows:
        key = (row.score.concept, row.score.method)
        if row.png and (key not in found or row.score.seed < found[key][0]):
            found[key] = (row.score.seed, row.png)
    concepts = [str(config.ref(index, 0)) for index in range(max(size, min(config.num_concepts, 6)))]
    present = [method for method in methods if any((concept, method) in found for concept in concepts)]
    side, top = 96, 58
    sheet = Image.new("RGB", (side * len(present), top + side * len(concepts)), (251, 250, 247))
    draw = ImageDraw.Draw(sheet)
    for column, method in enumerate(present):
        draw.multiline_text((column * side + 4, 4), _wrapped(method), fill=(31, 35, 40), font_size=11)
        for line, concept in enumerate(concepts):
            if (concept, method) in found:
                image = Image.open(io.BytesIO(found[concept, method][1])).resize((side - 4, side - 4))
                sheet.paste(image, (column * side + 2, top + line * side + 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def _wrapped(text: str) -> str:
    """Words on lines of at most 15 letters."""
    lines = [""]
    for word in text.split():
        lines = [*lines, word] if len(lines[-1]) + len(word) > 14 else [*lines[:-1], f"{lines[-1]} {word}".strip()]
    return "\n".join(lines[-4:])
