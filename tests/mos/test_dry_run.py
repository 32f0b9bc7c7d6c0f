"""Full-size families on meta tensors: counts that others have published, and names by kohya's rules."""

import subprocess
import sys

import pytest

from mos.dry_run import dry_run
from mos.errors import UsageError
from mos.formats.names import KeyTable, kohya_stem, original_unet_name

# Parameter counts of the published files (model cards and config of SD 1.5, SD 2.1, SDXL base 1.0).
PUBLISHED = {
    "sd1": {"text_encoder": 123_060_480, "unet": 859_520_964},
    "sd2": {"text_encoder": 340_387_840, "unet": 865_910_724},
    "sdxl": {"text_encoder": 123_060_480, "text_encoder_2": 694_659_840, "unet": 2_567_463_684},
}
LAYERS = {"sd1": 16, "sd2": 16, "sdxl": 70}
PAIRS = {
    "sd1": {"text_encoder": 48, "unet": 128},
    "sd2": {"text_encoder": 92, "unet": 128},
    "sdxl": {"text_encoder": 48, "text_encoder_2": 128, "unet": 560},
}
# Names as sd-scripts writes them (networks/lora.py; SDXL's U-Net in library/sdxl_original_unet.py).
KOHYA = {
    "sd1": {
        ("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"): (
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
        ),
        ("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"): (
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0"
        ),
        ("unet", "up_blocks.3.attentions.2.proj_in"): "lora_unet_up_blocks_3_attentions_2_proj_in",
        ("text_encoder", "encoder.layers.11.self_attn.out_proj"): (
            "lora_te_text_model_encoder_layers_11_self_attn_out_proj"
        ),
    },
    "sdxl": {
        ("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"): (
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
        ),
        ("unet", "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj"): (
            "lora_unet_input_blocks_8_1_transformer_blocks_9_ff_net_0_proj"
        ),
        ("unet", "mid_block.attentions.0.transformer_blocks.9.attn2.to_k"): (
            "lora_unet_middle_block_1_transformer_blocks_9_attn2_to_k"
        ),
        ("unet", "up_blocks.0.attentions.2.proj_out"): "lora_unet_output_blocks_2_1_proj_out",
        ("unet", "up_blocks.1.attentions.0.transformer_blocks.1.attn2.to_v"): (
            "lora_unet_output_blocks_3_1_transformer_blocks_1_attn2_to_v"
        ),
        ("text_encoder", "encoder.layers.0.mlp.fc1"): "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        ("text_encoder_2", "encoder.layers.31.self_attn.q_proj"): (
            "lora_te2_text_model_encoder_layers_31_self_attn_q_proj"
        ),
    },
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_the_architectures_count_as_published(family):
    run = dry_run(family)
    assert run.num_parameters == PUBLISHED[family]
    assert run.facts.num_cross_attention_layers == LAYERS[family]
    assert run.num_pairs == PAIRS[family]
    side = run.facts.sample_size
    assert run.output_shape == (1, 4, side, side)
    names = KOHYA.get(family, {})
    for (component, layer), expected in names.items():
        assert layer in run.facts.linear_shapes[component]
        assert kohya_stem(run.facts, component, layer) == expected
    table = KeyTable(run.facts)
    stems = set()
    for component, shapes in run.facts.linear_shapes.items():
        for layer in shapes:
            stem = kohya_stem(run.facts, component, layer)
            found = table.find(f"{stem}.lora_up.weight")
            assert found is not None
            assert (found.component, found.layer) == (component, layer)
            stems.add(stem)
    assert len(stems) == sum(map(len, run.facts.linear_shapes.values()))


def test_an_ed_lora_of_sd_1_5_has_the_papers_size():
    run = dry_run("sd1")
    assert run.num_concept_parameters == 1_116_672
    assert sum(run.num_pairs.values()) == 176


def test_a_layer_outside_the_transformers_has_no_original_name():
    with pytest.raises(KeyError):
        original_unet_name(dry_run("sd1").facts, "conv_in")


def test_an_unknown_family_is_refused():
    with pytest.raises(UsageError, match="expected one of sd1, sd2, sdxl"):
        dry_run("flux")


@pytest.mark.slow
def test_the_module_prints_the_figures():
    result = subprocess.run([sys.executable, "-m", "mos.dry_run", "sdxl"], capture_output=True, text=True, check=True)
    assert "unet 2,567,463,684 parameters" in result.stdout
    assert "cross-attention layers 70" in result.stdout
