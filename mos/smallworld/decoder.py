"""The autoencoder's decoder, trained on when its latents are settled: sharper pictures, and the base stays valid.

The encoder and the quantising convolution are left as they are, so that every latent, and with them text encoder,
U-Net and all concepts, keep their meaning.
"""

import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from mos.smallworld.autoencoder import psnr, to_model_range
from mos.smallworld.base import encode_shard
from mos.smallworld.pictures import draw_shard
from mos.smallworld.run_files import log_line, write_checkpoint
from mos.smallworld.world import World

_LOG_EVERY = 250
_JUDGED = 128


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Recipe of the decoder.

    Attributes:
        steps: Steps in all.
        batch: Whole pictures a step; the decoder normalises over a picture, so crops would not do.
        lr: Peak rate of AdamW, cosine to zero.
        warmup: Steps of linear warm-up.
        detail: How much more a pixel weighs where its neighbourhood spans black to white than where it is flat.
        noise: Deviation of what is added to the latents, whose own is 1: sampled ones are not exact either.
        num_shards: Shards of training pictures used.
    """

    steps: int = 10000
    batch: int = 8
    lr: float = 1e-3
    warmup: int = 100
    detail: float = 8.0
    noise: float = 0.03
    num_shards: int = 6


def train_decoder(
    directory: Path, world: World, config: DecoderConfig, *, seed: int, resume: bool, device: str = "cpu"
) -> Path:
    """Train the decoder of `directory/autoencoder` and replace it there, and in `directory/base` if there is one.

    Checkpoints every 250 steps to `directory/decoder.ckpt`, and logs the PSNR of 128 pictures it does not learn from.
    """
    model = AutoencoderKL.from_pretrained(directory / "autoencoder")
    shards = [encode_shard(directory, shard, model, seed=seed, world=world) for shard in range(config.num_shards)]
    latents = torch.from_numpy(np.concatenate([np.load(path) for path in shards]))
    drawn = [
        draw_shard(directory / "pictures", shard, seed=seed, world=world) for shard in range(config.num_shards + 1)
    ]
    pictures = torch.from_numpy(np.concatenate([np.load(path) for path in drawn[:-1]]))
    judged = torch.from_numpy(np.load(drawn[-1])[:_JUDGED])
    training = DecoderTraining(model.to(device), config)
    checkpoint = directory / "decoder.ckpt"
    if resume and checkpoint.exists():
        training.load_state_dict(torch.load(checkpoint, weights_only=True))
    for line in _steps(training, latents, pictures, judged, seed=seed):
        log_line(directory / "decoder.jsonl", line)
        write_checkpoint(checkpoint, training.state_dict())
    return _finish(directory, training.model)


class DecoderTraining:
    """Decoder, optimiser and step; the encoder takes no gradient.

    Args:
        model: The autoencoder, changed in place.
        config: The recipe.
    """

    def __init__(self, model: AutoencoderKL, config: DecoderConfig) -> None:
        self.model, self.config, self.step = model, config, 0
        model.requires_grad_(False)
        self._parameters = [*model.decoder.parameters(), *model.post_quant_conv.parameters()]
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        self._optimizer = torch.optim.AdamW(self._parameters, lr=config.lr, betas=(0.9, 0.99), weight_decay=1e-4)

    def train_step(self, latents: torch.Tensor, pictures: torch.Tensor, generator: torch.Generator) -> float:
        """One step on latents [n, 8, h, w] of pictures (uint8 [n, 4h, 4w, 3]); returns the loss before it."""
        config, device = self.config, self.model.device
        for group in self._optimizer.param_groups:
            group["lr"] = decoder_rate(self.step, config)
        noise = torch.randn(latents.shape, generator=generator)
        noisy = (latents.float() + config.noise * noise).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            output = self.model.decode(noisy).sample
        loss = detail_loss(output.float(), to_model_range(pictures).to(device), config.detail)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self.step += 1
        return float(loss.detach())

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint holds."""
        return {"model": self.model.state_dict(), "optimizer": self._optimizer.state_dict(), "step": self.step}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        self.step = int(state["step"])  # type: ignore[call-overload]


def detail_loss(output: torch.Tensor, target: torch.Tensor, detail: float) -> torch.Tensor:
    """L1 and twice L2 of [n, 3, h, w] in [-1, 1], weighted by how much the target varies around each pixel.

    The weight is 1 + detail * range / 2, the range being that of the 3x3 neighbourhood averaged over the channels (0 to
    2), then brought to mean 1. Eyes and outlines are few pixels; unweighted, backdrops decide what is learnt.
    """
    spread = (F.max_pool2d(target, 3, 1, 1) + F.max_pool2d(-target, 3, 1, 1)).mean(1, keepdim=True)
    weight = 1 + detail * spread / 2
    weight = weight / weight.mean()
    difference = output - target
    return (weight * (difference.abs() + 2 * difference.square())).mean()


def decoder_rate(step: int, config: DecoderConfig) -> float:
    """The rate of a step: linear warm-up, then cosine to nearly zero."""
    warm = min(1.0, (step + 1) / config.warmup)
    return config.lr * warm * (0.5 + 0.5 * math.cos(math.pi * step / config.steps)) + 1e-6


def _steps(
    training: DecoderTraining, latents: torch.Tensor, pictures: torch.Tensor, judged: torch.Tensor, *, seed: int
) -> Iterator[dict[str, float]]:
    config = training.config
    generator = torch.Generator().manual_seed(seed + training.step)
    losses: list[float] = []
    started = time.monotonic()
    while training.step < config.steps:
        chosen = torch.randint(len(pictures), (config.batch,), generator=generator)
        losses.append(training.train_step(latents[chosen], pictures[chosen], generator))
        if training.step % _LOG_EVERY == 0 or training.step >= config.steps:
            yield {
                "step": training.step,
                "loss": round(float(np.mean(losses)), 5),
                "psnr": round(psnr(training.model, judged), 2),
                "seconds": round(time.monotonic() - started, 1),
            }
            losses.clear()


def _finish(directory: Path, model: AutoencoderKL) -> Path:
    model = model.cpu().eval()
    _replace_weights(model, directory / "autoencoder")
    if (directory / "base" / "vae").is_dir():
        _replace_weights(model.half(), directory / "base" / "vae")
    return directory / "autoencoder"


def _replace_weights(model: AutoencoderKL, folder: Path) -> None:
    """Change the weights in a folder by one rename."""
    name = "diffusion_pytorch_model.safetensors"
    model.save_pretrained(folder / "partial", safe_serialization=True)
    (folder / "partial" / name).replace(folder / name)
    shutil.rmtree(folder / "partial")
