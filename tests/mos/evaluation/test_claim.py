"""The identity claim run whole on a random base: cells pair up, marks mean what they say, nothing is repeated."""

import numpy as np
import pytest
import torch

from mos.concept import ConceptRef
from mos.edlora.adapter import Adapter, ConceptWords
from mos.evaluation import claim
from mos.evaluation.drawing import reconstructed
from mos.evaluation.scoring import PictureScorer
from mos.random_base import random_base
from mos.smallworld.concepts import concept_pictures
from mos.smallworld.world import concept_identity

CONFIG = claim.ClaimConfig(pictures_per_concept=3, num_inference_steps=2, num_distractors=2, examples_per_concept=1)
METHODS = (
    claim.CEILING_RENDERS,
    claim.CEILING_AUTOENCODER,
    claim.SINGLE,
    claim.AVERAGE,
    claim.GRADIENT,
    claim.FLOOR_OTHER,
    claim.FLOOR_BASE,
)


@pytest.fixture(scope="module")
def base():
    return random_base()


def subject(owner: str, class_name: str) -> claim.ClaimSubject:
    identity = concept_identity(1, class_name)
    references = [picture for picture, _, _ in concept_pictures(identity, 0, 4)]
    return claim.ClaimSubject(ref=ConceptRef(owner, class_name, 1), identity=identity, references=references)


def adapter(base, *refs: ConceptRef) -> Adapter:
    """Words with random embeddings and no linears: enough to draw with."""
    facts = base.facts.encoders[0]
    generator = torch.Generator().manual_seed(len(refs))
    shape = (2, base.facts.num_cross_attention_layers, facts.hidden_dim)
    return Adapter(
        linears={},
        vocabulary=tuple(
            ConceptWords(
                ref=str(ref),
                word=ref.word,
                words=ref.words,
                class_word=ref.name,
                embeddings={facts.name: torch.randn(shape, generator=generator) * facts.mean_embedding_norm / 4},
            )
            for ref in refs
        ),
    )


@pytest.fixture(scope="module")
def result(base, scorer) -> claim.ClaimResult:
    subjects = [subject("alice", "cat"), subject("bob", "house")]
    refs = [item.ref for item in subjects]
    fused = adapter(base, *refs)
    adapters = {
        claim.SINGLE: {str(ref): adapter(base, ref) for ref in refs},
        claim.AVERAGE: dict.fromkeys(map(str, refs), fused),
        claim.GRADIENT: dict.fromkeys(map(str, refs), fused),
    }
    pictures = PictureScorer(clip=scorer, text_prefix="a photo depicts ")
    return claim.conclude_claim(
        [claim.measure_cell(base, pictures, subjects, name, adapters.get(name), CONFIG) for name in reversed(METHODS)]
    )


def test_every_cell_has_every_picture_of_every_concept_once(result):
    assert [cell.method for cell in result.cells] == list(METHODS)
    assert all(cell.count == 6 for cell in result.cells)
    for method in METHODS:
        pairs = [row.pair for row in result.rows if row.method == method]
        assert len(set(pairs)) == 6
        assert set(pairs) == {row.pair for row in result.rows if row.method == METHODS[0]}


def test_two_methods_that_are_the_same_model_differ_by_nothing(result):
    same = [d for d in result.differences if (d.method, d.baseline) == (claim.GRADIENT, claim.AVERAGE)]
    assert [d.metric for d in same] == ["image_alignment_pairwise"]
    assert same[0].interval.mean == pytest.approx(0.0, abs=1e-7)
    verdict = next(v for v in result.verdicts if "averaging the weights" in v.statement)
    assert verdict.holds is None


def test_examples_show_one_prompt_drawn_by_every_method(result):
    assert [example.concept for example in result.examples] == ["alice/cat@1", "bob/house@1"]
    for example in result.examples:
        assert list(example.pictures) == list(METHODS)
        renders = np.asarray(example.pictures[claim.CEILING_RENDERS], float)
        assert np.abs(renders - np.asarray(example.pictures[claim.FLOOR_OTHER], float)).mean() > 1.0


def test_a_cell_drawn_again_is_the_same(base, scorer, result):
    again = claim.measure_cell(
        base,
        PictureScorer(clip=scorer, text_prefix="a photo depicts "),
        [subject("alice", "cat"), subject("bob", "house")],
        claim.FLOOR_BASE,
        None,
        CONFIG,
    )
    assert list(again.rows) == [row for row in result.rows if row.method == claim.FLOOR_BASE]


def test_shots_go_through_the_prompts_before_a_second_seed():
    shots = claim.claim_shots(claim.ClaimConfig(pictures_per_concept=36))
    assert len(shots) == len({shot.seed for shot in shots}) == 36
    assert all(shot.prompt.alone for shot in shots)
    assert len({shot.prompt.text for shot in shots[:12]}) == 12


def test_a_picture_through_a_random_autoencoder_keeps_size_and_loses_likeness(base):
    picture = concept_pictures(concept_identity(1, "mug"), 0, 1)[0][0]
    (found,) = reconstructed(base, [picture])
    assert found.size == picture.size
    assert np.abs(np.asarray(found, float) - np.asarray(picture, float)).mean() > 5.0
