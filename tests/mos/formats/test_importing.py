"""Files of other tools become concepts; what matched is counted and what did not is named."""

import json
import math
import os
import pickle
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

from mos.artifact import read_artifact, write_artifact
from mos.formats.importing import ImportOptions, import_concept
from mos.formats.names import KeyTable, kohya_stem
from mos.formats.source import ImportFormatError, open_foreign
from mos.formats.tensors import diffusers_tensors, kohya_tensors
from mos.random_base import random_base
from tests.mos.formats.concepts import EVERYTHING, random_concept

OPTIONS = ImportOptions(name="tom", class_word="cat", kind="pet")


def _adapter(edlora):
    from mos.concept import ConceptRef

    return edlora.adapter(ConceptRef("alice", "tom", 1))


def _assert_deltas(found, expected, scale=1.0):
    count = 0
    for component, updates in expected.linears.items():
        for layer, update in updates.items():
            torch.testing.assert_close(found.linears[component][layer].delta(), update.delta(scale))
            count += 1
    assert count >= 20


def test_a_lora_saved_by_diffusers_and_peft_with_their_alpha(tmp_path):
    base = random_base("sd1")
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    base.unet.add_adapter(LoraConfig(r=4, lora_alpha=2, target_modules=targets, init_lora_weights=False))
    state = get_peft_model_state_dict(base.unet)
    config = base.unet.peft_config["default"].to_dict()
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=state, unet_lora_adapter_metadata=json.loads(json.dumps(config, default=list))
    )
    plain = random_base("sd1")
    found, report = import_concept([tmp_path], plain, OPTIONS)
    layers = plain.facts.attention_linears["unet"]
    assert report.spelling == "diffusers"
    assert report.matched == {"unet": len(layers)}
    assert report.unmatched == ()
    assert found.card.tuned == ("unet.attention",)
    for layer in layers:
        expected = state[f"{layer}.lora_B.weight"] @ state[f"{layer}.lora_A.weight"] * (2 / 4)
        torch.testing.assert_close(found.linears["unet"][layer].delta(), expected)


def test_a_kohya_file_is_scaled_by_alpha_over_rank(tiny_base, tmp_path):
    edlora = random_concept(tiny_base, tuned=EVERYTHING, rank=4)
    tensors = kohya_tensors(_adapter(edlora), tiny_base.facts)
    tensors = {key: torch.tensor(1.0) if key.endswith(".alpha") else value for key, value in tensors.items()}
    save_file(tensors, tmp_path / "lora.safetensors")
    found, report = import_concept([tmp_path / "lora.safetensors"], tiny_base, OPTIONS)
    _assert_deltas(found, edlora, scale=1 / 4)
    assert report.words_from == "the base's own words 'cat'"


def test_diffusers_own_conversion_to_kohya_is_read(tiny_base, tmp_path):
    edlora = random_concept(tiny_base)
    ours = diffusers_tensors(_adapter(edlora), tiny_base.facts)
    theirs = convert_state_dict_to_kohya({key.replace("unet.", "lora_unet."): value for key, value in ours.items()})
    theirs = {key.replace("lora_lora_unet", "lora_unet"): value for key, value in theirs.items()}
    assert any(key.startswith("lora_te1_text_model") for key in theirs)
    save_file({key: value.contiguous() for key, value in theirs.items()}, tmp_path / "lora.safetensors")
    found, _ = import_concept([tmp_path / "lora.safetensors"], tiny_base, OPTIONS)
    _assert_deltas(found, edlora)


def test_old_processor_keys_are_read(tiny_base, tmp_path):
    edlora = random_concept(tiny_base)
    tensors = {}
    for component, updates in edlora.linears.items():
        for layer, update in updates.items():
            if component == "unet":
                attention, leaf = layer.rsplit(".to_", 1)
                stem = f"unet.{attention}.processor.to_{leaf.removesuffix('.0')}_lora"
            else:
                attention, leaf = layer.rsplit(".", 1)
                stem = f"text_encoder.text_model.{attention}.to_{leaf.removesuffix('_proj')}_lora"
            tensors[f"{stem}.down.weight"], tensors[f"{stem}.up.weight"] = update.down, update.up
    save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors")
    found, report = import_concept([tmp_path], tiny_base, OPTIONS)
    assert report.spelling == "diffusers-old"
    _assert_deltas(found, edlora)


@pytest.fixture(scope="module")
def reference_files(tmp_path_factory):
    """The reference's two layouts, in one process-saving file each."""
    base = random_base("sd1")
    edlora = random_concept(base)
    folder = tmp_path_factory.mktemp("reference")
    words = {
        word: rows.clone() for word, rows in zip(("<tom1>", "<tom2>"), edlora.embeddings["text_encoder"], strict=True)
    }
    research = {"new_concept_embedding": words, "text_encoder": {}, "unet": {}}
    for component, updates in edlora.linears.items():
        for layer, update in updates.items():
            stem = layer if component == "unet" else f"text_model.{layer}"
            research[component][f"{stem}_lora.down.weight"] = update.down
            research[component][f"{stem}_lora.up.weight"] = update.up
    torch.save(research, folder / "edlora_model-latest.pth")
    return base, edlora, folder


def test_the_research_branchs_layout_is_read_in_another_process(reference_files):
    base, edlora, folder = reference_files
    found, report = import_concept([folder / "edlora_model-latest.pth"], base, OPTIONS)
    assert report.spelling == "mixofshow"
    assert report.words == ("<tom1>", "<tom2>")
    assert report.words_from == "layer-wise embeddings of Mix-of-Show"
    assert report.unmatched == ()
    assert torch.equal(found.embeddings["text_encoder"], edlora.embeddings["text_encoder"])
    _assert_deltas(found, edlora)


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tiny_base, tmp_path):
    witness = tmp_path / "witness"
    path = tmp_path / "lora.pth"
    path.write_bytes(pickle.dumps({"unet": _Evil(witness)}, protocol=2))
    with pytest.raises(ImportFormatError, match=r"it calls \w+\.system, which no weights need; only plain tensors"):
        import_concept([path], tiny_base, OPTIONS)
    assert not witness.exists()


def _inversion_files(folder, vectors):
    save_file({"<tom>": vectors}, folder / "diffusers.safetensors")
    save_file({"emb_params": vectors}, folder / "webui.safetensors")
    return [folder / "diffusers.safetensors", folder / "webui.safetensors"]


def test_textual_inversions_become_words_that_all_layers_share(tiny_base, tmp_path):
    vectors = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)) * 0.05
    for path in _inversion_files(tmp_path, vectors):
        found, report = import_concept([path], tiny_base, OPTIONS)
        layers = tiny_base.facts.num_cross_attention_layers
        assert torch.equal(found.embeddings["text_encoder"], vectors.unsqueeze(1).expand(3, layers, 16))
        assert found.linears == {}
        assert found.card.rank == 0
        assert report.words_from == "textual inversion"
        assert len(report.words) == 3
        target = tmp_path / "back.safetensors"
        write_artifact(found, target)
        assert read_artifact(target, tiny_base.facts).card == found.card


def test_a_webui_embedding_in_a_pytorch_file_is_read(tiny_base, tmp_path):
    vectors = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)) * 0.05
    path = tmp_path / "tom.pt"
    parameter = torch.nn.Parameter(vectors)
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": parameter}, "name": "tom", "step": 9}, path)
    found, report = import_concept([path], tiny_base, OPTIONS)
    assert torch.equal(found.embeddings["text_encoder"][:, 0], vectors)
    assert report.words_from == "textual inversion"
    assert report.unmatched == ()


def test_a_broken_adapter_configuration_is_one_clear_error(tiny_base, tmp_path):
    tensors = diffusers_tensors(_adapter(random_concept(tiny_base)), tiny_base.facts)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    for content, message in (
        (b"\xff\xfe", "cannot be read"),
        (b"[1]", "cannot be read"),
        (b'{"lora_alpha": "many"}', "has the alpha 'many'"),
        (b'{"lora_alpha": 1, "alpha_pattern": {"to_q": 2}}', "uses alpha_pattern"),
    ):
        (tmp_path / "adapter_config.json").write_bytes(content)
        with pytest.raises(ImportFormatError, match=message):
            import_concept([tmp_path], tiny_base, OPTIONS)


def test_a_pivotal_pair_is_one_concept(tmp_path):
    base = random_base("sdxl")
    edlora = random_concept(base, tuned=EVERYTHING)
    save_file(kohya_tensors(_adapter(edlora), base.facts), tmp_path / "lora.safetensors")
    first, second = torch.full((2, 16), 0.01), torch.full((2, 32), 0.02)
    save_file({"clip_l": first, "clip_g": second}, tmp_path / "emb.safetensors")
    found, report = import_concept([tmp_path / "lora.safetensors", tmp_path / "emb.safetensors"], base, OPTIONS)
    assert torch.equal(found.embeddings["text_encoder_2"][:, 0], second)
    assert report.matched.keys() == {"text_encoder", "text_encoder_2", "unet"}
    assert report.words == ("<tom-rand>", "<tom-class>")
    with pytest.raises(ImportFormatError, match="so does another of the files"):
        import_concept([tmp_path / "emb.safetensors", tmp_path / "emb.safetensors"], base, OPTIONS)


def test_a_trigger_of_the_bases_own_words_is_that_prompt_exactly(tiny_base, tmp_path):
    from mos.edlora.tokens import PromptEncoder

    edlora = random_concept(tiny_base)
    save_file(diffusers_tensors(_adapter(edlora), tiny_base.facts), tmp_path / "lora.safetensors")
    options = ImportOptions(name="tom", class_word="cat", trigger="red cat")
    found, _ = import_concept([tmp_path / "lora.safetensors"], tiny_base, options)
    encoder = PromptEncoder(tiny_base, _adapter(found).vocabulary)
    typed = encoder.encode(["photo of <alice-tom>"]).context
    spelled = encoder.encode(["photo of red cat"]).context
    torch.testing.assert_close(typed, spelled)


def test_missing_layers_are_zero_and_unknown_keys_are_named(tiny_base, tmp_path):
    edlora = random_concept(tiny_base)
    tensors = diffusers_tensors(_adapter(edlora), tiny_base.facts)
    kept = {key: value for key, value in tensors.items() if ".attn2." in key}
    orphan = next(key for key in tensors if ".attn1." in key and key.endswith("lora_A.weight"))
    strangers = {"unet.conv_in.lora_A.weight": torch.zeros(2, 4), orphan: tensors[orphan]}
    save_file(kept | strangers, tmp_path / "lora.safetensors")
    found, report = import_concept([tmp_path / "lora.safetensors"], tiny_base, OPTIONS)
    total = len(tiny_base.facts.attention_linears["unet"])
    assert report.matched == {"unet": len(kept) // 2}
    assert report.filled == {"unet": total - len(kept) // 2}
    assert report.unmatched == tuple(sorted(strangers))
    assert "2 keys not used" in report.lines()[-1]
    empty = [name for name, update in found.linears["unet"].items() if update.norm() == 0]
    assert len(empty) == report.filled["unet"]


def test_smaller_ranks_are_padded_without_changing_the_update(tiny_base, tmp_path):
    tensors = diffusers_tensors(_adapter(random_concept(tiny_base, rank=4)), tiny_base.facts)
    small = diffusers_tensors(_adapter(random_concept(tiny_base, rank=2, seed=1)), tiny_base.facts)
    mixed = {key: small[key] if ".attn1." in key else value for key, value in tensors.items()}
    save_file(mixed, tmp_path / "lora.safetensors")
    found, report = import_concept([tmp_path / "lora.safetensors"], tiny_base, OPTIONS)
    assert report.rank == 4
    layer = next(name for name in found.linears["unet"] if ".attn1." in name)
    expected = small[f"unet.{layer}.lora_B.weight"] @ small[f"unet.{layer}.lora_A.weight"]
    torch.testing.assert_close(found.linears["unet"][layer].delta(), expected)


def test_rslora_scales_by_the_root_of_the_rank(tiny_base, tmp_path):
    edlora = random_concept(tiny_base, rank=4)
    config = {"r": 4, "lora_alpha": 8, "use_rslora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    tensors = diffusers_tensors(_adapter(edlora), tiny_base.facts)
    unet = {
        f"base_model.model.{key.removeprefix('unet.')}": value
        for key, value in tensors.items()
        if key.startswith("unet.")
    }
    save_file(unet, tmp_path / "adapter_model.safetensors")
    found, report = import_concept([tmp_path], tiny_base, OPTIONS)
    assert report.matched == {"unet": len(unet) // 2}
    layer = next(iter(edlora.linears["unet"]))
    expected = edlora.linears["unet"][layer].delta(8 / math.sqrt(4))
    torch.testing.assert_close(found.linears["unet"][layer].delta(), expected)


REFUSED = {
    "nothing that matches": ({"foo.lora_A.weight": torch.zeros(2, 2)}, "0 of 1 keys match"),
    "DoRA": ({"QUERY.lora_magnitude_vector": torch.ones(16)}, "uses DoRA"),
    "too many vectors": ({"emb_params": torch.zeros(8, 16)}, "8 for text_encoder; expected the same 1 to 4"),
    "another base's words": ({"emb_params": torch.zeros(2, 768)}, "made for another base"),
    "another base's second encoder": ({"clip_g": torch.zeros(2, 32)}, "does not have"),
    "a matrix without sides": ({"QUERY.lora_A.weight": torch.tensor(1.0)}, "is no down of a LoRA"),
    "an empty matrix": ({"QUERY.lora_A.weight": torch.zeros(0, 16)}, "is no down of a LoRA"),
    "an alpha of many": ({"QUERY.alpha": torch.zeros(3)}, "is no alpha of a LoRA"),
    "parts that do not multiply": ({"QUERY.lora_A.weight": torch.zeros(2, 16),
                                    "QUERY.lora_B.weight": torch.zeros(16, 3)}, "do not multiply"),
    "half a pair": ({"clip_l": torch.zeros(2, 16)}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_concept_is_refused_with_the_cause(tiny_base, tmp_path, case):
    tensors, message = REFUSED[case]
    base = tiny_base if message else random_base("sdxl")
    path = tmp_path / "file.safetensors"
    query = f"unet.{base.facts.attention_linears['unet'][0]}"
    save_file({key.replace("QUERY", query): value for key, value in tensors.items()}, path)
    with pytest.raises(ImportFormatError, match=message or "no word embedding for text_encoder_2"):
        import_concept([path], base, OPTIONS)


def test_an_sdxl_lora_is_refused_on_another_base(tiny_base, tmp_path):
    xl = random_base("sdxl")
    save_file(kohya_tensors(_adapter(random_concept(xl)), xl.facts), tmp_path / "xl.safetensors")
    with pytest.raises(ImportFormatError, match="made for another base"):
        import_concept([tmp_path / "xl.safetensors"], tiny_base, OPTIONS)


@pytest.mark.parametrize("content", [b"", b"hello world, this is text", b"\xff" * 8 + b"{" + b"x" * 50])
def test_no_weights_file_is_one_clear_error(tmp_path, content):
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    with pytest.raises(ImportFormatError, match=r"file\.safetensors"):
        open_foreign(path)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_every_spelling_of_every_layer_leads_back_to_it(family):
    facts = random_base(family).facts
    table = KeyTable(facts)
    count = 0
    for component, shapes in facts.linear_shapes.items():
        for layer in shapes:
            stem = kohya_stem(facts, component, layer)
            for key in (f"{stem}.lora_down.weight", f"params.{component}.{layer}.lora_down.weight"):
                found = table.find(key)
                assert found is not None, key
                assert (found.component, found.layer, found.part) == (component, layer, "down")
                count += 1
    assert count > 100
