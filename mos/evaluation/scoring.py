"""Score pictures of a concept: by any CLIP, and by the probe where the concept is one of the small world."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mos.errors import BadInputError
from mos.evaluation.attributes import Probe, attribute_scores
from mos.evaluation.metrics import diversity, drift, identity_ranks, image_alignment, text_alignment
from mos.evaluation.prompts import Prompt, Shot
from mos.evaluation.results import PictureScore
from mos.evaluation.scorer import ClipScorer, Features

if TYPE_CHECKING:
    from PIL import Image

    from mos.smallworld.world import Identity


@dataclass(frozen=True, kw_only=True)
class ConceptTruth:
    """What a concept really is.

    Attributes:
        ref: owner/name@version, as rows carry it.
        word: What stands for it in prompts.
        class_word: What takes its place when text is scored.
        references: Pictures of it, those it was trained with; the first is the metric's first reference.
            Without any there is no image-alignment and no identity rank.
        identity: The individual, where it is one of the small world.
        distractors: Pictures of other individuals of its class, one list each.
    """

    ref: str
    word: str
    class_word: str
    references: Sequence["Image.Image"]
    identity: "Identity | None" = None
    distractors: Sequence[Sequence["Image.Image"]] = ()


@dataclass
class PictureScorer:
    """Turns pictures into rows, remembering the features of references and distractors.

    Attributes:
        clip: The scorer of likeness and text.
        probe: The attribute probe, or None outside the small world.
        text_prefix: Put before prompts when their text is scored.
    """

    clip: ClipScorer
    probe: Probe | None = None
    text_prefix: str = "A photo depicts "
    _features: dict[str, tuple[Features, list[Features]]] = field(default_factory=dict)

    def rows(
        self,
        truth: ConceptTruth,
        shots: Sequence[Shot],
        images: Sequence["Image.Image"],
        *,
        method: str,
        suite: str = "",
        model: str = "",
        model_digest: str = "",
    ) -> list[PictureScore]:
        """One row a picture of the concept; `images[i]` was drawn for `shots[i]`.

        Raises:
            BadInputError: If there is not one picture a shot.
        """
        scores = self._scores(truth, [shot.prompt for shot in shots], images)
        return [
            PictureScore(
                method=method,
                concept=truth.ref,
                prompt=shot.prompt.text,
                seed=shot.seed,
                scores=values,
                family=shot.prompt.family,
                suite=suite,
                model=model,
                model_digest=model_digest,
            )
            for shot, values in zip(shots, scores, strict=True)
        ]

    def _scores(
        self, truth: ConceptTruth, prompts: Sequence[Prompt], images: Sequence["Image.Image"]
    ) -> list[dict[str, float]]:
        if len(prompts) != len(images) or not images:
            raise BadInputError(f"{truth.ref}: {len(images)} pictures for {len(prompts)} prompts")
        features = self.clip.image_features(images)
        texts = [self.text_prefix + prompt.with_word(truth.class_word) for prompt in prompts]
        columns: dict[str, Sequence[float]] = {
            "text_alignment": text_alignment(features, self.clip.text_features(texts)).tolist(),
            **self._likeness(truth, features),
        }
        rows = [{name: values[index] for name, values in columns.items()} for index in range(len(images))]
        for row, extra in zip(rows, self._attributes(truth, prompts, images), strict=True):
            row.update(extra)
        return rows

    def _likeness(self, truth: ConceptTruth, features: Features) -> dict[str, Sequence[float]]:
        """Scores against reference pictures; none without references, no rank without distractors."""
        if not truth.references:
            return {}
        references, distractors = self._known_features(truth)
        alignment = image_alignment(features, references)
        columns: dict[str, Sequence[float]] = {
            "image_alignment_pairwise": alignment.pairwise.tolist(),
            "image_alignment_first_reference": alignment.first_reference.tolist(),
        }
        if distractors:
            columns["identity_rank"] = identity_ranks(features, references, distractors).astype(float).tolist()
        return columns

    def _attributes(
        self, truth: ConceptTruth, prompts: Sequence[Prompt], images: Sequence["Image.Image"]
    ) -> list[dict[str, float]]:
        """The probe's scores; empty where it cannot judge (no identity known, or several subjects)."""
        if self.probe is None or truth.identity is None:
            return [{} for _ in images]
        readings = self.probe.predict(images)
        return [
            attribute_scores(reading, truth.identity, prompt.backdrop) if prompt.alone else {}
            for reading, prompt in zip(readings, prompts, strict=True)
        ]

    def _known_features(self, truth: ConceptTruth) -> tuple[Features, list[Features]]:
        if truth.ref not in self._features:
            others = [self.clip.image_features(pictures) for pictures in truth.distractors]
            self._features[truth.ref] = (self.clip.image_features(truth.references), others)
        return self._features[truth.ref]


def drift_rows(
    clip: ClipScorer,
    shots: Sequence[Shot],
    before: Sequence["Image.Image"],
    after: Sequence["Image.Image"],
    *,
    method: str,
    suite: str = "",
    model: str = "",
    model_digest: str = "",
) -> list[PictureScore]:
    """How far a model moved the base's pictures of generic prompts, by CLIP features; one row a shot."""
    moved = drift(clip.image_features(before), clip.image_features(after))
    return [
        PictureScore(
            method=method,
            concept="",
            prompt=shot.prompt.text,
            seed=shot.seed,
            scores={"drift": float(value)},
            family="generic",
            suite=suite,
            model=model,
            model_digest=model_digest,
        )
        for shot, value in zip(shots, moved, strict=True)
    ]


def diversity_by_prompt(features: Mapping[tuple[str, int], Features]) -> dict[str, float]:
    """Diversity over seeds of each prompt with at least two pictures; keys are (prompt, seed)."""
    by_prompt: dict[str, list[Features]] = {}
    for prompt, seed in sorted(features):
        by_prompt.setdefault(prompt, []).append(features[prompt, seed])
    return {prompt: diversity(np.stack(rows)) for prompt, rows in by_prompt.items() if len(rows) > 1}
