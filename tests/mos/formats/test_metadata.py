"""What an exported file says of itself is true, and its tensor hash is the hash of its tensors."""

import hashlib
import json

from safetensors import safe_open

from mos.concept import ConceptRef
from mos.formats.exporting import export
from mos.formats.metadata import ExportDetails
from mos.random_base import random_base
from tests.mos.formats.concepts import random_concept

REF = ConceptRef("alice", "tom", 1)


def _exported(base, tmp_path, target="kohya", **known):
    edlora = random_concept(base)
    details = ExportDetails(title="Tom the cat", trigger=REF.word, licence="cc-by-4.0", card=edlora.card, **known)
    result = export(edlora.adapter(REF), base, target, tmp_path, name="tom", details=details)
    with safe_open(result.files[0], framework="pt") as file:
        return result, file.metadata()


def _data_hash(path):
    raw = path.read_bytes()
    return hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()


def test_the_tensor_hash_is_that_of_the_bytes_after_the_header(tiny_base, tmp_path):
    for target in ("kohya", "diffusers"):
        result, metadata = _exported(tiny_base, tmp_path / target, target)
        digest = _data_hash(result.files[0])
        assert result.tensor_hash == digest
        assert metadata["sshs_model_hash"] == digest
        assert metadata["modelspec.hash_sha256"] == f"0x{digest}"


def test_the_tensor_hash_does_not_depend_on_the_metadata(tiny_base, tmp_path):
    first, _ = _exported(tiny_base, tmp_path / "1")
    second, _ = _exported(tiny_base, tmp_path / "2", author="alice")
    assert first.tensor_hash == second.tensor_hash
    assert first.files[0].read_bytes() != second.files[0].read_bytes()


def test_modelspec_and_kohya_fields_are_the_true_ones(tmp_path):
    expected = {
        "sd1": ("stable-diffusion-v1/lora", "sd_v1", "False", "epsilon"),
        "sd2": ("stable-diffusion-v2-768-v/lora", "sd_v2_v", "True", "v"),
        "sdxl": ("stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0", "False", "epsilon"),
    }
    for family, (architecture, base_version, is_v2, prediction) in expected.items():
        base = random_base(family)
        _, metadata = _exported(base, tmp_path / family)
        assert metadata["modelspec.sai_model_spec"] == "1.0.0"
        assert metadata["modelspec.architecture"] == architecture
        assert metadata["modelspec.prediction_type"] == prediction
        assert metadata["modelspec.title"] == "Tom the cat"
        assert metadata["modelspec.license"] == "cc-by-4.0"
        assert metadata["modelspec.resolution"] == "32x32"
        assert metadata["modelspec.trigger_phrase"] == "<alice-tom>"
        assert metadata["ss_base_model_version"] == base_version
        assert metadata["ss_v2"] == is_v2
        assert metadata["ss_network_dim"] == "2"
        assert metadata["ss_network_alpha"] == "2.0"
        assert metadata["ss_seed"] == "7"
        assert metadata["ss_max_train_steps"] == "500"
        assert metadata["ss_unet_lr"] == "0.0001"
        assert json.loads(metadata["mos.words"]) == ["<tom-rand>", "<tom-class>"]


def test_nothing_unknown_is_claimed(tiny_base, tmp_path):
    _, metadata = _exported(tiny_base, tmp_path)
    assert "modelspec.author" not in metadata
    assert "modelspec.merged_from" not in metadata
    assert not any("dataset" in key or "timestamp" in key or key.endswith("sd_model_hash") for key in metadata)
    assert all(isinstance(value, str) and value for value in metadata.values())
