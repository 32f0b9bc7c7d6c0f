"""The metadata other tools look for in a LoRA file: modelspec, what is true of kohya's ss_ keys, a tensor hash."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mos.artifact import ArtifactCard
from mos.facts import BaseFacts

_KOHYA_BASE = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
_ARCHITECTURE = {
    ("sd1", "epsilon"): "stable-diffusion-v1",
    ("sd1", "v_prediction"): "stable-diffusion-v1",
    ("sd2", "epsilon"): "stable-diffusion-v2-512",
    ("sd2", "v_prediction"): "stable-diffusion-v2-768-v",
    ("sdxl", "epsilon"): "stable-diffusion-xl-v1-base",
    ("sdxl", "v_prediction"): "stable-diffusion-xl-v1-base",
}
_DIFFUSERS = "https://github.com/huggingface/diffusers"
_RECIPE_TO_KOHYA = {
    "steps": "ss_max_train_steps",
    "batch_size": "ss_total_batch_size",
    "accumulation": "ss_gradient_accumulation_steps",
    "lr_unet": "ss_unet_lr",
    "lr_text_encoder": "ss_text_encoder_lr",
    "noise_offset": "ss_noise_offset",
    "min_snr_gamma": "ss_min_snr_gamma",
}


@dataclass(frozen=True, kw_only=True)
class ExportDetails:
    """What an exported file says of itself beyond its tensors.

    Args:
        title: one line for people.
        trigger: the words to type.
        author: who made it, empty if unknown.
        licence: SPDX name or free text, empty if unknown.
        sources: ``owner/name@version`` of what was fused; empty for a single concept.
        card: of a single concept.
    """

    title: str
    trigger: str
    author: str = ""
    licence: str = ""
    sources: tuple[str, ...] = ()
    card: ArtifactCard | None = field(default=None)


def modelspec_metadata(facts: BaseFacts, details: ExportDetails) -> dict[str, str]:
    """Describe a LoRA by the Stability AI model metadata standard 1.0.0; unknown fields are left out."""
    side = str(facts.resolution)
    fields = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{_ARCHITECTURE[facts.family, facts.prediction_type]}/lora",
        "modelspec.implementation": _DIFFUSERS,
        "modelspec.title": details.title,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": "v" if facts.prediction_type == "v_prediction" else "epsilon",
        "modelspec.trigger_phrase": details.trigger,
        "modelspec.author": details.author,
        "modelspec.license": details.licence,
        "modelspec.merged_from": ", ".join(details.sources),
    }
    return {key: value for key, value in fields.items() if value}


def kohya_metadata(facts: BaseFacts, details: ExportDetails, rank: int) -> dict[str, str]:
    """Return the ``ss_`` keys whose truth is known; dataset, dates and hashes of the base are not claimed."""
    fields = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "ss_base_model_version": _kohya_base(facts),
        "ss_v2": str(facts.family == "sd2"),
        "ss_sd_model_name": facts.name,
        "ss_resolution": f"({facts.resolution}, {facts.resolution})",
        "ss_output_name": details.title,
    }
    if details.card is not None:
        fields["ss_seed"] = str(details.card.seed)
        for ours, theirs in _RECIPE_TO_KOHYA.items():
            if ours in details.card.recipe:
                fields[theirs] = details.card.recipe[ours]
    return fields


def tensor_hash(data: Iterable[bytes]) -> str:
    """Hash a safetensors file's data, that is all bytes after its header: sha256, hex.

    The same value is ``modelspec.hash_sha256`` (with 0x before it) and kohya's ``sshs_model_hash``; it does
    not change when the metadata does.
    """
    digest = hashlib.sha256()
    for piece in data:
        digest.update(piece)
    return digest.hexdigest()


def hash_metadata(digest: str) -> Mapping[str, str]:
    """Return a tensor hash under both its names."""
    return {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}


def _kohya_base(facts: BaseFacts) -> str:
    suffix = "_v" if facts.family == "sd2" and facts.prediction_type == "v_prediction" else ""
    return _KOHYA_BASE[facts.family] + suffix
