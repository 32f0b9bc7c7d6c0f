"""The frozen base model: its parts, the facts everything else reads from it, and its fingerprint."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mos.errors import BadInputError, NotFoundError
from mos.facts import BaseFacts, EncoderFacts
from mos.layers import attention_linears, canonical_name, cross_attention_names, linear_weight

__all__ = ["BaseFacts", "BaseModel", "EncoderFacts", "assemble", "base_resolution", "fingerprint", "load_base"]

_PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseModel:
    """A Stable Diffusion base: frozen modules in evaluation mode, tokenizers, scheduler and facts."""

    unet: UNet2DConditionModel
    text_encoders: Mapping[str, CLIPTextModel]
    tokenizers: Mapping[str, CLIPTokenizer]
    vae: AutoencoderKL
    scheduler: DDPMScheduler
    facts: BaseFacts

    @property
    def text_encoder(self) -> CLIPTextModel:
        """The first text encoder (the only one of SD 1.x and 2.x)."""
        return self.text_encoders["text_encoder"]

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The first text encoder's tokenizer."""
        return self.tokenizers["text_encoder"]

    @property
    def device(self) -> torch.device:
        """Where the U-Net lives."""
        device: torch.device = next(self.unet.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The U-Net's floating type."""
        dtype: torch.dtype = next(self.unet.parameters()).dtype
        return dtype

    def component(self, name: str) -> nn.Module:
        """Return ``"unet"`` or a text encoder by its component name.

        Raises:
            KeyError: If the base has no such component.
        """
        return self.unet if name == "unet" else self.text_encoders[name]  # type: ignore[no-any-return]

    def to(self, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "BaseModel":
        """Move every module in place and return self."""
        for module in (self.unet, *self.text_encoders.values(), self.vae):
            nn.Module.to(module, device=device, dtype=dtype)  # diffusers' own warns about nothing
        return self


def load_base(
    path_or_id: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> BaseModel:
    """Open a Stable Diffusion base in the diffusers layout.

    Args:
        path_or_id: a directory with ``model_index.json``, or a hub id ``owner/name``; None is the small
            world this project ships.
        device: where the modules go.
        dtype: floating type of the modules; the fingerprint is taken in float32 before the cast.

    Raises:
        NotFoundError: If there is nothing at that path or id.
        BadInputError: If it is not a Stable Diffusion 1.x, 2.x or XL base, or a part cannot be read.
    """
    source = _locate(path_or_id)
    index = _read_index(source)
    names = ["text_encoder"] + (["text_encoder_2"] if index.get("text_encoder_2") else [])
    unet, vae, scheduler, encoders, tokenizers = _load_parts(source, names, index)
    base = assemble(
        name=Path(source).name if Path(source).is_dir() else source,
        unet=unet,
        text_encoders=dict(zip(names, encoders, strict=True)),
        tokenizers=dict(zip(names, tokenizers, strict=True)),
        vae=vae,
        scheduler=scheduler,
    )
    return base.to(device=device, dtype=dtype)


def assemble(
    *,
    name: str,
    unet: UNet2DConditionModel,
    text_encoders: Mapping[str, CLIPTextModel],
    tokenizers: Mapping[str, CLIPTokenizer],
    vae: AutoencoderKL,
    scheduler: DDPMScheduler,
) -> BaseModel:
    """Freeze the parts, read the facts from them and put the base together (weights must be float32).

    Raises:
        BadInputError: If the parts do not fit one another.
    """
    for module in (unet, *text_encoders.values(), vae):
        module.requires_grad_(False).eval()
    facts = _read_facts(name, unet, text_encoders, tokenizers, vae, scheduler)
    return BaseModel(
        unet=unet,
        text_encoders=text_encoders,
        tokenizers=tokenizers,
        vae=vae,
        scheduler=scheduler,
        facts=facts,
    )


def fingerprint(module: nn.Module) -> str:
    """Digest a component's weights: sha256 over sorted names, shapes and half-precision bytes.

    Half precision makes a file stored in fp16 and the same file loaded in float32 agree.
    """
    digest = hashlib.sha256()
    parameters = {canonical_name(name): parameter for name, parameter in module.named_parameters()}
    for name in sorted(parameters):
        weight = parameters[name].detach()
        digest.update(f"{name}:{list(weight.shape)}:float16;".encode())
        digest.update(weight.to("cpu", torch.float16).contiguous().numpy().data)
    return digest.hexdigest()


def base_resolution(path_or_id: str | Path | None = None) -> int:
    """Return the side in pixels of a base's pictures, from its configuration alone.

    Raises:
        NotFoundError: If there is nothing at that path or id.
        BadInputError: If it is not a base in the diffusers layout.
    """
    source = Path(_locate(path_or_id))
    _read_index(str(source))
    try:
        unet = json.loads((source / "unet" / "config.json").read_text(encoding="utf-8"))
        vae = json.loads((source / "vae" / "config.json").read_text(encoding="utf-8"))
        factor: int = 2 ** (len(vae["block_out_channels"]) - 1)
        return int(unet["sample_size"]) * factor
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInputError(f"{source}: its configuration cannot be read ({type(error).__name__}: {error})") from error


def _locate(path_or_id: str | Path | None) -> str:
    if path_or_id is None:
        from mos.smallworld.assets import base_path

        return str(base_path())
    text = str(path_or_id)
    path = Path(text).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_file():
        raise BadInputError(
            f"{text}: a base is a directory in the diffusers layout, this is a file; "
            "convert it once with diffusers' StableDiffusionPipeline.from_single_file(...).save_pretrained"
        )
    is_hub_id = text.count("/") == 1 and not text.startswith((".", "/", "~"))
    if not is_hub_id:
        raise NotFoundError(f"{text}: no such base; give a directory with model_index.json or a hub id owner/name")
    return _download(text)


def _download(hub_id: str) -> str:
    """Fetch a base from the hub with its ordinary client; every failure becomes one line."""
    from diffusers import DiffusionPipeline

    try:
        return str(DiffusionPipeline.download(hub_id))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise NotFoundError(
            f"{hub_id}: no such directory, and not to be had from the model hub ({reason}); "
            "give a directory in the diffusers layout"
        ) from error


def _read_index(source: str) -> dict[str, Any]:
    path = Path(source) / "model_index.json"
    if not path.is_file():
        raise BadInputError(f"{source}: not a base: it has no model_index.json (expected the diffusers layout)")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: cannot be read as JSON ({error})") from error
    missing = [
        part
        for part in ("unet", "text_encoder", "tokenizer", "vae", "scheduler")
        if not isinstance(index, dict) or not index.get(part)
    ]
    if missing:
        raise BadInputError(f"{source}: not a Stable Diffusion base: model_index.json names no {', '.join(missing)}")
    return dict(index)


def _load_parts(source: str, names: list[str], index: dict[str, Any]) -> tuple[Any, Any, Any, list[Any], list[Any]]:
    options = {"torch_dtype": torch.float32, "use_safetensors": True, "local_files_only": True}
    try:
        unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet", **options)
        vae = AutoencoderKL.from_pretrained(source, subfolder="vae", **options)
        scheduler = DDPMScheduler.from_pretrained(source, subfolder="scheduler", local_files_only=True)
        encoders = [_load_encoder(source, name, index) for name in names]
        tokenizers = [
            CLIPTokenizer.from_pretrained(
                source, subfolder=name.replace("text_encoder", "tokenizer"), local_files_only=True
            )
            for name in names
        ]
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BadInputError(f"{source}: the base cannot be loaded: {reason}") from error
    return unet, vae, scheduler, encoders, tokenizers


def _load_encoder(source: str, name: str, index: dict[str, Any]) -> Any:
    with_projection = index[name][1] == "CLIPTextModelWithProjection"
    model = CLIPTextModelWithProjection if with_projection else CLIPTextModel
    return model.from_pretrained(
        source, subfolder=name, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )


def _read_facts(
    name: str,
    unet: UNet2DConditionModel,
    text_encoders: Mapping[str, CLIPTextModel],
    tokenizers: Mapping[str, CLIPTokenizer],
    vae: AutoencoderKL,
    scheduler: DDPMScheduler,
) -> BaseFacts:
    components: dict[str, nn.Module] = {**text_encoders, "unet": unet}
    prediction_type = str(scheduler.config.prediction_type)
    if prediction_type not in _PREDICTION_TYPES:
        raise BadInputError(f"{name}: predicts {prediction_type!r}; expected one of {', '.join(_PREDICTION_TYPES)}")
    if unet.config.in_channels != vae.config.latent_channels:
        raise BadInputError(
            f"{name}: the U-Net reads {unet.config.in_channels} channels, the autoencoder makes "
            f"{vae.config.latent_channels}; inpainting and depth bases are not supported"
        )
    encoders = tuple(_encoder_facts(key, text_encoders[key], tokenizers[key]) for key in text_encoders)
    context_dim = sum(encoder.hidden_dim for encoder in encoders)
    if unet.config.cross_attention_dim != context_dim:
        raise BadInputError(
            f"{name}: the U-Net attends to {unet.config.cross_attention_dim} channels, "
            f"the text encoders give {context_dim}"
        )
    return BaseFacts(
        name=name,
        family=_family(unet, text_encoders),
        num_cross_attention_layers=len(cross_attention_names(unet)),
        encoders=encoders,
        latent_channels=int(vae.config.latent_channels),
        vae_scale_factor=2 ** (len(vae.config.block_out_channels) - 1),
        sample_size=int(unet.config.sample_size),
        scaling_factor=float(vae.config.scaling_factor),
        prediction_type=prediction_type,
        linear_shapes={key: _shapes(module) for key, module in components.items()},
        linear_norms={key: _norms(module) for key, module in components.items()},
        attention_linears={key: attention_linears(module) for key, module in components.items()},
        fingerprint={key: fingerprint(module) for key, module in components.items()},
    )


def _family(unet: UNet2DConditionModel, text_encoders: Mapping[str, CLIPTextModel]) -> str:
    if len(text_encoders) == 2:
        return "sdxl"
    return "sd2" if unet.config.use_linear_projection else "sd1"


def _shapes(module: nn.Module) -> dict[str, tuple[int, int]]:
    shapes = {}
    for name in attention_linears(module, feed_forward=True, projections=True):
        weight: Tensor = linear_weight(module, name)
        shapes[name] = (weight.shape[0], weight.shape[1])
    return shapes


def _norms(module: nn.Module) -> dict[str, float]:
    names = attention_linears(module, feed_forward=True, projections=True)
    return {name: round(float(linear_weight(module, name).norm()), 4) for name in names}


def _encoder_facts(name: str, encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> EncoderFacts:
    embedding = encoder.get_input_embeddings().weight
    if len(tokenizer) > embedding.shape[0]:
        raise BadInputError(
            f"{name}: its tokenizer knows {len(tokenizer)} tokens, its embedding has {embedding.shape[0]} rows"
        )
    return EncoderFacts(
        name=name,
        hidden_dim=int(encoder.config.hidden_size),
        vocab_size=int(embedding.shape[0]),
        bos_id=int(tokenizer.bos_token_id),
        eos_id=int(tokenizer.eos_token_id),
        pad_id=int(tokenizer.pad_token_id),
        max_length=min(int(tokenizer.model_max_length), int(encoder.config.max_position_embeddings)),
        mean_embedding_norm=float(embedding.detach().float().norm(dim=1).mean()),
    )
