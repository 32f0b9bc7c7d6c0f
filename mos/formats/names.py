"""How other tools spell the layers of a base: every spelling of every tunable layer, and its parts.

The table is made from the base's own layers and looked up, never parsed: in kohya's names an underscore
stands for a dot and for itself, so going back by rule would be a guess.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mos.facts import BaseFacts

Part = Literal["down", "up", "alpha", "dora"]

_SUFFIXES: tuple[tuple[str, Part, str], ...] = (
    (".lora_A.weight", "down", "diffusers"),
    (".lora_B.weight", "up", "diffusers"),
    (".lora_A.default.weight", "down", "diffusers"),
    (".lora_B.default.weight", "up", "diffusers"),
    (".lora.down.weight", "down", "diffusers"),
    (".lora.up.weight", "up", "diffusers"),
    (".lora_linear_layer.down.weight", "down", "diffusers"),
    (".lora_linear_layer.up.weight", "up", "diffusers"),
    ("_lora.down.weight", "down", "diffusers-old"),
    ("_lora.up.weight", "up", "diffusers-old"),
    (".lora_down.weight", "down", "kohya"),
    (".lora_up.weight", "up", "kohya"),
    (".alpha", "alpha", "kohya"),
    (".lora_magnitude_vector", "dora", "diffusers"),
    (".lora_magnitude_vector.weight", "dora", "diffusers"),
    (".dora_scale", "dora", "kohya"),
)
_OLD_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
_UNET_PLACE = re.compile(r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)\.(.+)")


@dataclass(frozen=True, kw_only=True)
class LayerPart:
    """What a foreign key means: a part of the update of one layer, in one tool's spelling."""

    component: str
    layer: str
    part: Part
    spelling: str


class KeyTable:
    """Every known spelling of every tunable layer of a base.

    Args:
        facts: of the base whose layers are spelled.
    """

    def __init__(self, facts: BaseFacts) -> None:
        self._stems: dict[str, tuple[str, str]] = {}
        for component, shapes in facts.linear_shapes.items():
            for layer in shapes:
                for stem in _stems(facts, component, layer):
                    self._stems.setdefault(stem, (component, layer))

    def find(self, key: str) -> LayerPart | None:
        """Say which part of which layer a key names, or None for a key that names none."""
        for suffix, part, spelling in _SUFFIXES:
            if key.endswith(suffix):
                found = self._stems.get(key.removesuffix(suffix))
                if found is not None:
                    return LayerPart(component=found[0], layer=found[1], part=part, spelling=spelling)
        return None


def diffusers_stem(component: str, layer: str) -> str:
    """Spell a layer as diffusers and PEFT do, component first."""
    return f"unet.{layer}" if component == "unet" else f"{component}.text_model.{layer}"


def kohya_stem(facts: BaseFacts, component: str, layer: str) -> str:
    """Spell a layer as kohya's sd-scripts do.

    Prefix and module path with every dot an underscore (sd-scripts, networks/lora.py: prefixes lora_unet
    and lora_te, for SDXL lora_te1 and lora_te2). SDXL's U-Net is named in the original layout of
    input, middle and output blocks; SD 1.x and 2.x in that of diffusers.
    """
    if component == "unet":
        name = original_unet_name(facts, layer) if facts.family == "sdxl" else layer
        return "lora_unet_" + name.replace(".", "_")
    prefix = {"text_encoder": "lora_te1" if facts.family == "sdxl" else "lora_te", "text_encoder_2": "lora_te2"}
    return f"{prefix[component]}_text_model_{layer.replace('.', '_')}"


def original_unet_name(facts: BaseFacts, layer: str) -> str:
    """Name a transformer layer as the original (CompVis, sgm) U-Net does.

    With n residual layers a block, ``down_blocks.i.attentions.j`` is ``input_blocks.{1 + i (n+1) + j}.1``,
    ``up_blocks.i.attentions.j`` is ``output_blocks.{i (n+1) + j}.1`` and the mid block ``middle_block.1``.
    """
    if layer.startswith("mid_block."):
        return layer.replace("mid_block.attentions.0", "middle_block.1", 1)
    found = _UNET_PLACE.fullmatch(layer)
    if found is None:
        raise KeyError(layer)
    side, block, index, rest = found[1], int(found[2]), int(found[3]), found[4]
    stride = _layers_per_block(facts) + 1
    position = block * stride + index + (side == "down")
    return f"{'input' if side == 'down' else 'output'}_blocks.{position}.1.{rest}"


def mixofshow_stem(component: str, layer: str) -> str:
    """Spell a layer as the Mix-of-Show reference does inside its component's own table."""
    return layer if component == "unet" else f"text_model.{layer}"


def projections_are_convolutions(facts: BaseFacts) -> bool:
    """Whether the 1x1 projections of the U-Net are convolutions (SD 1.x) and not linears (2.x, XL)."""
    return facts.family == "sd1"


def _layers_per_block(facts: BaseFacts) -> int:
    places = (_UNET_PLACE.fullmatch(layer) for layer in facts.linear_shapes["unet"])
    return 1 + max(int(place[3]) for place in places if place and place[1] == "down")


def _stems(facts: BaseFacts, component: str, layer: str) -> Iterator[str]:
    """Every stem a layer goes by: with and without component, with and without ``text_model``, old and new."""
    plain = [layer] if component == "unet" else [layer, f"text_model.{layer}"]
    for name in plain:
        yield f"{component}.{name}"
        yield from _old_stems(component, name, f"{component}.")
        yield f"params.{component}.{name}"
        if component != "text_encoder_2":
            yield name
            yield f"base_model.model.{name}"
            yield from _old_stems(component, name, "")
    yield kohya_stem(facts, component, layer)
    if component == "unet":
        yield "lora_unet_" + layer.replace(".", "_")
        yield "lora_unet_" + original_unet_name(facts, layer).replace(".", "_")
    elif component == "text_encoder":
        yield from (f"{prefix}_text_model_{layer.replace('.', '_')}" for prefix in ("lora_te", "lora_te1"))


def _old_stems(component: str, name: str, prefix: str) -> Iterator[str]:
    """Spellings from when attention processors carried the LoRA: ``attn1.processor.to_q_lora``."""
    parent, _, leaf = name.rpartition(".")
    if component == "unet" and ".attn" in name:
        attention = name.split(".to_")[0]
        leaf = name.removeprefix(f"{attention}.").removesuffix(".0")
        yield f"{prefix}{attention}.processor.{leaf}"
        yield f"{prefix}{attention}.{leaf}"
    elif leaf in _OLD_TEXT:
        yield f"{prefix}{parent}.{_OLD_TEXT[leaf]}"
