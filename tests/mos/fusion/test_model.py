"""Fused models on disk: what is written is read back, and nothing else is."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mos.artifact import ArtifactError, write_artifact
from mos.base_model import BaseModel
from mos.errors import BadInputError, NotFoundError
from mos.fusion import (
    BaseMismatchError,
    FusionConfig,
    FusionSource,
    extended_refs,
    fuse,
    read_fused,
    read_fused_record,
    write_fused,
)
from mos.models import load_adapter
from mos.random_base import random_base


@pytest.fixture
def fused(
    base: BaseModel, sources: list[FusionSource], make_config: Callable[..., FusionConfig], tmp_path: Path
) -> Path:
    return write_fused(fuse(base, sources, make_config(strategy="average")), tmp_path / "fused")


def test_a_fused_model_comes_back_as_it_was_written(
    base: BaseModel, sources: list[FusionSource], make_config: Callable[..., FusionConfig], tmp_path: Path
) -> None:
    model = fuse(base, sources, make_config())
    found = read_fused(write_fused(model, tmp_path / "fused"), base.facts)
    assert found.words == model.words == ("<alice-robot>", "<bob-cat>", "<carol-house>")
    assert found.sources == model.sources
    assert found.config == model.config
    assert found.report == json.loads(json.dumps(model.report))
    for component, updates in model.adapter.linears.items():
        for name, update in updates.items():
            other = found.adapter.linears[component][name]
            assert torch.equal(update.up, other.up)
            assert torch.equal(update.down, other.down)
    for concept, other_concept in zip(model.adapter.vocabulary, found.adapter.vocabulary, strict=True):
        assert concept.words == other_concept.words
        assert torch.equal(concept.embeddings["text_encoder"], other_concept.embeddings["text_encoder"])


def test_load_adapter_opens_files_and_directories(
    base: BaseModel, sources: list[FusionSource], fused: Path, tmp_path: Path
) -> None:
    assert load_adapter(fused, base.facts).words == ("<alice-robot>", "<bob-cat>", "<carol-house>")
    path = tmp_path / "concept.safetensors"
    write_artifact(sources[0].edlora, path)
    assert load_adapter(path, base.facts, ref=sources[0].ref).words == ("<alice-robot>",)
    assert load_adapter(path, base.facts).words == ("<local-cat>",)
    with pytest.raises(NotFoundError, match="no such concept file"):
        load_adapter(tmp_path / "nothing", base.facts)
    with pytest.raises(NotFoundError, match="no fused model here"):
        load_adapter(tmp_path, base.facts)


def test_another_base_is_refused(fused: Path) -> None:
    with pytest.raises(BaseMismatchError, match="text_encoder and unet differ"):
        read_fused(fused, random_base(seed=1).facts)


def test_concepts_are_added_replaced_and_removed_by_name(fused: Path) -> None:
    record = read_fused_record(fused)
    assert extended_refs(record, ["dave/mug"], ["bob/cat"]) == ("alice/robot@1", "carol/house@1", "dave/mug")
    assert extended_refs(record, ["bob/cat@3"], []) == ("alice/robot@1", "bob/cat@3", "carol/house@1")
    assert extended_refs(record, [], ["bob/cat@2"]) == ("alice/robot@1", "carol/house@1")
    with pytest.raises(NotFoundError, match="bob/cat@9: not in the fused model"):
        extended_refs(record, [], ["bob/cat@9"])
    with pytest.raises(BadInputError, match="nothing would be left"):
        extended_refs(record, [], ["alice/robot", "bob/cat", "carol/house"])


def test_a_torn_model_is_refused(base: BaseModel, fused: Path) -> None:
    weights = fused / "fused.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match="sha256"):
        read_fused(fused, base.facts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "newer mos"),
        ({"concepts": []}, "do not belong together"),
        ({"sources": [{"ref": 1}]}, "do not belong together"),
        ({"base": None}, "names no base"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(
    base: BaseModel, fused: Path, change: dict[str, object], message: str
) -> None:
    path = fused / "fused.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((ArtifactError, BaseMismatchError), match=message):
        read_fused(fused, base.facts)


def test_a_record_that_is_no_json_is_refused(fused: Path) -> None:
    (fused / "fused.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_fused_record(fused)
