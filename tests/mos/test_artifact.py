import subprocess
import sys

import pytest
import torch

from mos.artifact import ArtifactError, read_artifact, read_artifact_header, write_artifact
from mos.concept import ConceptRef
from mos.errors import NotFoundError
from mos.random_base import random_base
from tests.mos.artifacts import random_edlora


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_an_artifact_survives_a_round_trip_bit_for_bit(tmp_path, family):
    base = random_base(family)
    edlora = random_edlora(base)
    digest = write_artifact(edlora, tmp_path / "a.safetensors")
    loaded = read_artifact(tmp_path / "a.safetensors", base.facts)
    assert loaded.card == edlora.card
    for component, updates in edlora.linears.items():
        assert updates.keys() == loaded.linears[component].keys()
        for name, update in updates.items():
            assert torch.equal(update.up, loaded.linears[component][name].up)
            assert torch.equal(update.down, loaded.linears[component][name].down)
    for encoder, rows in edlora.embeddings.items():
        assert torch.equal(rows, loaded.embeddings[encoder])
    assert write_artifact(loaded, tmp_path / "b.safetensors") == digest
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_the_safetensors_library_and_peft_names_agree(tmp_path, tiny_base):
    from safetensors.torch import load_file

    edlora = random_edlora(tiny_base)
    write_artifact(edlora, tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    name = "encoder.layers.1.self_attn.k_proj"
    key = f"text_encoder.text_model.{name}.lora_B.weight"
    assert torch.equal(tensors[key], edlora.linears["text_encoder"][name].up)
    assert len(tensors) == 2 * sum(map(len, edlora.linears.values())) + 2


def test_diffusers_loads_every_update_of_an_artifact(tmp_path, tiny_base):
    from diffusers import StableDiffusionPipeline

    base = random_base()
    edlora = random_edlora(base)
    write_artifact(edlora, tmp_path / "a.safetensors")
    pipeline = StableDiffusionPipeline(
        base.vae,
        base.text_encoder,
        base.tokenizer,
        base.unet,
        base.scheduler,
        None,
        None,
        requires_safety_checker=False,
    )
    pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors", adapter_name="cat")
    loaded = [name for name, _ in base.unet.named_parameters() if "lora_A" in name]
    assert len(loaded) == len(edlora.linears["unet"])


def test_the_header_is_read_without_torch(tmp_path, tiny_base):
    path = tmp_path / "a.safetensors"
    write_artifact(random_edlora(tiny_base), path)
    code = (
        "import sys; from mos.artifact import read_artifact_header as read\n"
        f"assert read({str(path)!r}).card.class_word == 'cat' and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(read_artifact_header(path).tensors) == 82


def test_an_artifact_becomes_an_adapter_under_its_name(tiny_base):
    adapter = random_edlora(tiny_base).adapter(ConceptRef.parse("alice/cat@3"))
    (words,) = adapter.vocabulary
    assert (words.ref, words.word, words.words) == ("alice/cat@3", "<alice-cat>", ("<cat-rand>", "<cat-class>"))


def test_an_artifact_of_another_base_is_refused(tmp_path, tiny_base):
    write_artifact(random_edlora(random_base(seed=1)), tmp_path / "a.safetensors")
    with pytest.raises(ArtifactError, match="differs from that of random-sd1-tiny"):
        read_artifact(tmp_path / "a.safetensors", tiny_base.facts)


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(NotFoundError, match="no such file"):
        read_artifact(tmp_path / "a.safetensors", None)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, tiny_base):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    edlora = random_edlora(tiny_base)
    edlora.linears["unet"][next(iter(edlora.linears["unet"]))].up[0, 0] = float("nan")
    with pytest.raises(ArtifactError, match="NaN"):
        write_artifact(edlora, path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]
