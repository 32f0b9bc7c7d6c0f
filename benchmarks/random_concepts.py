"""Concepts with random updates on any base, for tests and benchmarks of fusion: real shapes, no training."""

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from mos.artifact import ArtifactCard, EDLoRA
from mos.base_model import BaseModel, assemble
from mos.concept import ConceptRef
from mos.edlora.lora import LowRank
from mos.fusion.source import FusionSource
from mos.random_base import small_tokenizer


def random_concept(
    base: BaseModel,
    ref: str,
    seed: int,
    *,
    rank: int = 2,
    components: tuple[str, ...] = ("text_encoder", "text_encoder_2", "unet"),
    strength: float = 0.1,
    with_embeddings: bool = True,
) -> FusionSource:
    """A concept whose updates have `strength` times the norm of the base's layers."""
    generator = torch.Generator().manual_seed(seed)
    facts = base.facts
    linears: dict[str, dict[str, LowRank]] = {}
    for component in (name for name in components if name in facts.linear_shapes):
        for name in facts.attention_linears[component]:
            out, into = facts.linear_shapes[component][name]
            update = LowRank(
                up=torch.randn(out, rank, generator=generator), down=torch.randn(rank, into, generator=generator)
            )
            factor = strength * facts.linear_norms[component][name] / update.norm()
            linears.setdefault(component, {})[name] = update.scaled(factor)
    embeddings = {
        encoder.name: torch.randn(2, facts.num_cross_attention_layers, encoder.hidden_dim, generator=generator)
        * encoder.mean_embedding_norm
        / encoder.hidden_dim**0.5
        for encoder in facts.encoders
    }
    parsed = ConceptRef.parse(ref)
    card = ArtifactCard(
        words=parsed.words,
        class_word="cat",
        kind="object",
        base_name=facts.name,
        family=facts.family,
        base_fingerprint=facts.fingerprint,
        rank=rank,
        tuned=tuple(f"{kind}.attention" for kind in ("text_encoder", "unet") if kind in components),
        seed=seed,
    )
    return FusionSource(
        ref=parsed, edlora=EDLoRA(card=card, linears=linears, embeddings=embeddings if with_embeddings else {})
    )


def small_world_like(seed: int = 0) -> BaseModel:
    """A base of the small world's shapes with random weights: text encoder 2 x 128, U-Net (64, 128, 192)."""
    tokenizer = small_tokenizer(max_length=40)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=8,
            out_channels=8,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(64, 128, 192),
            layers_per_block=1,
            cross_attention_dim=128,
            attention_head_dim=(2, 4, 6),
            norm_num_groups=16,
        )
        encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=128,
                intermediate_size=512,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=40,
                projection_dim=128,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        vae = AutoencoderKL(
            block_out_channels=(16, 32, 64),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=8,
            norm_num_groups=4,
            sample_size=64,
        )
    return assemble(
        name="random-small-world",
        unet=unet,
        text_encoders={"text_encoder": encoder},
        tokenizers={"text_encoder": tokenizer},
        vae=vae,
        scheduler=DDPMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False),
    )
