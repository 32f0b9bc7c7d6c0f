"""The full-size families without their weights: counts, shapes and memory, from meta tensors.

``python -m mos.dry_run sdxl`` builds the published architecture on the meta device, runs one layer-wise
U-Net step through it, and prints what an ED-LoRA, a fusion and the base itself would weigh.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from mos.edlora.attention import layerwise_attention
from mos.errors import UsageError
from mos.facts import BaseFacts, EncoderFacts, tuned_linears
from mos.layers import attention_linears, cross_attention_names, input_sites, linear_weight

_ATTENTION = ("text_encoder.attention", "unet.attention")
_EVERY_LAYER = {"feed_forward": True, "projections": True}
_VOCABULARY = 49408
_CLIP_L = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "projection_dim": 768,
}
_CLIP_H = {
    "hidden_size": 1024,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "projection_dim": 512,
    "hidden_act": "gelu",
}
_CLIP_G = {
    "hidden_size": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "intermediate_size": 5120,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
_XL_UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2, 10),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_FAMILIES: Mapping[str, tuple[Mapping[str, Any], Sequence[Mapping[str, Any]], str]] = {
    "sd1": ({"sample_size": 64, "cross_attention_dim": 768}, (_CLIP_L,), "epsilon"),
    "sd2": (
        {
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
        (_CLIP_H,),
        "v_prediction",
    ),
    "sdxl": (_XL_UNET, (_CLIP_L, _CLIP_G), "epsilon"),
}
"""Family -> published U-Net options, text encoders, prediction type (the files' own config.json)."""


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a full-size family would need.

    Args:
        facts: its facts; fingerprints and norms are empty, for there are no weights.
        num_parameters: component -> count.
        num_pairs: component -> LoRA pairs of an ED-LoRA on every attention linear.
        num_concept_parameters: of an ED-LoRA with two words at ``rank``.
        rank: of the ED-LoRA.
        statistics_bytes: of the fusion statistics of all input sites, float64, whatever the number of concepts.
        output_shape: of one layer-wise U-Net step.
    """

    facts: BaseFacts
    num_parameters: Mapping[str, int]
    num_pairs: Mapping[str, int]
    num_concept_parameters: int
    rank: int
    statistics_bytes: int
    output_shape: tuple[int, ...]

    def lines(self, num_concepts: int = 14) -> list[str]:
        """Return the figures as lines for people; a fusion of ``num_concepts`` beside the single concept."""
        total = sum(self.num_parameters.values())
        concept = 4 * self.num_concept_parameters
        counts = ", ".join(f"{name} {count:,}" for name, count in self.num_parameters.items())
        pairs = ", ".join(f"{name} {count}" for name, count in self.num_pairs.items())
        return [
            f"{self.facts.name}: {counts} parameters; {_size(2 * total)} in half precision, {_size(4 * total)} in full",
            f"cross-attention layers {self.facts.num_cross_attention_layers}, LoRA pairs {pairs}",
            f"ED-LoRA of rank {self.rank}: {self.num_concept_parameters:,} parameters, {_size(concept)}",
            f"fusion of {num_concepts}: rank {num_concepts * self.rank}, {_size(num_concepts * concept)}; "
            f"statistics of all input sites {_size(self.statistics_bytes)}",
            f"one layer-wise step gives {list(self.output_shape)}",
        ]


def dry_run(family: str, *, rank: int = 4) -> DryRun:
    """Build a full-size family on the meta device and send one step through it.

    Raises:
        UsageError: If there is no such family.
    """
    if family not in _FAMILIES:
        raise UsageError(f"family {family!r}: expected one of {', '.join(_FAMILIES)}")
    unet_options, encoder_options, prediction_type = _FAMILIES[family]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_options)
        encoders = {
            "text_encoder" + ("_2" if index else ""): _text_encoder(options, with_projection=index == 1)
            for index, options in enumerate(encoder_options)
        }
    components: dict[str, nn.Module] = {**encoders, "unet": unet}
    facts = _facts(family, components, prediction_type)
    tuned = tuned_linears(facts, _ATTENTION)
    shapes = [facts.linear_shapes[component][name] for component, names in tuned.items() for name in names]
    words = 2 * facts.num_cross_attention_layers * sum(encoder.hidden_dim for encoder in facts.encoders)
    return DryRun(
        facts=facts,
        num_parameters={name: sum(weight.numel() for weight in part.parameters()) for name, part in components.items()},
        num_pairs={component: len(names) for component, names in tuned.items()},
        num_concept_parameters=words + sum(rank * (out + into) for out, into in shapes),
        rank=rank,
        statistics_bytes=sum(_site_bytes(facts, name, module) for name, module in components.items()),
        output_shape=_step(unet, facts),
    )


def _facts(family: str, components: Mapping[str, nn.Module], prediction_type: str) -> BaseFacts:
    unet: Any = components["unet"]
    encoders = [(name, module) for name, module in components.items() if name != "unet"]
    return BaseFacts(
        name=f"{family} at full size",
        family=family,
        num_cross_attention_layers=len(cross_attention_names(unet)),
        encoders=tuple(_encoder_facts(name, module) for name, module in encoders),
        latent_channels=4,
        vae_scale_factor=8,
        sample_size=int(unet.config.sample_size),
        scaling_factor=0.13025 if family == "sdxl" else 0.18215,
        prediction_type=prediction_type,
        linear_shapes={name: _shapes(module) for name, module in components.items()},
        linear_norms={},
        attention_linears={name: attention_linears(module) for name, module in components.items()},
        fingerprint={},
    )


def _encoder_facts(name: str, module: Any) -> EncoderFacts:
    return EncoderFacts(
        name=name,
        hidden_dim=int(module.config.hidden_size),
        vocab_size=_VOCABULARY,
        bos_id=_VOCABULARY - 2,
        eos_id=_VOCABULARY - 1,
        pad_id=0 if name == "text_encoder_2" else _VOCABULARY - 1,
        max_length=77,
        mean_embedding_norm=0.0,
    )


def _shapes(module: nn.Module) -> dict[str, tuple[int, int]]:
    names = attention_linears(module, **_EVERY_LAYER)
    return {name: (linear_weight(module, name).shape[0], linear_weight(module, name).shape[1]) for name in names}


def _site_bytes(facts: BaseFacts, component: str, module: nn.Module) -> int:
    sites = input_sites(module, facts.attention_linears[component])
    return sum(8 * facts.linear_shapes[component][names[0]][1] ** 2 for names in sites.values())


def _step(unet: Any, facts: BaseFacts) -> tuple[int, ...]:
    """Run one U-Net step with an encoding for every layer; [1, channels, side, side]."""
    dim = sum(encoder.hidden_dim for encoder in facts.encoders)
    side = facts.sample_size
    with torch.device("meta"), torch.no_grad(), layerwise_attention(unet):
        conditions = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
        sample = unet(
            torch.empty(1, facts.latent_channels, side, side),
            torch.empty(1),
            encoder_hidden_states=torch.empty(1, facts.num_cross_attention_layers, 77, dim),
            added_cond_kwargs=conditions if facts.family == "sdxl" else None,
        ).sample
    return tuple(sample.shape)


def _text_encoder(options: Mapping[str, Any], *, with_projection: bool) -> CLIPTextModel:
    config = CLIPTextConfig(vocab_size=_VOCABULARY, max_position_embeddings=77, **options)
    return CLIPTextModelWithProjection(config) if with_projection else CLIPTextModel(config)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


if __name__ == "__main__":
    for _family in sys.argv[1:] or list(_FAMILIES):
        print("\n".join(dry_run(_family).lines()))
