"""Rows of scores from real renders: the probe's agreement by hand, likeness and text through a real CLIPModel."""

from dataclasses import dataclass

import numpy as np
import pytest

from mos.errors import BadInputError
from mos.evaluation.attributes import attribute_scores
from mos.evaluation.metrics import image_alignment, text_alignment
from mos.evaluation.prompts import Prompt, Shot
from mos.evaluation.scoring import ConceptTruth, PictureScorer, diversity_by_prompt, drift_rows
from mos.smallworld.concepts import concept_pictures
from mos.smallworld.world import concept_identity, neighbour_identity


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A reading as a probe returns it."""

    class_name: str
    pattern: str
    accessory: str
    backdrop: str
    hues: tuple[float, float]


IDENTITY = concept_identity(3, "cat")
TRUE = Seen(
    class_name="cat",
    pattern=IDENTITY.pattern,
    accessory=IDENTITY.accessory,
    backdrop="beach",
    hues=(IDENTITY.colours[0].hue, IDENTITY.colours[1].hue),
)


class ConstantProbe:
    """A probe that always sees the true cat: what is tested is what is made of its readings."""

    def predict(self, images):
        return [TRUE for _ in images]


def pictures(count: int, seed: int = 0):
    return [picture for picture, _, _ in concept_pictures(IDENTITY, seed, count)]


def truth(**changes) -> ConceptTruth:
    values = {
        "ref": "alice/cat@1",
        "word": "<alice-cat>",
        "class_word": "cat",
        "references": pictures(8),
        "identity": IDENTITY,
        "distractors": [
            [picture for picture, _, _ in concept_pictures(neighbour_identity(IDENTITY, seed), 0, 3)]
            for seed in range(2)
        ],
    }
    return ConceptTruth(**(values | changes))


SHOTS = (
    Shot(prompt=Prompt(text="a <TOK> on the beach", family="place", backdrop="beach"), seed=5),
    Shot(prompt=Prompt(text="a <TOK> and a dog", family="company", backdrop="city", alone=False), seed=6),
)


def test_all_attributes_kept_is_one_and_each_loss_takes_a_quarter():
    kept = attribute_scores(TRUE, IDENTITY, "beach")
    assert kept["probe_identity"] == kept["probe_exact"] == kept["probe_backdrop"] == 1.0
    other = Seen(class_name="cat", pattern="plain", accessory="none", backdrop="city", hues=TRUE.hues)
    lost = attribute_scores(other, IDENTITY, "beach")
    assert lost["probe_class"] == lost["probe_colour"] == 1.0
    assert lost["probe_pattern"] == lost["probe_accessory"] == lost["probe_backdrop"] == lost["probe_exact"] == 0.0
    assert lost["probe_identity"] == 0.5


def test_the_main_colour_is_what_counts_and_no_backdrop_asked_is_none_scored():
    swapped = Seen(**(vars(TRUE) | {"hues": TRUE.hues[::-1]}))
    scores = attribute_scores(swapped, IDENTITY)
    assert scores["probe_colour"] == 0.0
    assert "probe_backdrop" not in scores


@pytest.mark.parametrize(
    ("turn", "kept"), [(0.0, 1.0), (24.0, 1.0), (-24.0, 1.0), (26.0, 0.0), (180.0, 0.0), (336.0, 1.0)]
)
def test_a_hue_may_be_off_by_less_than_half_the_gap_of_an_identitys_hues(turn, kept):
    turned = Seen(**(vars(TRUE) | {"hues": ((TRUE.hues[0] + turn) % 360, TRUE.hues[1])}))
    assert attribute_scores(turned, IDENTITY)["probe_colour"] == kept


def test_rows_carry_the_scores_of_features_references_and_class_word(scorer):
    drawn = pictures(2, seed=9)
    rows = PictureScorer(clip=scorer, text_prefix="A photo depicts ").rows(truth(), SHOTS, drawn, method="single")
    features = scorer.image_features(drawn)
    likeness = image_alignment(features, scorer.image_features(truth().references))
    texts = scorer.text_features(["A photo depicts a cat on the beach", "A photo depicts a cat and a dog"])
    for index, row in enumerate(rows):
        assert row.scores["image_alignment_pairwise"] == pytest.approx(likeness.pairwise[index])
        assert row.scores["image_alignment_first_reference"] == pytest.approx(likeness.first_reference[index])
        assert row.scores["text_alignment"] == pytest.approx(text_alignment(features, texts)[index])
        assert row.scores["identity_rank"] in (1.0, 2.0, 3.0)
        assert not any(name.startswith("probe") for name in row.scores)
    assert [row.pair for row in rows] == [
        ("alice/cat@1", "a <TOK> on the beach", 5),
        ("alice/cat@1", "a <TOK> and a dog", 6),
    ]


def test_the_probe_judges_only_pictures_of_one_subject(scorer):
    rows = PictureScorer(clip=scorer, probe=ConstantProbe()).rows(truth(), SHOTS, pictures(2), method="single")
    assert rows[0].scores["probe_identity"] == 1.0
    assert rows[0].scores["probe_backdrop"] == 1.0
    assert "probe_identity" not in rows[1].scores


def test_a_concept_from_outside_the_small_world_has_no_probe_scores(scorer):
    rows = PictureScorer(clip=scorer, probe=ConstantProbe()).rows(
        truth(identity=None, distractors=()), SHOTS, pictures(2), method="single"
    )
    assert set(rows[0].scores) == {"text_alignment", "image_alignment_pairwise", "image_alignment_first_reference"}


def test_without_references_there_is_only_the_text_to_score(scorer):
    rows = PictureScorer(clip=scorer).rows(truth(references=()), SHOTS, pictures(2), method="single")
    assert [set(row.scores) for row in rows] == [{"text_alignment"}] * 2


def test_a_missing_picture_is_refused(scorer):
    with pytest.raises(BadInputError, match="1 pictures for 2 prompts"):
        PictureScorer(clip=scorer).rows(truth(), SHOTS, pictures(1), method="single")


def test_drift_is_zero_for_the_base_itself_and_positive_for_other_pictures(scorer):
    shots = [Shot(prompt=Prompt(text="a dog", family="generic"), seed=seed) for seed in (1, 2)]
    same = drift_rows(scorer, shots, pictures(2), pictures(2), method="base")
    other = drift_rows(scorer, shots, pictures(2), pictures(2, seed=4), method="fused")
    assert [row.scores["drift"] for row in same] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert all(row.scores["drift"] > 1e-6 and row.concept == "" for row in other)


def test_diversity_compares_the_seeds_of_one_prompt():
    east, north = np.array([1.0, 0.0], np.float32), np.array([0.0, 1.0], np.float32)
    features = {("p", 0): east, ("p", 1): north, ("q", 0): east, ("q", 1): east, ("r", 0): east}
    assert diversity_by_prompt(features) == pytest.approx({"p": 1.0, "q": 0.0})
