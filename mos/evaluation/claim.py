"""The identity claim: how much of each concept is left after fusing, by every strategy, on paired pictures.

Every method draws the same prompts from the same first noise, so that methods are compared picture by
picture. Beside the methods stand ceilings (renders of the identity, and those renders through the base's
autoencoder) and floors (renders of another identity of the class, and the untrained base asked for the
class). One cell, one method, is `measure_cell`: cells are independent and may run in processes of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mos.base_model import BaseModel
from mos.concept import ConceptRef
from mos.edlora.adapter import Adapter
from mos.errors import BadInputError
from mos.evaluation.drawing import (
    CEILING_AUTOENCODER,
    CEILING_RENDERS,
    FLOOR_BASE,
    FLOOR_OTHER,
    MARKS,
    SampledConfig,
    rendered,
    sampled,
)
from mos.evaluation.prompts import PromptSuite, Shot, load_suite
from mos.evaluation.results import Cell, Difference, PictureScore, compare, summarise
from mos.evaluation.scoring import ConceptTruth, PictureScorer
from mos.evaluation.verdicts import Verdict, judge

if TYPE_CHECKING:
    from PIL import Image

    from mos.smallworld.world import Identity

SINGLE, AVERAGE, SUM, GRADIENT = "single", "average", "sum", "gradient"

__all__ = [
    "AVERAGE",
    "CEILING_AUTOENCODER",
    "CEILING_RENDERS",
    "FLOOR_BASE",
    "FLOOR_OTHER",
    "GRADIENT",
    "MARKS",
    "SINGLE",
    "SUM",
    "CellOutcome",
    "ClaimConfig",
    "ClaimResult",
    "ClaimSubject",
    "Example",
    "claim_shots",
    "claim_truths",
    "conclude_claim",
    "measure_cell",
]

_METHODS = (CEILING_RENDERS, CEILING_AUTOENCODER, SINGLE, AVERAGE, SUM, GRADIENT, FLOOR_OTHER, FLOOR_BASE)
_ORDER = {method: number for number, method in enumerate(_METHODS)}

COMPARISONS = ((GRADIENT, AVERAGE), (GRADIENT, SUM), (GRADIENT, SINGLE), (AVERAGE, SINGLE), (SINGLE, FLOOR_BASE))
COMPARED_METRICS = ("probe_identity", "probe_pattern", "probe_accessory", "probe_backdrop", "image_alignment_pairwise")


@dataclass(frozen=True, kw_only=True)
class ClaimConfig(SampledConfig):
    """Size of the experiment.

    Attributes:
        pictures_per_concept: Paired pictures of each concept in every cell.
        num_inference_steps: Denoising steps (DPM-Solver++).
        guidance_scale: Classifier-free guidance.
        batch_size: Pictures denoised together.
        bfloat16: Draw under autocast to bfloat16; None does so where the processor has instructions for it,
            which halves the time. All cells of one claim must agree.
        num_distractors: Other individuals of the class that the identity rank is taken among.
        examples_per_concept: Prompts of each concept kept as pictures for the report.
    """

    pictures_per_concept: int = 36
    num_inference_steps: int = 12
    guidance_scale: float = 3.0
    batch_size: int = 18
    bfloat16: bool | None = None
    num_distractors: int = 7
    examples_per_concept: int = 2

    def __post_init__(self) -> None:
        if min(self.pictures_per_concept, self.num_inference_steps, self.batch_size, self.num_distractors) < 1:
            raise BadInputError(f"claim: sizes must be at least 1: {self}")


@dataclass(frozen=True, kw_only=True)
class ClaimSubject:
    """One concept of the small world that takes part: its reference, who it is, and its training pictures."""

    ref: ConceptRef
    identity: "Identity"
    references: Sequence["Image.Image"]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One prompt and seed as drawn by each method."""

    concept: str
    prompt: str
    seed: int
    pictures: Mapping[str, "Image.Image"]


@dataclass(frozen=True, kw_only=True)
class CellOutcome:
    """What one method drew: its scores, and the pictures that become examples, by (concept, prompt, seed)."""

    method: str
    rows: Sequence[PictureScore]
    pictures: Mapping[tuple[str, str, int], "Image.Image"]


@dataclass(frozen=True, kw_only=True)
class ClaimResult:
    """The identity claim as measured.

    Attributes:
        rows: One a picture.
        cells: One a method, ceilings and floors among them.
        differences: Paired differences of the strategies.
        verdicts: What the differences say.
        examples: Some prompts as every method drew them.
    """

    rows: Sequence[PictureScore]
    cells: Sequence[Cell]
    differences: Sequence[Difference]
    verdicts: Sequence[Verdict]
    examples: Sequence[Example] = ()


def claim_shots(config: ClaimConfig, suite: PromptSuite | None = None) -> tuple[Shot, ...]:
    """The prompts and seeds of one concept: those with the concept alone, seed by seed until there are enough."""
    suite = suite or load_suite("small-world")
    alone = sum(prompt.alone for prompt in suite.prompts)
    num_seeds = -(-config.pictures_per_concept // alone)
    shots = [shot for shot in suite.shots(num_seeds) if shot.prompt.alone]
    shots.sort(key=lambda shot: shot.seed % 1000)
    return tuple(shots[: config.pictures_per_concept])


def claim_truths(subjects: Sequence[ClaimSubject], config: ClaimConfig) -> list[ConceptTruth]:
    """Each concept's truth with distractors: other held-out individuals of its class, the same for all."""
    classes = dict.fromkeys(subject.identity.class_name for subject in subjects)
    distractors = {name: _strangers(name, config.num_distractors) for name in classes}
    return [
        ConceptTruth(
            ref=str(subject.ref),
            word=subject.ref.word,
            class_word=subject.identity.class_name,
            references=subject.references,
            identity=subject.identity,
            distractors=distractors[subject.identity.class_name],
        )
        for subject in subjects
    ]


def _strangers(class_name: str, count: int) -> "list[list[Image.Image]]":
    """Pictures of held-out individuals of a class, four of each."""
    from mos.smallworld.concepts import concept_pictures
    from mos.smallworld.world import sample_identity

    rng = np.random.default_rng(20271)
    strangers = [sample_identity(rng, class_name=class_name, held_out=True) for _ in range(count)]
    return [
        [picture for picture, _, _ in concept_pictures(stranger, seed, 4)] for seed, stranger in enumerate(strangers)
    ]


def measure_cell(
    base: BaseModel,
    scorer: PictureScorer,
    subjects: Sequence[ClaimSubject],
    method: str,
    adapters: Mapping[str, Adapter] | None,
    config: ClaimConfig,
) -> CellOutcome:
    """Draw and score one method's pictures of every concept.

    Args:
        base: The base model.
        scorer: Scores pictures; its features of references are kept between cells.
        subjects: The concepts.
        method: Name of the cell; one of `MARKS` draws renders, anything else samples.
        adapters: Concept reference -> what draws it (one fused model may serve all); None draws the class
            from the untrained base.
        config: Size of the experiment.
    """
    shots = claim_shots(config)
    rows: list[PictureScore] = []
    pictures = {}
    for truth, subject in zip(claim_truths(subjects, config), subjects, strict=True):
        if method in MARKS:
            images = rendered(base, method, subject.identity, shots)
        else:
            adapter = None if adapters is None else adapters[truth.ref]
            images = sampled(base, adapter, truth, shots, config.sampling, bfloat16=config.bfloat16)
        rows += scorer.rows(truth, shots, images, method=method, suite="small-world")
        for shot, image in list(zip(shots, images, strict=True))[: config.examples_per_concept]:
            pictures[truth.ref, shot.prompt.text, shot.seed] = image
    return CellOutcome(method=method, rows=rows, pictures=pictures)


def conclude_claim(outcomes: Sequence[CellOutcome]) -> ClaimResult:
    """Put the cells together, in whatever order they come: summaries, paired differences, verdicts, examples."""
    outcomes = sorted(outcomes, key=lambda outcome: _ORDER.get(outcome.method, len(_ORDER)))
    rows = [row for outcome in outcomes for row in outcome.rows]
    present = {outcome.method for outcome in outcomes}
    scored = {metric for row in rows for metric in row.scores}
    differences = [
        compare(rows, method, baseline, metric)
        for method, baseline in COMPARISONS
        if {method, baseline} <= present
        for metric in COMPARED_METRICS
        if metric in scored
    ]
    keys = dict.fromkeys(key for outcome in outcomes for key in outcome.pictures)
    examples = [
        Example(
            concept=concept,
            prompt=prompt,
            seed=seed,
            pictures={
                outcome.method: outcome.pictures[concept, prompt, seed]
                for outcome in outcomes
                if (concept, prompt, seed) in outcome.pictures
            },
        )
        for concept, prompt, seed in keys
    ]
    return ClaimResult(
        rows=rows, cells=summarise(rows), differences=differences, verdicts=judge(rows), examples=examples
    )
