"""The page of a batch evaluation: figures, tables by concept and family, and grids of the same prompts."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.evaluation_tables import differences_between
from jobs.gallery.document import Block, Document, Grid, Picture, Section, Statements, Table, write_document
from jobs.gallery.scores import difference_table, is_ceiling, is_floor, score_charts, score_table
from mos.evaluation.results import METRICS, PictureScore, summarise
from mos.evaluation.verdicts import judge

if TYPE_CHECKING:
    from cluster.evaluation_rows import ScoredPicture

MAX_GRID_ROWS = 8
"""Prompts shown of each concept."""


def write_evaluation_report(
    digest: str,
    settings: Mapping[str, Any],
    rows: "Sequence[ScoredPicture]",
    directory: Path,
    *,
    highlight: str = "",
) -> Path:
    """Write `evaluation.html` into `directory` and return its path."""
    return write_document(
        evaluation_document(digest, settings, rows, highlight=highlight), directory / "evaluation.html"
    )


def evaluation_document(
    digest: str, settings: Mapping[str, Any], rows: "Sequence[ScoredPicture]", *, highlight: str = ""
) -> Document:
    """The page as data."""
    scores = [row.score for row in rows]
    concepts = list(dict.fromkeys(score.concept for score in scores if score.concept))
    suite = settings["suite"]["name"]
    return Document(
        title=f"Evaluation on the suite {suite}",
        subtitle="Every model drew the same prompts from the same first noise, so that differences are paired.",
        tiles=[
            (str(len(rows)), "pictures scored"),
            (str(len({score.model for score in scores})), "models, ceilings and floors"),
            (str(len(concepts)), "concepts"),
            (str(settings["num_seeds"]), "seeds a prompt"),
        ],
        sections=[
            _scores(scores, highlight),
            _grids(rows, concepts),
            _by("concept", "Concept by concept", scores),
            _by("family", "Family by family", scores),
            _models(scores),
        ],
        footer=[
            f"Evaluation {digest}",
            f"{settings['num_inference_steps']} denoising steps, guidance {settings['guidance_scale']}",
            f"Scorer {settings['scorer_digest']}",
            f"Base {settings['base_digest']}",
            f"Made by: mos evaluation report {digest[:12]}",
        ],
    )


def _scores(scores: Sequence[PictureScore], highlight: str) -> Section:
    cells = summarise(scores)
    blocks: list[Block] = []
    verdicts = judge(scores)
    if verdicts:
        blocks.append(Statements(rows=[(row.holds, row.statement, row.evidence) for row in verdicts]))
    blocks += [
        score_charts(
            cells,
            highlight=highlight,
            note="Dots are means, bars 95 % bootstrap intervals over pictures. Hollow marks are ceilings and floors.",
        ),
        score_table(cells, highlight=highlight),
    ]
    differences = _differences(scores)
    if differences.rows:
        blocks.append(differences)
    return Section(title="Scores", blocks=blocks)


def _differences(scores: Sequence[PictureScore]) -> Table:
    """Every method against single concepts, where there are any, else against the first method."""
    methods = [m for m in dict.fromkeys(s.method for s in scores) if not is_ceiling(m) and not is_floor(m)]
    if len(methods) < 2:
        return difference_table([])
    baseline = "single" if "single" in methods else methods[0]
    found = [
        difference
        for method in methods
        if method != baseline
        for difference in differences_between(scores, method, baseline)
    ]
    return difference_table(found, note="Differences are paired: same concept, prompt and seed.")


def _grids(rows: "Sequence[ScoredPicture]", concepts: Sequence[str]) -> Section:
    from PIL import Image

    methods = list(dict.fromkeys(row.score.method for row in rows if row.score.concept))
    pictures = {(row.score.method, *row.score.pair): row.png for row in rows if row.png}
    blocks: list[Block] = []
    for concept in concepts:
        pairs = dict.fromkeys(row.score.pair for row in rows if row.score.concept == concept)
        first: dict[str, tuple[str, str, int]] = {}
        for pair in sorted(pairs, key=lambda pair: pair[2]):
            first.setdefault(pair[1], pair)
        grid = []
        for prompt, pair in list(first.items())[:MAX_GRID_ROWS]:
            cells: list[Picture | None] = []
            for method in methods:
                data = pictures.get((method, *pair))
                image = None if data is None else Image.open(io.BytesIO(data))
                cells.append(None if image is None else Picture(image=image, alt=f"{method}: {concept}: {prompt}"))
            grid.append((prompt, cells))
        blocks.append(Grid(columns=methods, rows=grid, note=concept))
    return Section(title="Pictures", blocks=blocks, lead="The same prompt and first noise along a row.")


def _by(attribute: str, title: str, scores: Sequence[PictureScore]) -> Section:
    """Primary scores of every method, one row a concept or family."""
    metrics = [
        metric
        for metric in METRICS
        if metric.name in ("probe_identity", "image_alignment_pairwise", "text_alignment")
        and any(metric.name in score.scores for score in scores)
    ]
    methods = list(dict.fromkeys(score.method for score in scores if score.concept))
    body: list[list[str | tuple[str, str]]] = []
    groups: dict[int, str] = {}
    for metric in metrics:
        groups[len(body)] = metric.label
        for value in dict.fromkeys(getattr(score, attribute) for score in scores if score.concept):
            mine = [score for score in scores if score.concept and getattr(score, attribute) == value]
            cells = {cell.method: cell.intervals.get(metric.name) for cell in summarise(mine)}
            row: list[str | tuple[str, str]] = [value]
            for method in methods:
                interval = cells.get(method)
                text = "" if interval is None else (f"{interval.mean:.3f}", f"{interval.low:.3f} – {interval.high:.3f}")
                row.append(text)
            body.append(row)
    table = Table(columns=["", *methods], rows=body, numeric=range(1, len(methods) + 1), groups=groups)
    return Section(title=title, blocks=[table] if body else [])


def _models(scores: Sequence[PictureScore]) -> Section:
    seen = dict.fromkeys((score.model, score.method, score.model_digest) for score in scores)
    rows = [[model, method, digest] for model, method, digest in seen]
    return Section(title="Models", blocks=[Table(columns=["", "method", "sha256 of its tensors"], rows=rows)])
