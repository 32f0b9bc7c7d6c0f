"""The figures that say how good the small world's weights are, each on held-out identities."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from transformers import CLIPModel

from mos.smallworld.autoencoder import psnr, to_model_range
from mos.smallworld.captions import FULL_DETAIL, caption_scene
from mos.smallworld.probe import HEADS, Probe, ProbeReading
from mos.smallworld.render import Scene, Subject, compose_scene, render_scene, sample_scene
from mos.smallworld.world import CLASSES, PICTURE_SIZE, World, hue_distance, sample_identity


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure against its bar.

    Attributes:
        name: What was measured.
        value: The figure.
        bar: What it should reach; nothing where no bar is set.
        at_most: Whether smaller is better.
        count: Pictures or trials behind it.
    """

    name: str
    value: float
    bar: float | None = None
    at_most: bool = False
    count: int = 0

    @property
    def holds(self) -> bool | None:
        """Whether the bar is reached; nothing without a bar."""
        if self.bar is None:
            return None
        return self.value <= self.bar if self.at_most else self.value >= self.bar


def held_out_scenes(count: int, *, seed: int, world: World, num_subjects: int = 1) -> list[Scene]:
    """Scenes of individuals pretraining never saw."""
    rng = np.random.default_rng([seed, 201, num_subjects])
    return [sample_scene(rng, world=world, num_subjects=num_subjects, held_out=True) for _ in range(count)]


def attribute_rates(readings: Sequence[ProbeReading], scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of pictures on which the probe reads the truth, for each head, and the mean hue errors in degrees."""
    rates = {}
    for name in HEADS:
        truths = [_truth(scene.subjects[0], scene)[name] for scene in scenes]
        hits = [getattr(reading, name) == truth for reading, truth in zip(readings, truths, strict=True)]
        rates[name] = float(np.mean(hits))
    for index, name in enumerate(("main hue error", "second hue error")):
        errors = [
            hue_distance(reading.hues[index], scene.subjects[0].identity.colours[index].hue)
            for reading, scene in zip(readings, scenes, strict=True)
        ]
        rates[name] = float(np.mean(errors))
    return rates


def measure_probe(probe: Probe, scenes: Sequence[Scene]) -> list[Figure]:
    """The probe on renders: the ceiling of everything it measures."""
    readings = probe.predict([render_scene(scene, with_masks=False).image for scene in scenes])
    return _attribute_figures("probe on renders", attribute_rates(readings, scenes), 0.98, len(scenes), hue_bar=10.0)


def measure_autoencoder(model: AutoencoderKL, probe: Probe, scenes: Sequence[Scene]) -> list[Figure]:
    """The autoencoder's reconstructions: noise ratio, and what the probe still reads in them."""
    pictures = [render_scene(scene, with_masks=False).image for scene in scenes]
    stacked = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    readings = probe.predict(reconstruct(model, pictures))
    rates = attribute_rates(readings, scenes)
    bars = {"class_name": 0.95, "accessory": 0.95}
    return [
        Figure(name="autoencoder: PSNR in dB", value=psnr(model, stacked), bar=28.0, count=len(scenes)),
        *(
            Figure(name=f"autoencoder: {_label(name)}", value=value, bar=bars.get(name), count=len(scenes))
            for name, value in rates.items()
        ),
    ]


@torch.no_grad()
def reconstruct(model: AutoencoderKL, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures through encoder and decoder."""
    stacked = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    results: list[Image.Image] = []
    for first in range(0, len(stacked), 64):
        latents = model.encode(to_model_range(stacked[first : first + 64])).latent_dist.mean
        decoded = (model.decode(latents).sample.clamp(-1, 1) + 1) * 127.5
        results += [Image.fromarray(image) for image in decoded.permute(0, 2, 3, 1).round().byte().numpy()]
    return results


def draw_samples(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    *,
    seed: int,
    num_inference_steps: int,
    guidance_scale: float,
    batch: int = 32,
) -> list[Image.Image]:
    """One picture a prompt, each from its own seeded noise."""
    results: list[Image.Image] = []
    for first in range(0, len(prompts), batch):
        part = list(prompts[first : first + batch])
        generators = [torch.Generator().manual_seed(seed * 100003 + first + index) for index in range(len(part))]
        results += pipeline(
            part,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            height=PICTURE_SIZE,
            width=PICTURE_SIZE,
            generator=generators,
        ).images
    return results


def full_captions(scenes: Sequence[Scene], *, seed: int) -> list[str]:
    """Captions that name everything."""
    rng = np.random.default_rng([seed, 202])
    return [caption_scene(scene, rng, FULL_DETAIL) for scene in scenes]


def measure_samples(probe: Probe, samples: Sequence[Image.Image], scenes: Sequence[Scene]) -> list[Figure]:
    """What the probe reads in samples of the base, against what their captions asked for."""
    rates = attribute_rates(probe.predict(samples), scenes)
    bars = {"class_name": 0.95, "pattern": 0.90, "accessory": 0.85, "backdrop": 0.95}
    return [
        Figure(name=f"samples: {_label(name)}", value=value, bar=bars.get(name), count=len(scenes))
        for name, value in rates.items()
    ]


def measure_places(probe: Probe, samples: Sequence[Image.Image], scenes: Sequence[Scene]) -> Figure:
    """Share of pictures of several subjects in which every place shows the class asked for there."""
    crops, owners = [], []
    for index, (sample, scene) in enumerate(zip(samples, scenes, strict=True)):
        for subject in scene.subjects:
            crops.append(sample.crop(place_box(subject)))
            owners.append((index, subject.identity.class_name))
    right = np.ones(len(scenes), dtype=bool)
    for reading, (index, class_name) in zip(probe.predict(crops), owners, strict=True):
        right[index] &= reading.class_name == class_name
    number = len(scenes[0].subjects)
    return Figure(
        name=f"samples: all {number} subjects in place", value=float(right.mean()), bar=0.8, count=len(scenes)
    )


def place_box(subject: Subject) -> tuple[int, int, int, int]:
    """The part of the picture where a subject of a group is to stand, in pixels."""
    side = 34
    x, y = (int(np.clip(round(centre - side / 2), 0, PICTURE_SIZE - side)) for centre in subject.centre)
    return x, y, x + side, y + side


@torch.no_grad()
def measure_scorer(scorer: CLIPModel, *, seed: int, world: World, trials: int = 160, rivals: int = 32) -> Figure:
    """How often the scorer finds the right individual among 32 held-out ones of its class, from another picture."""
    rng = np.random.default_rng([seed, 203])
    per_class = max(1, trials // len(world.classes))
    hits: list[bool] = []
    for class_name in world.classes:
        people = [sample_identity(rng, world=world, class_name=class_name, held_out=True) for _ in range(rivals)]
        views = [[_portrait(rng, who, world) for who in people] for _ in range(2)]
        queries, references = (embed(scorer, pictures) for pictures in views)
        best = (queries @ references.T).argmax(1)
        hits += (best == torch.arange(rivals))[:per_class].tolist()
    return Figure(name="scorer: right individual first of 32", value=float(np.mean(hits)), bar=0.8, count=len(hits))


@torch.no_grad()
def embed(scorer: CLIPModel, pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Unit image features [n, dim] of 64x64 pictures."""
    stacked = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    vision = scorer.vision_model(pixel_values=to_model_range(stacked))
    return F.normalize(scorer.visual_projection(vision.pooler_output), dim=-1)


def _portrait(rng: np.random.Generator, identity: object, world: World) -> Image.Image:
    backdrop = world.backdrops[int(rng.integers(len(world.backdrops)))]
    scene = compose_scene(rng, [identity], backdrop, world=world)  # type: ignore[list-item]
    return render_scene(scene, with_masks=False).image


def _attribute_figures(title: str, rates: dict[str, float], bar: float, count: int, *, hue_bar: float) -> list[Figure]:
    return [
        Figure(
            name=f"{title}: {_label(name)}",
            value=value,
            bar=hue_bar if "hue" in name else bar,
            at_most="hue" in name,
            count=count,
        )
        for name, value in rates.items()
    ]


def _truth(subject: Subject, scene: Scene) -> dict[str, str]:
    identity = subject.identity
    assert identity.class_name in CLASSES
    return {
        "class_name": identity.class_name,
        "pattern": identity.pattern,
        "accessory": identity.accessory,
        "backdrop": scene.backdrop,
    }


def _label(name: str) -> str:
    return "class" if name == "class_name" else name
