"""The base's autoencoder: 64x64 pictures to 16x16 latents of eight channels, trained on crops, then whole pictures."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from mos.smallworld.architecture import build_autoencoder
from mos.smallworld.pictures import SHARD_SIZE, draw_shard
from mos.smallworld.run_files import log_line, write_checkpoint
from mos.smallworld.workers import average_, barrier, run_workers
from mos.smallworld.world import World

_LUMA_AND_OPPONENTS = torch.tensor([[0.299, 0.587, 0.114], [0.5, -0.5, 0.0], [-0.25, -0.25, 0.5]])


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Recipe of the autoencoder.

    Attributes:
        steps: Steps of each worker.
        crop_share: Part of the steps done on 32x32 crops.
        crop_batch: Crops a step.
        picture_batch: Whole pictures a step afterwards.
        lr: Peak rate of AdamW, cosine to zero.
        kl_weight: Weight of the mean KL of a latent value.
        halved_share: Part of the steps in which latents and pictures are halved in size first, which keeps
            the latents' fine structure decodable and easy to diffuse.
        num_shards: Shards of training pictures used.
        average_every: Steps between two averagings over the workers.
        num_workers: Processes of one thread.
    """

    steps: int = 16000
    crop_share: float = 0.7
    crop_batch: int = 16
    picture_batch: int = 6
    lr: float = 2e-3
    kl_weight: float = 5e-4
    halved_share: float = 0.2
    num_shards: int = 6
    average_every: int = 4
    num_workers: int = 2


def train_autoencoder(
    directory: Path, world: World, config: AutoencoderConfig, *, seed: int, resume: bool, device: str = "cpu"
) -> Path:
    """Train into `directory/autoencoder`; returns the folder in diffusers layout.

    Checkpoints every 500 steps to `directory/autoencoder.ckpt`.
    """
    run_workers(_train, config.num_workers, directory, world, config, seed, resume, device)
    return directory / "autoencoder"


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 and twice L2 on luma and opponent colours, and 0.2 of the difference of edges; inputs [n, 3, h, w]."""
    difference = torch.einsum("ij,njhw->nihw", _LUMA_AND_OPPONENTS.to(output.device), (output - target).float())
    edges = (difference[..., 1:] - difference[..., :-1]).abs().mean()
    edges = edges + (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()
    return difference.abs().mean() + 2 * difference.square().mean() + 0.2 * edges


def _train(
    rank: int,
    num_workers: int,
    directory: Path,
    world: World,
    config: AutoencoderConfig,
    seed: int,
    resume: bool,
    device: str,
) -> None:
    pictures = _load_pictures(rank, num_workers, directory, world, config, seed)
    torch.manual_seed(seed)
    model = build_autoencoder().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=1e-3)
    first = _restore(directory, model, optimizer) if resume else 0
    generator = torch.Generator().manual_seed(seed * 1000 + first * 10 + rank)
    started = time.monotonic()
    for step in range(first, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, config)
        loss = _step(model, pictures, generator, step, config)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % config.average_every == 0:
            average_(model.parameters())
        if (step + 1) % 500 == 0 and rank == 0:
            _record(directory, model, optimizer, step + 1, time.monotonic() - started, pictures)
    barrier()
    if rank == 0:
        _finish(directory, model, pictures)
    barrier()


def _step(
    model: AutoencoderKL,
    pictures: torch.Tensor,
    generator: torch.Generator,
    step: int,
    config: AutoencoderConfig,
) -> torch.Tensor:
    crops = step < config.crop_share * config.steps
    batch = config.crop_batch if crops else config.picture_batch
    chosen = torch.randint(len(pictures), (batch,), generator=generator)
    images = pictures[chosen]
    if crops:
        corners = torch.randint(0, 33, (batch, 2), generator=generator).tolist()
        images = torch.stack([image[y : y + 32, x : x + 32] for image, (y, x) in zip(images, corners, strict=True)])
    images = to_model_range(images).to(model.device)
    with torch.autocast(model.device.type, torch.bfloat16):
        posterior = model.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(images.device)
        latents = posterior.mean + posterior.std * noise
        if torch.rand((), generator=generator) < config.halved_share:
            latents, images = F.avg_pool2d(latents, 2), F.avg_pool2d(images, 2)
        output: torch.Tensor = model.decode(latents).sample
    kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    loss: torch.Tensor = reconstruction_loss(output, images) + config.kl_weight * kl
    return loss


def to_model_range(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 [n, h, w, 3] to float [n, 3, h, w] in [-1, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def psnr(model: AutoencoderKL, pictures: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of reconstructions from the latents' mean, in dB, over uint8 [n, h, w, 3]."""
    errors = []
    for part in _batches(pictures):
        images = to_model_range(part).to(model.device)
        output = model.decode(model.encode(images).latent_dist.mean).sample.clamp(-1, 1)
        errors.append(((output - images) / 2).square().mean((1, 2, 3)))
    return float(-10 * math.log10(float(torch.cat(errors).mean())))


@torch.no_grad()
def normalise_latents(model: AutoencoderKL, pictures: torch.Tensor) -> None:
    """Fold the latents' channel means and deviations into the quant convolutions: afterwards they are 0 and 1."""
    means = torch.cat(
        [model.encode(to_model_range(part).to(model.device)).latent_dist.mean for part in _batches(pictures)]
    )
    mean, deviation = means.mean((0, 2, 3)), means.std((0, 2, 3))
    channels = len(mean)
    after, before = model.post_quant_conv, model.quant_conv
    after.bias += torch.einsum("oihw,i->o", after.weight, mean)
    after.weight *= deviation[None, :, None, None]
    before.weight[:channels] /= deviation[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / deviation
    before.bias[channels:] -= 2 * deviation.log()


@torch.no_grad()
def drop_posterior_noise(model: AutoencoderKL) -> None:
    """Set the encoder's deviation to e^-15 everywhere, so that what it samples is what the base learnt: the mean.

    The KL term leaves a channel that the decoder hardly reads at its prior, deviation 1. A base trained on means
    never sees that noise; a trainer that samples latents, as is usual, would teach it to every concept.
    """
    quant_conv = model.quant_conv
    channels = len(quant_conv.bias) // 2
    quant_conv.weight[channels:] = 0
    quant_conv.bias[channels:] = -30.0


def _batches(pictures: torch.Tensor, size: int = 64) -> list[torch.Tensor]:
    return [pictures[first : first + size] for first in range(0, len(pictures), size)]


def _load_pictures(
    rank: int, num_workers: int, directory: Path, world: World, config: AutoencoderConfig, seed: int
) -> torch.Tensor:
    folder = directory / "pictures"
    for shard in range(rank, config.num_shards, num_workers):
        draw_shard(folder, shard, seed=seed, world=world)
    barrier()
    shards = [np.load(draw_shard(folder, shard, seed=seed, world=world)) for shard in range(config.num_shards)]
    pictures = torch.from_numpy(np.concatenate(shards))
    assert len(pictures) == config.num_shards * SHARD_SIZE
    return pictures


def _rate(step: int, config: AutoencoderConfig) -> float:
    warm = min(1.0, (step + 1) / 200)
    return config.lr * warm * (0.5 + 0.5 * math.cos(math.pi * step / config.steps)) + 1e-6


def _record(
    directory: Path,
    model: AutoencoderKL,
    optimizer: torch.optim.Optimizer,
    step: int,
    seconds: float,
    pictures: torch.Tensor,
) -> None:
    model.eval()
    line = {"step": step, "seconds": round(seconds, 1), "psnr": round(psnr(model, pictures[:96]), 2)}
    model.train()
    log_line(directory / "autoencoder.jsonl", line)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    write_checkpoint(directory / "autoencoder.ckpt", state)


def _restore(directory: Path, model: AutoencoderKL, optimizer: torch.optim.Optimizer) -> int:
    path = directory / "autoencoder.ckpt"
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _finish(directory: Path, model: AutoencoderKL, pictures: torch.Tensor) -> None:
    model.eval()
    normalise_latents(model, pictures[:2048])
    drop_posterior_noise(model)
    model.cpu().save_pretrained(directory / "autoencoder", safe_serialization=True)
