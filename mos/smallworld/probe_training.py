"""Training of the attribute probe on whole pictures, on halves and quarters, and on crops around a subject."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from mos.smallworld.pictures import SHARD_SIZE, draw_shard, scene_at
from mos.smallworld.probe import HEADS, Probe, prepare
from mos.smallworld.render import Scene, Subject
from mos.smallworld.run_files import log_line
from mos.smallworld.world import PICTURE_SIZE, World


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Recipe of the probe: steps of `batch` views, peak rate of a one-cycle AdamW, shards of pictures used."""

    steps: int = 900
    batch: int = 64
    lr: float = 3e-3
    num_shards: int = 6
    noise: float = 0.03


def view_of(picture: Image.Image, scene: Scene, rng: np.random.Generator) -> tuple[Image.Image, Subject]:
    """Choose what to look at: a lone subject's whole picture or a crop around it; a region of a group."""
    subject = scene.subjects[int(rng.integers(len(scene.subjects)))]
    if len(scene.subjects) == 1 and rng.random() < 0.7:
        return picture, subject
    halves = {"left": (0, 0, 32, 64), "right": (32, 0, 64, 64), "top": (0, 0, 64, 32), "bottom": (0, 32, 64, 64)}
    if len(scene.subjects) == 2 and rng.random() < 0.4:
        return picture.crop(halves[subject.place]), subject
    return picture.crop(_box_around(subject, rng)), subject


def train_probe(directory: Path, world: World, config: ProbeConfig, *, seed: int, device: str = "cpu") -> Path:
    """Train into `directory/probe/probe.safetensors` (half precision)."""
    torch.manual_seed(seed)
    shards = [
        np.load(draw_shard(directory / "pictures", shard, seed=seed, world=world)) for shard in range(config.num_shards)
    ]
    pictures = np.concatenate(shards)
    assert len(pictures) == config.num_shards * SHARD_SIZE
    rng = np.random.default_rng([seed, 104])
    probe = Probe().to(device)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=config.lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.steps)
    started = time.monotonic()
    for step in range(config.steps):
        images, labels = _batch(pictures, rng, config, seed=seed, world=world)
        loss = _loss(probe(images.to(device)), {name: value.to(device) for name, value in labels.items()})
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            line = {
                "step": step + 1,
                "loss": round(float(loss.detach()), 4),
                "seconds": round(time.monotonic() - started),
            }
            log_line(directory / "probe.jsonl", line)
    return save_probe(probe, directory / "probe")


def save_probe(probe: Probe, directory: Path) -> Path:
    """Write the probe's weights in half precision; returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {
        name: v.half().contiguous().cpu() if v.is_floating_point() else v for name, v in probe.state_dict().items()
    }
    save_file(weights, directory / "probe.safetensors")
    return directory


def _batch(
    pictures: np.ndarray, rng: np.random.Generator, config: ProbeConfig, *, seed: int, world: World
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    images: list[torch.Tensor] = []
    rows: list[tuple[int, ...]] = []
    hues: list[list[float]] = []
    for index in rng.integers(len(pictures), size=config.batch):
        scene = scene_at(int(index), seed=seed, world=world)
        view, subject = view_of(Image.fromarray(pictures[index]), scene, rng)
        images.append(prepare(view))
        truth = {**subject.identity.__dict__, "backdrop": scene.backdrop}
        rows.append(tuple(choices.index(truth[name]) for name, choices in HEADS.items()))
        hues.append([math.radians(colour.hue) for colour in subject.identity.colours])
    stacked = torch.stack(images)
    spread = config.noise * torch.from_numpy(rng.random((len(images), 1, 1, 1), dtype=np.float32))
    stacked = stacked + spread * torch.from_numpy(rng.standard_normal(stacked.shape, dtype=np.float32))
    angles = torch.tensor(hues)
    labels = dict(zip(HEADS, torch.tensor(rows).T, strict=True))
    labels["hues"] = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return stacked, labels


def _loss(output: dict[str, torch.Tensor], labels: dict[str, torch.Tensor]) -> torch.Tensor:
    loss = 4 * F.mse_loss(output["hues"].float(), labels["hues"].float())
    for name in HEADS:
        loss = loss + F.cross_entropy(output[name].float(), labels[name], label_smoothing=0.02)
    return loss


def _box_around(subject: Subject, rng: np.random.Generator) -> tuple[int, int, int, int]:
    side = min(PICTURE_SIZE, round(subject.size * rng.uniform(1.02, 1.35)))
    corner = [
        int(np.clip(round(centre - side / 2 + rng.uniform(-2, 2)), 0, PICTURE_SIZE - side)) for centre in subject.centre
    ]
    return corner[0], corner[1], corner[0] + side, corner[1] + side
