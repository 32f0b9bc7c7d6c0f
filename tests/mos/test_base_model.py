import json

import pytest
import torch

from mos.base_model import BaseFacts, base_resolution, fingerprint, load_base
from mos.errors import BadInputError, NotFoundError
from mos.random_base import random_base


def save(base, path):
    for name, part in {"unet": base.unet, "vae": base.vae, "scheduler": base.scheduler, "tokenizer": base.tokenizer,
                       "text_encoder": base.text_encoder}.items():  # fmt: skip
        part.save_pretrained(path / name)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "text_encoder": ["transformers", "CLIPTextModel"],
    }
    (path / "model_index.json").write_text(json.dumps(index))


def test_a_saved_base_loads_with_the_same_fingerprint_and_facts(tmp_path, tiny_base):
    save(tiny_base, tmp_path)
    loaded = load_base(tmp_path)
    assert loaded.facts.fingerprint == tiny_base.facts.fingerprint
    assert loaded.facts.linear_shapes == tiny_base.facts.linear_shapes
    assert base_resolution(tmp_path) == tiny_base.facts.resolution == 32
    assert loaded.facts.encoders == tiny_base.facts.encoders
    assert not any(parameter.requires_grad for parameter in loaded.unet.parameters())


def test_the_fingerprint_survives_a_load_in_half_precision(tmp_path, tiny_base):
    save(tiny_base, tmp_path)
    assert load_base(tmp_path, dtype=torch.bfloat16).facts.fingerprint == tiny_base.facts.fingerprint
    assert load_base(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_one_changed_weight_changes_the_fingerprint():
    base = random_base()
    before = fingerprint(base.unet)
    with torch.no_grad():
        base.unet.conv_in.bias[0] += 1
    assert fingerprint(base.unet) != before


def test_facts_are_plain_json(tiny_base):
    text = json.dumps(tiny_base.facts.to_json())
    assert BaseFacts.from_json(json.loads(text)) == tiny_base.facts
    assert tiny_base.facts.resolution == 32


@pytest.mark.parametrize(("family", "expected"), [("sd1", "epsilon"), ("sd2", "v_prediction"), ("sdxl", "epsilon")])
def test_family_and_prediction_are_read_from_the_model(family, expected):
    facts = random_base(family).facts
    assert (facts.family, facts.prediction_type) == (family, expected)


def test_a_missing_base_is_one_clear_line(tmp_path):
    with pytest.raises(NotFoundError, match="no such base"):
        load_base(tmp_path / "nothing")
    with pytest.raises(NotFoundError, match="somebody/nothing"):
        load_base("somebody/nothing")


def test_a_folder_that_is_no_base_is_one_clear_line(tmp_path):
    with pytest.raises(BadInputError, match="model_index"):
        load_base(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(BadInputError, match="JSON"):
        load_base(tmp_path)
    (tmp_path / "model_index.json").write_text('{"unet": ["a", "b"]}')
    with pytest.raises(BadInputError, match="names no text_encoder"):
        load_base(tmp_path)
    (tmp_path / "base.ckpt").write_bytes(b"x")
    with pytest.raises(BadInputError, match="directory in the diffusers layout"):
        load_base(tmp_path / "base.ckpt")


def test_a_base_with_a_broken_part_is_one_clear_line(tmp_path, tiny_base):
    save(tiny_base, tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(BadInputError, match="cannot be loaded") as caught:
        load_base(tmp_path)
    assert "\n" not in str(caught.value)
