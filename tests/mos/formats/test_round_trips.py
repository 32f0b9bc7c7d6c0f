"""What is exported and imported again is the same, bit for bit, where the format can hold it."""

import pytest
import torch

from mos.artifact import artifact_bytes, read_artifact, write_artifact
from mos.concept import ConceptRef
from mos.formats.exporting import ExportError, export
from mos.formats.importing import ImportOptions, import_concept
from mos.formats.metadata import ExportDetails
from mos.random_base import random_base
from tests.mos.adapters import random_adapter
from tests.mos.formats.concepts import ATTENTION, EVERYTHING, assert_same_concept, random_concept

REF = ConceptRef("alice", "tom", 1)
OPTIONS = ImportOptions(name="tom", class_word="cat", kind="pet")


def _details(edlora=None):
    return ExportDetails(
        title="Tom", trigger=REF.word, author="alice", licence="CC-BY-4.0", card=edlora and edlora.card
    )


def _export(edlora, base, target, directory, **options):
    return export(edlora.adapter(REF), base, target, directory, name="tom", details=_details(edlora), **options)


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def base(request):
    return random_base(request.param)


@pytest.mark.parametrize("tuned", [ATTENTION, EVERYTHING], ids=["attention", "everything"])
def test_a_diffusers_export_comes_back_as_the_same_file(base, tuned, tmp_path):
    edlora = random_concept(base, tuned=tuned)
    result = _export(edlora, base, "diffusers", tmp_path)
    assert len(result.files) == 1 + len(base.facts.encoders)
    found, report = import_concept([tmp_path], base, ImportOptions(name="other"))
    assert artifact_bytes(found) == artifact_bytes(edlora)
    assert report.unmatched == ()
    assert report.matched == {component: len(updates) for component, updates in edlora.linears.items()}
    assert set(report.filled.values()) == {0}


@pytest.mark.parametrize("target", ["kohya", "a1111", "comfyui"])
def test_a_kohya_lora_is_bit_equal_and_its_words_are_the_layer_means(base, target, tmp_path):
    edlora = random_concept(base, tuned=EVERYTHING)
    result = _export(edlora, base, target, tmp_path)
    found, report = import_concept(result.files, base, OPTIONS)
    assert_same_concept(found, edlora, words=False)
    assert report.spelling == "kohya"
    assert report.unmatched == ()
    for encoder, rows in edlora.embeddings.items():
        assert torch.equal(found.embeddings[encoder], rows.mean(dim=1, keepdim=True).expand_as(rows))


def test_words_without_layers_survive_kohya_exactly(tiny_base, tmp_path):
    edlora = random_concept(tiny_base, layered=False)
    result = _export(edlora, tiny_base, "kohya", tmp_path)
    found, _ = import_concept(result.files, tiny_base, OPTIONS)
    assert_same_concept(found, edlora)
    assert [loss.is_exact for loss in result.losses] == [True, True]
    assert "exact" in result.losses[0].line()


def test_the_measured_loss_is_the_cosine_of_the_layer_mean(tiny_base, tmp_path):
    edlora = random_concept(tiny_base)
    result = _export(edlora, tiny_base, "kohya", tmp_path)
    assert [loss.word for loss in result.losses] == ["<tom-rand>", "<tom-class>"]
    rows = edlora.embeddings["text_encoder"][1]
    mean = rows.mean(dim=0)
    cosines = (rows @ mean) / (rows.norm(dim=1) * mean.norm())
    loss = result.losses[1]
    assert loss.mean_cosine == pytest.approx(float(cosines.mean()), abs=1e-6)
    assert loss.least_cosine == pytest.approx(float(cosines.min()), abs=1e-6)
    assert not loss.is_exact
    assert f"{loss.mean_cosine:.3f}" in loss.line()


def test_a_mixofshow_file_comes_back_bit_equal(tiny_base, tmp_path):
    edlora = random_concept(tiny_base, tuned=EVERYTHING)
    result = _export(edlora, tiny_base, "mixofshow", tmp_path)
    assert result.losses == ()
    found, report = import_concept(result.files, tiny_base, OPTIONS)
    assert_same_concept(found, edlora)
    assert found.card.words == edlora.card.words
    assert report.spelling == "mixofshow"
    assert report.unmatched == ()
    path = tmp_path / "back.safetensors"
    write_artifact(found, path)
    assert_same_concept(read_artifact(path, tiny_base.facts), edlora)


def test_a_fused_model_keeps_its_rank_exactly(tiny_base, tmp_path):
    fused = random_adapter(tiny_base, "<alice-tom>", "<bob-rex>", rank=8)
    details = ExportDetails(title="two", trigger="<alice-tom> <bob-rex>", sources=("alice/tom@1", "bob/rex@2"))
    for target in ("diffusers", "kohya"):
        result = export(fused, tiny_base, target, tmp_path / target, name="two", details=details)
        lora = [result.files[0]]
        found, report = import_concept(lora, tiny_base, OPTIONS)
        for component, updates in fused.linears.items():
            for layer, update in updates.items():
                assert torch.equal(found.linears[component][layer].up, update.up)
                assert torch.equal(found.linears[component][layer].down, update.down)
        assert report.rank == 8
        assert len(result.losses) == 4


def test_half_precision_rounds_and_nothing_else(tiny_base, tmp_path):
    edlora = random_concept(tiny_base)
    result = _export(edlora, tiny_base, "kohya", tmp_path, half=True)
    found, _ = import_concept(result.files[:1], tiny_base, OPTIONS)
    for component, updates in edlora.linears.items():
        for layer, update in updates.items():
            assert torch.equal(found.linears[component][layer].up, update.up.half().float())


def test_an_unknown_target_and_an_impossible_one_are_refused(tiny_base, tmp_path):
    edlora = random_concept(tiny_base)
    with pytest.raises(ExportError, match="expected one of diffusers"):
        _export(edlora, tiny_base, "onnx", tmp_path)
    xl = random_base("sdxl")
    with pytest.raises(ExportError, match="one text encoder"):
        _export(random_concept(xl), xl, "mixofshow", tmp_path)
