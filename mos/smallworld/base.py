"""The base's text encoder and U-Net, trained on cached latents."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file

from mos.smallworld.architecture import build_scheduler, build_text_encoder, build_unet
from mos.smallworld.autoencoder import to_model_range
from mos.smallworld.captions import FULL_DETAIL, caption_scene
from mos.smallworld.pictures import SHARD_SIZE, draw_shard, num_subjects_at, scene_at
from mos.smallworld.render import Scene
from mos.smallworld.run_files import log_line, write_checkpoint
from mos.smallworld.tokenizer import MAX_TOKENS, build_tokenizer
from mos.smallworld.workers import average_, barrier, run_workers
from mos.smallworld.world import World

ALIKE_PATTERNS = ("dotted", "checked")
"""The two patterns that are told apart last: both are patches of a second colour, some eight pixels apart."""


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """Recipe of text encoder and U-Net.

    Attributes:
        steps: Steps of each worker.
        batch: Pictures a step and worker.
        lr: Rate of AdamW after the warm-up, until the decay.
        warmup: Steps of linear warm-up.
        decay_share: Last part of the steps, over which the rate falls to zero.
        empty_share: Share of captions replaced by the empty one, for guidance.
        snr_gamma: Cap of the signal-to-noise ratio in the weighting of timesteps.
        snr_power: Power of that weighting; full min-SNR weighting (1) starves the noisy timesteps, at which
            classes and colours are decided: after 50,000 pictures it drew clean outlines of nothing.
        ema_steps: Horizon of the weights' moving average, in steps.
        average_every: Steps between two averagings over the workers.
        checkpoint_every: Steps between two checkpoints.
        single_share: Share of pictures with one subject at the start and at the end.
        alike_share: Share of those that show a dotted or checked individual; drawn evenly it is a half. These two
            are told apart last, so a run is ended with more of them, named in their captions.
        num_shards: Shards of training pictures.
        num_workers: Processes of one thread.
    """

    steps: int = 16000
    batch: int = 24
    lr: float = 1e-3
    warmup: int = 100
    decay_share: float = 0.35
    empty_share: float = 0.1
    snr_gamma: float = 5.0
    snr_power: float = 0.5
    ema_steps: float = 250.0
    average_every: int = 8
    checkpoint_every: int = 200
    single_share: tuple[float, float] = (0.85, 0.55)
    alike_share: float = 0.5
    num_shards: int = 24
    num_workers: int = 2


def timestep_weight(alphas_cumprod: torch.Tensor, gamma: float, power: float) -> torch.Tensor:
    """Weight of the v loss of each timestep: (min(SNR, gamma) / (SNR + 1)) ** power.

    Power 1 is min-SNR weighting (arXiv:2303.09556); power 0 the plain v loss.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return (snr.clamp(max=gamma) / (snr + 1)) ** power


def diffusion_loss(
    unet: torch.nn.Module,
    hidden: torch.Tensor,
    latents: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    weights: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Weighted error of the predicted v at drawn timesteps (v = sqrt(a) noise - sqrt(1 - a) latents).

    Args:
        unet: Called as a diffusers U-Net.
        hidden: Text encodings [batch, tokens, dim].
        latents: Clean latents [batch, channels, h, w], float32.
        alphas_cumprod: The schedule [timesteps].
        weights: Weight of each timestep [timesteps].
        generator: Source of noise and timesteps, on the CPU.
    """
    timesteps = torch.randint(len(alphas_cumprod), (len(latents),), generator=generator).to(latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    alpha = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    prediction = unet(noisy, timesteps, encoder_hidden_states=hidden).sample
    errors = (prediction.float() - target).square().mean((1, 2, 3))
    weighted: torch.Tensor = (errors * weights[timesteps]).mean()
    return weighted


def encode_shard(directory: Path, shard: int, autoencoder: AutoencoderKL, *, seed: int, world: World) -> Path:
    """Encode a shard of pictures into `latents-NNNN.npy` (float16 [n, 8, 16, 16]) unless it is there already."""
    path = directory / "latents" / f"latents-{shard:04d}.npy"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = torch.from_numpy(np.load(draw_shard(directory / "pictures", shard, seed=seed, world=world)))
    with torch.no_grad():
        parts = [
            autoencoder.encode(to_model_range(pictures[first : first + 64])).latent_dist.mean
            for first in range(0, len(pictures), 64)
        ]
    partial = path.with_suffix(".partial.npy")
    np.save(partial, torch.cat(parts).half().numpy())
    partial.replace(path)
    return path


class LatentCache:
    """The encoded training pictures, drawn by how many subjects they show, each time with a new caption."""

    def __init__(self, directory: Path, shards: range, *, seed: int, world: World) -> None:
        self._seed, self._world = seed, world
        paths = [directory / "latents" / f"latents-{shard:04d}.npy" for shard in shards]
        self._first = shards.start * SHARD_SIZE
        self._latents = np.concatenate([np.load(path) for path in paths])
        indices = np.arange(len(self._latents))
        counts = np.array([num_subjects_at(self._first + int(index), seed=seed) for index in indices])
        self._group = indices[counts > 1]
        single = indices[counts == 1]
        is_alike = np.array([self._scene(index).subjects[0].identity.pattern in ALIKE_PATTERNS for index in single])
        self._alike, self._other = single[is_alike], single[~is_alike]

    def __len__(self) -> int:
        return len(self._latents)

    def draw(
        self, rng: np.random.Generator, batch: int, single_share: float, alike_share: float = 0.5
    ) -> tuple[torch.Tensor, list[str]]:
        """Draw a batch: latents float32 [batch, 8, 16, 16] and their captions.

        Pictures of dotted and checked individuals drawn beyond their even share have captions that name everything.
        """
        kinds = rng.random(batch)
        is_group, is_alike = kinds >= single_share, kinds < single_share * alike_share
        is_named = kinds < single_share * (alike_share - 0.5)
        single = np.where(is_alike, rng.choice(self._alike, batch), rng.choice(self._other, batch))
        chosen = np.where(is_group, rng.choice(self._group, batch), single)
        latents = torch.from_numpy(self._latents[chosen].astype(np.float32))
        captions = [
            caption_scene(self._scene(index), rng, FULL_DETAIL if named else None)
            for index, named in zip(chosen, is_named, strict=True)
        ]
        return latents, captions

    def _scene(self, index: int) -> Scene:
        return scene_at(self._first + int(index), seed=self._seed, world=self._world)


class BaseTraining:
    """Text encoder, U-Net, their optimizer and their moving average; everything a checkpoint holds."""

    def __init__(self, config: BaseConfig, *, seed: int, device: str = "cpu") -> None:
        torch.manual_seed(seed)
        self.config, self.device = config, device
        self.tokenizer = build_tokenizer()
        text_encoder, unet = build_text_encoder(self.tokenizer), build_unet()
        unet.set_attn_processor(AttnProcessor())  # plain attention: the fused kernel is slower for narrow heads here
        self.modules = torch.nn.ModuleDict({"text_encoder": text_encoder, "unet": unet}).to(device)
        self.optimizer = torch.optim.AdamW(
            self.modules.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.average = {name: value.detach().clone() for name, value in self.modules.state_dict().items()}
        self.alphas_cumprod = build_scheduler().alphas_cumprod.to(device)
        self.weights = timestep_weight(self.alphas_cumprod, config.snr_gamma, config.snr_power)
        self.step = 0

    def train_step(self, latents: torch.Tensor, captions: list[str], generator: torch.Generator) -> float:
        """One step of AdamW on a batch; returns its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.config)
        tokens = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            hidden = self.modules["text_encoder"](tokens.input_ids.to(self.device))[0]
            loss = diffusion_loss(
                self.modules["unet"],
                hidden,
                latents.to(self.device),
                self.alphas_cumprod,
                self.weights,
                generator,
            )
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        if self.step % self.config.average_every == 0:
            average_(self.modules.parameters())
            self._update_average()
        return float(loss.detach())

    @torch.no_grad()
    def _update_average(self) -> None:
        horizon = min(self.config.ema_steps, 0.2 * self.step + 8)
        keep = math.exp(-self.config.average_every / horizon)
        for name, value in self.modules.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - keep)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "modules": self.modules.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.modules.load_state_dict(state["modules"])
        self.average = {name: value.to(self.device) for name, value in state["average"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])

    def load_weights(self, directory: Path) -> None:
        """Start from an exported base instead of noise; the optimizer starts anew."""
        for name in ("text_encoder", "unet"):
            weights: dict[str, torch.Tensor] = {}
            for path in sorted((directory / name).glob("*.safetensors")):
                weights.update(load_file(path))
            self.modules[name].load_state_dict({key: value.float() for key, value in weights.items()})
        self.average = {name: value.detach().clone() for name, value in self.modules.state_dict().items()}


def learning_rate(step: int, config: BaseConfig) -> float:
    """Linear warm-up, constant, then a linear fall to a hundredth over the last `decay_share` of the steps."""
    warm = min(1.0, (step + 1) / config.warmup)
    left = (config.steps - step) / (config.decay_share * config.steps)
    return config.lr * warm * max(0.01, min(1.0, left))


def train_base(
    directory: Path,
    world: World,
    config: BaseConfig,
    *,
    seed: int,
    resume: bool,
    device: str = "cpu",
    from_weights: Path | None = None,
) -> Path:
    """Train on the latents of `directory/autoencoder`; writes checkpoints and returns `directory/base`.

    The log `base.jsonl` gets a line every 20 steps; `base.ckpt` is replaced every `checkpoint_every`, and beside
    it the averaged weights are exported as a pipeline into `directory/base`.
    """
    arguments = (directory, world, config, seed, resume, device, from_weights)
    run_workers(_train, config.num_workers, *arguments)
    return directory / "base"


def export_base(training: BaseTraining, autoencoder: AutoencoderKL, directory: Path) -> None:
    """Write the averaged weights as a half-precision Stable Diffusion pipeline."""
    text_encoder, unet = build_text_encoder(training.tokenizer), build_unet()
    for name, module in (("text_encoder", text_encoder), ("unet", unet)):
        prefix = name + "."
        module.load_state_dict(
            {key.removeprefix(prefix): v.cpu() for key, v in training.average.items() if key.startswith(prefix)}
        )
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=training.tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16)
    pipeline.save_pretrained(directory, safe_serialization=True, max_shard_size="12MB")
    pipeline.to(torch.float32)


def _train(
    rank: int,
    num_workers: int,
    directory: Path,
    world: World,
    config: BaseConfig,
    seed: int,
    resume: bool,
    device: str,
    from_weights: Path | None,
) -> None:
    autoencoder = AutoencoderKL.from_pretrained(directory / "autoencoder").eval()
    for shard in range(rank, config.num_shards, num_workers):
        encode_shard(directory, shard, autoencoder, seed=seed, world=world)
    barrier()
    cache = LatentCache(directory, range(config.num_shards), seed=seed, world=world)
    training = BaseTraining(config, seed=seed, device=device)
    if from_weights is not None:
        training.load_weights(from_weights)
    if resume and (directory / "base.ckpt").exists():
        training.load_state_dict(torch.load(directory / "base.ckpt", weights_only=True))
    for line in _steps(training, cache, rank=rank, seed=seed):
        if rank == 0:
            log_line(directory / "base.jsonl", line)
            if training.step % config.checkpoint_every == 0 or training.step >= config.steps:
                _checkpoint(training, autoencoder, directory)
    barrier()


def _steps(training: BaseTraining, cache: LatentCache, *, rank: int, seed: int) -> Iterator[dict[str, float]]:
    """Train to the end, giving a line of the log every 20 steps."""
    config = training.config
    rng = np.random.default_rng([seed, 103, rank, training.step])
    generator = torch.Generator().manual_seed(seed * 7919 + training.step * 31 + rank)
    losses: list[float] = []
    started = time.monotonic()
    while training.step < config.steps:
        progress = training.step / config.steps
        first, last = config.single_share
        single_share = first + (last - first) * progress
        latents, captions = cache.draw(rng, config.batch, single_share, config.alike_share)
        captions = ["" if rng.random() < config.empty_share else caption for caption in captions]
        losses.append(training.train_step(latents, captions, generator))
        if training.step % 20 == 0 or training.step >= config.steps:
            seconds = time.monotonic() - started
            yield {"step": training.step, "loss": round(float(np.mean(losses)), 5), "seconds": round(seconds, 1)}
            losses.clear()


def _checkpoint(training: BaseTraining, autoencoder: AutoencoderKL, directory: Path) -> None:
    write_checkpoint(directory / "base.ckpt", training.state_dict())
    export_base(training, autoencoder, directory / "base")
    (directory / "base.json").write_text(json.dumps({"step": training.step, **asdict(training.config)}))
