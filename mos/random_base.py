"""Random-weight bases: the real architectures at tiny or full size, for tests and benchmarks.

No download, and for the tiny ones no time: a tiny base is built in well under a second. Their weights mean
nothing; their layer names, shapes and wiring are the real ones.
"""

from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mos.base_model import BaseModel, assemble

_WORDS = (
    "a photo of in on the with and dog cat robot fish flower house car mug tree man woman person chair",
    "beach forest city snow space meadow red blue small left right painting style",
)
_FULL_VOCABULARY = 49408


_TEXT_WIDTH = 16


def random_base(family: str = "sd1", seed: int = 0, size: str = "tiny", *, text_width: int = _TEXT_WIDTH) -> BaseModel:
    """Build a base with random weights.

    Args:
        family: ``"sd1"``, ``"sd2"`` (linear projections, v prediction, 64-wide heads) or ``"sdxl"``
            (two text encoders).
        seed: of the weights; the same seed gives the same fingerprint.
        size: ``"tiny"`` (milliseconds a step), ``"small"`` (the small world's shapes) or ``"full"`` (Stable
            Diffusion 1.5's); the last two for family sd1 only.
        text_width: of a tiny base's text encoder (SDXL's second is twice as wide).

    Returns:
        A frozen float32 base on the CPU, its pictures 32 px (tiny), 64 px (small) or 512 px (full) a side.
    """
    is_known = family in ("sd1", "sd2", "sdxl") and size in ("tiny", "small", "full")
    if not is_known or (size != "tiny" and (family, text_width) != ("sd1", _TEXT_WIDTH)):
        raise ValueError(f"no random base of family {family!r}, size {size!r} and text width {text_width}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if size == "tiny":
            return _tiny(family, text_width)
        return _small() if size == "small" else _full()


_TINY_ENCODERS: dict[str, tuple[dict[str, Any], ...]] = {
    "sd1": ({"layers": 2},),
    "sd2": ({"layers": 3, "hidden_act": "gelu", "pad_token": "!"},),
    "sdxl": (
        {"layers": 2, "legacy_eos": True},
        {"layers": 3, "hidden_act": "gelu", "pad_token": "!", "legacy_eos": True},
    ),
}
"""What sets the families' text encoders apart: SD 2.x and XL's second use another activation and pad with '!'."""


def _tiny(family: str, text_width: int) -> BaseModel:
    encoders: dict[str, CLIPTextModel] = {}
    tokenizers: dict[str, CLIPTokenizer] = {}
    for index, given in enumerate(_TINY_ENCODERS[family]):
        name, options = "text_encoder" + ("_2" if index else ""), dict(given)
        tokenizers[name] = small_tokenizer(
            max_length=77 if family == "sdxl" else 24, pad_token=options.pop("pad_token", None)
        )
        encoders[name] = _text_encoder(
            tokenizers[name],
            vocab_size=len(tokenizers[name]),
            hidden=text_width * (index + 1),
            heads=2,
            with_projection=index == 1,
            **options,
        )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.5,
    )
    return assemble(
        name=f"random-{family}-tiny",
        unet=_tiny_unet(family, text_width),
        text_encoders=encoders,
        tokenizers=tokenizers,
        vae=vae,
        scheduler=_scheduler("v_prediction" if family == "sd2" else "epsilon"),
    )


def _tiny_unet(family: str, text_width: int) -> UNet2DConditionModel:
    options: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "norm_num_groups": 8,
        "attention_head_dim": 2,
        "cross_attention_dim": text_width,
    }
    if family in ("sd2", "sdxl"):
        options |= {"use_linear_projection": True}
    if family == "sdxl":
        options |= {
            "cross_attention_dim": 3 * text_width,
            "transformer_layers_per_block": (1, 2),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 2 * text_width,
        }
    return UNet2DConditionModel(**options)


def _small() -> BaseModel:
    from mos.smallworld import architecture
    from mos.smallworld.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    return assemble(
        name="random-sd1-small",
        unet=architecture.build_unet(),
        text_encoders={"text_encoder": architecture.build_text_encoder(tokenizer)},
        tokenizers={"text_encoder": tokenizer},
        vae=architecture.build_autoencoder(),
        scheduler=DDPMScheduler.from_config(architecture.build_scheduler().config),
    )


def _full() -> BaseModel:
    tokenizer = small_tokenizer(max_length=77, vocab_size=_FULL_VOCABULARY)
    return assemble(
        name="random-sd1-full",
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        text_encoders={
            "text_encoder": _text_encoder(tokenizer, vocab_size=_FULL_VOCABULARY, hidden=768, layers=12, heads=12)
        },
        tokenizers={"text_encoder": tokenizer},
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=512,
        ),
        scheduler=_scheduler("epsilon"),
    )


def _scheduler(prediction_type: str) -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def _text_encoder(
    tokenizer: CLIPTokenizer,
    *,
    vocab_size: int,
    hidden: int,
    layers: int,
    heads: int,
    with_projection: bool = False,
    legacy_eos: bool = False,
    hidden_act: str = "quick_gelu",
) -> CLIPTextModel:
    """Build one; ``legacy_eos`` writes the EOS id 2 that SDXL's files carry instead of the true one."""
    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=hidden_act,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=hidden,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=2 if legacy_eos else tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config) if with_projection else CLIPTextModel(config)


def small_tokenizer(*, max_length: int, vocab_size: int | None = None, pad_token: str | None = None) -> CLIPTokenizer:
    """Build a CLIP tokenizer that knows every byte and a few words as single tokens.

    Args:
        max_length: tokens a prompt, BOS and EOS included.
        vocab_size: pad the vocabulary with unused entries up to this size.
        pad_token: a token that pads instead of EOS, as in SDXL's second tokenizer.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    symbols = sorted(ByteLevel.alphabet())
    tokens = symbols + [symbol + "</w>" for symbol in symbols]
    merges: list[tuple[str, str]] = []
    for word in " ".join(_WORDS).split():
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merge = (parts[0], parts[1])
            if merge not in merges:
                merges.append(merge)
                tokens.append("".join(merge))
            parts = ["".join(merge), *parts[2:]]
    tokens = list(dict.fromkeys(tokens))
    if vocab_size is not None:
        tokens += [f"unused{index}" for index in range(vocab_size - 2 - len(tokens))]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        model_max_length=max_length,
        **({} if pad_token is None else {"pad_token": pad_token}),
    )
