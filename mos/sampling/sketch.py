"""Sketches of the small world: edges of pictures, how well two agree, and a T2I-Adapter that follows them.

`python -m mos.sampling.sketch train OUT` trains the adapter on a frozen base from edges of the world's own
renders (arXiv:2302.08453, timesteps drawn towards the noisy end), resumable from OUT;
`python -m mos.sampling.sketch measure OUT` draws held-out sketches with and without it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mos.base_model import BaseModel, load_base
from mos.edlora.tokens import PromptEncoder
from mos.errors import BadInputError, NotFoundError
from mos.sampling.condition import Condition, condition_picture, load_adapter
from mos.sampling.config import SMALL_WORLD_GUIDANCE, SamplingConfig
from mos.sampling.pictures import picture_grid, save_picture
from mos.sampling.sampler import sample

SHIPPED = Path(__file__).parent / "weights" / "sketch"
"""The adapter trained for the small world's base: `config.json`, weights, and `sketch.json` with its figures."""
EDGE_STEP = 48
"""Smallest jump between neighbouring pixels, of 255 in any channel, that counts as an edge."""
SHARE_EMPTY = 0.1


@dataclass(frozen=True, kw_only=True)
class SketchConfig:
    """Recipe of the sketch adapter.

    Attributes:
        steps: Training steps.
        batch: Pictures a step.
        lr: AdamW's rate, falling linearly to 0.
        seed: Of weights, pictures, timesteps and noise.
        checkpoint_every: Steps between two checkpoints.
    """

    steps: int = 600
    batch: int = 16
    lr: float = 1e-3
    seed: int = 0
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.checkpoint_every) < 1 or self.lr <= 0:
            raise BadInputError(f"sketch adapter: steps, batch and rate must be above 0: {self}")


def edges(picture: Image.Image) -> NDArray[np.bool_]:
    """Pixels that differ much from their right or lower neighbour: [height, width]."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.int16)
    found = np.zeros(pixels.shape[:2], dtype=bool)
    found[:, :-1] |= np.abs(np.diff(pixels, axis=1)).max(axis=2) > EDGE_STEP
    found[:-1, :] |= np.abs(np.diff(pixels, axis=0)).max(axis=2) > EDGE_STEP
    return found


def sketch_of(picture: Image.Image) -> Image.Image:
    """The edges of a picture, white on black."""
    return Image.fromarray(np.where(edges(picture), 255, 0).astype(np.uint8), mode="L")


def edge_overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Edge pixels in common over edge pixels of either, pixel for pixel, 0 to 1."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def build_adapter(base: BaseModel, seed: int = 0) -> Any:
    """An untrained T2I-Adapter with one feature map a level of the base's U-Net."""
    from diffusers import T2IAdapter

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return T2IAdapter(
            in_channels=1,
            channels=tuple(base.unet.config.block_out_channels),
            num_res_blocks=1,
            downscale_factor=base.facts.vae_scale_factor,
        )


class SketchTraining:
    """Adapter, optimiser and step count; everything a checkpoint holds."""

    def __init__(self, base: BaseModel, config: SketchConfig) -> None:
        self.base, self.config, self.step = base, config, 0
        self.adapter = build_adapter(base, config.seed).to(base.device)
        self.optimizer = torch.optim.AdamW(self.adapter.parameters(), lr=config.lr)
        self._alphas = base.scheduler.alphas_cumprod.float()

    def train_step(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> float:
        """One step of AdamW on pictures and their own edges; returns the loss."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * (1 - self.step / self.config.steps)
        context = PromptEncoder(self.base).encode(captions, truncate=True).context[:, 0]
        sketches = torch.stack([_sketch_tensor(picture) for picture in pictures]).to(self.base.device)
        latents = encode_pictures(self.base, pictures)
        loss = self._loss(latents, sketches, context, generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())

    def _loss(self, latents: Tensor, sketches: Tensor, context: Tensor, generator: torch.Generator) -> Tensor:
        count = len(self._alphas)
        drawn = torch.rand(len(latents), generator=generator)
        timesteps = ((1 - drawn**3) * count).long().clamp(max=count - 1)  # T2I-Adapter's cubic sampling
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        alpha = self._alphas[timesteps].view(-1, 1, 1, 1).to(latents)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        is_v = self.base.facts.prediction_type == "v_prediction"
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents if is_v else noise
        with torch.autocast(self.base.device.type, dtype=torch.bfloat16, enabled=_is_bfloat16_fast()):
            prediction = self.base.unet(
                noisy,
                timesteps.to(latents.device),
                encoder_hidden_states=context,
                down_intrablock_additional_residuals=list(self.adapter(sketches)),
                return_dict=False,
            )[0]
        error: Tensor = (prediction.float() - target).square().mean()
        return error

    def save(self, folder: Path) -> None:
        """Write a checkpoint to go on from."""
        tensors = {f"weight.{name}": value.detach().clone() for name, value in self.adapter.state_dict().items()}
        for index, state in enumerate(self.optimizer.state_dict()["state"].values()):
            tensors |= {f"optimizer.{index}.{name}": value.clone() for name, value in state.items()}
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".checkpoint.{os.getpid()}.part"
        save_file(tensors, unfinished, metadata={"step": str(self.step), "seed": str(self.config.seed)})
        unfinished.replace(folder / "checkpoint.safetensors")

    def resume(self, folder: Path) -> bool:
        """Go on from a checkpoint if there is one."""
        path = folder / "checkpoint.safetensors"
        if not path.exists():
            return False
        with safe_open(path, framework="pt") as file:
            self.step = int(file.metadata()["step"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no iterator
        self.adapter.load_state_dict(_under("weight.", tensors))
        state = self.optimizer.state_dict()
        count = len(state["param_groups"][0]["params"])
        state["state"] = {index: _under(f"optimizer.{index}.", tensors) for index in range(count)}
        self.optimizer.load_state_dict(state)
        return True


def save_adapter(adapter: Any, folder: Path) -> None:
    """Write an adapter in the diffusers layout in half precision, and bring it back to float32."""
    adapter.half().save_pretrained(folder)
    adapter.float()


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _is_bfloat16_fast() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _sketch_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(edges(picture).astype(np.float32))[None]


@torch.no_grad()
def encode_pictures(base: BaseModel, pictures: Sequence[Image.Image]) -> Tensor:
    """Latents of pictures, scaled as the U-Net expects them: [batch, channels, height, width]."""
    stacked = np.stack([np.asarray(picture.convert("RGB"), dtype=np.float32) for picture in pictures])
    pixels = torch.from_numpy(stacked / 127.5 - 1).permute(0, 3, 1, 2).to(base.device)
    latents: Tensor = base.vae.encode(pixels).latent_dist.mean * base.facts.scaling_factor
    return latents


def world_batch(index: int, count: int, *, seed: int, is_held_out: bool = False) -> tuple[list[Image.Image], list[str]]:
    """Renders of the small world and their captions; some captions are empty, for guidance."""
    from mos.smallworld.captions import caption_scene
    from mos.smallworld.render import render_scene, sample_scene

    rng = np.random.default_rng([20291, seed, index, int(is_held_out)])
    pictures, captions = [], []
    for _ in range(count):
        num_subjects = int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))
        scene = sample_scene(rng, num_subjects=num_subjects, held_out=is_held_out)
        pictures.append(render_scene(scene, with_masks=False).image)
        caption = caption_scene(scene, rng)
        captions.append("" if rng.random() < SHARE_EMPTY and not is_held_out else caption)
    return pictures, captions


@dataclass(frozen=True, kw_only=True)
class SketchResult:
    """Edge overlap of pictures with their sketches, one value a picture.

    Attributes:
        following: Drawn with the adapter.
        free: The same prompts and seeds without it.
        autoencoder: The sketched renders through the base's autoencoder: the ceiling.
    """

    following: tuple[float, ...]
    free: tuple[float, ...]
    autoencoder: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """How many times better the sketch is met with the adapter."""
        return float(np.mean(self.following)) / max(float(np.mean(self.free)), 1e-9)


def measure(
    base: BaseModel, adapter: Any, count: int, config: SamplingConfig, *, seed: int = 0, weight: float = 1.0
) -> tuple[SketchResult, list[Image.Image]]:
    """Draw held-out sketches with and without the adapter.

    Returns:
        The overlaps, and a row of (sketch, without, with) for each of the first eight, for a grid.
    """
    from mos.sampling.sampler import decode

    pictures, captions = world_batch(0, count, seed=seed, is_held_out=True)
    side = pictures[0].width
    rebuilt = decode(base, encode_pictures(base, pictures))
    following, free, kept, shown = [], [], [], []
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        sketch = edges(picture)
        drawn = condition_picture(sketch_of(picture), 1, width=side, height=side)
        options: dict[str, Any] = {"seeds": [seed + index], "config": config}
        (without,) = sample(base, None, [caption], **options)
        condition = Condition(adapter=adapter, picture=drawn, weight=weight)
        (with_it,) = sample(base, None, [caption], conditions=[condition], **options)
        free.append(edge_overlap(edges(without), sketch))
        following.append(edge_overlap(edges(with_it), sketch))
        kept.append(edge_overlap(edges(rebuilt[index]), sketch))
        if index < 8:
            shown += [sketch_of(picture).convert("RGB"), without, with_it]
    return SketchResult(following=tuple(following), free=tuple(free), autoencoder=tuple(kept)), shown


def main() -> None:
    """Train or measure the sketch adapter of the small world."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["train", "measure"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", default=None, help="default: the small world")
    parser.add_argument("--steps", type=int, default=SketchConfig.steps)
    parser.add_argument("--count", type=int, default=64, help="sketches to measure")
    parser.add_argument("--weight", type=float, default=1.0, help="of the condition while measuring")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = load_base(options.base)
    if options.action == "train":
        _train(base, SketchConfig(steps=options.steps), options.out)
    else:
        _measure(base, options.out, options.count, options.weight)


def _train(base: BaseModel, config: SketchConfig, out: Path) -> None:
    training = SketchTraining(base, config)
    training.resume(out)
    losses, began = [], time.process_time()
    while training.step < config.steps:
        losses.append(training.train_step(*world_batch(training.step, config.batch, seed=config.seed)))
        if training.step % config.checkpoint_every == 0 or training.step == config.steps:
            training.save(out)
            spent = time.process_time() - began
            print(f"step {training.step}: loss {np.mean(losses):.4f}, {spent:.0f} CPU s", flush=True)
            losses = []
    save_adapter(training.adapter, out)


def _measure(base: BaseModel, folder: Path, count: int, weight: float) -> None:
    if not (folder / "config.json").exists():
        raise NotFoundError(f"{folder}: no sketch adapter; train it with python -m mos.sampling.sketch train {folder}")
    config = SamplingConfig(num_inference_steps=20, guidance_scale=SMALL_WORLD_GUIDANCE)
    result, shown = measure(base, load_adapter(folder), count, config, weight=weight)
    save_picture(picture_grid(shown, columns=6), folder / "sketch-grid.png")
    means = {name: float(np.mean(getattr(result, name))) for name in ("following", "free", "autoencoder")}
    figures = means | {"ratio": result.ratio, "count": count, "weight": weight, "unet": base.facts.fingerprint["unet"]}
    (folder / "sketch.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(f"edge overlap with the sketch over {count} held-out sketches: {means}, {result.ratio:.2f} times better")


if __name__ == "__main__":
    main()
