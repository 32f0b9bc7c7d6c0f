"""A tiny base whose text encoder is 128 wide: wide enough for an update to overfit its prompts."""

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from mos.base_model import BaseModel, assemble
from mos.random_base import small_tokenizer

WIDTH = 128


def wide_text_base(seed: int = 0) -> BaseModel:
    tokenizer = small_tokenizer(max_length=24)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=2 * WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=24,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            norm_num_groups=8,
            attention_head_dim=2,
            cross_attention_dim=WIDTH,
        )
        vae = AutoencoderKL(latent_channels=4, norm_num_groups=4, block_out_channels=(8,), sample_size=8)
    return assemble(
        name="wide-text",
        unet=unet,
        text_encoders={"text_encoder": encoder},
        tokenizers={"text_encoder": tokenizer},
        vae=vae,
        scheduler=DDPMScheduler(),
    )
