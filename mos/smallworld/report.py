"""Measure the small world's weights against their bar: `python -m mos.smallworld.report --help`."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from transformers import CLIPModel

from mos.errors import MosError, NotFoundError
from mos.sampling.config import SamplingConfig
from mos.smallworld.assets import WEIGHTS, load_probe
from mos.smallworld.figures import (
    Figure,
    draw_samples,
    full_captions,
    held_out_scenes,
    measure_autoencoder,
    measure_places,
    measure_probe,
    measure_samples,
    measure_scorer,
    reconstruct,
)
from mos.smallworld.probe import Probe
from mos.smallworld.render import render_scene
from mos.smallworld.world import PICTURE_SIZE, World, load_world


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """How much is measured.

    Attributes:
        renders: Held-out renders read by the probe and put through the autoencoder.
        samples: Pictures of one subject drawn by the base.
        groups: Pictures of two and of three subjects.
        concepts: Concepts trained and drawn, one a class; 0 leaves that out, each takes about a minute.
        seeds_per_place: Samples of each concept on each backdrop.
        num_inference_steps: Sampling steps.
        guidance_scale: Of the samples.
        seed: Of everything.
    """

    renders: int = 512
    samples: int = 512
    groups: int = 64
    concepts: int = 0
    seeds_per_place: int = 4
    num_inference_steps: int = 25
    guidance_scale: float = 4.0
    seed: int = 20


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write JSON and grids; the exit code is 0 even where a bar is missed."""
    options = _parser().parse_args(arguments)
    config = ReportConfig(
        renders=options.renders,
        samples=options.samples,
        groups=options.groups,
        concepts=options.concepts,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
        seed=options.seed,
    )
    try:
        with torch.no_grad():
            figures = measure(options.weights, load_world(options.world), config, grids=options.out)
    except MosError as error:
        print(f"report: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps([_row(figure) for figure in figures], indent=1) if options.json else table(figures))
    if options.out is not None:
        rows = {"config": asdict(config), "rows": [_row(figure) for figure in figures]}
        (options.out / "report.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(weights: Path, world: World, config: ReportConfig, *, grids: Path | None = None) -> list[Figure]:
    """All figures of the weights in a folder; grids of what was seen go to `grids` when given.

    Raises:
        NotFoundError: If the folder lacks base, scorer or probe.
    """
    for part in ("base/model_index.json", "scorer/config.json", "probe/probe.safetensors"):
        if not (weights / part).is_file():
            raise NotFoundError(f"{weights}: no {part} there; name a folder of exported weights")
    if grids is not None:
        grids.mkdir(parents=True, exist_ok=True)
    probe = load_probe(weights / "probe")
    pipeline = load_pipeline(weights / "base")
    scenes = held_out_scenes(config.renders, seed=config.seed, world=world)
    figures = measure_probe(probe, scenes)
    figures += measure_autoencoder(pipeline.vae, probe, scenes)
    scorer = CLIPModel.from_pretrained(weights / "scorer", torch_dtype=torch.float32).eval()
    figures.append(measure_scorer(scorer, seed=config.seed, world=world))
    figures += _sample_figures(pipeline, probe, world, config, grids)
    if config.concepts:
        figures += _concept_figures(weights, probe, world, config, grids)
    if grids is not None:
        pictures = [render_scene(scene, with_masks=False).image for scene in scenes[:16]]
        sheet([*pictures, *reconstruct(pipeline.vae, pictures)], columns=16).save(grids / "autoencoder.png")
    return figures


def load_pipeline(base: Path) -> StableDiffusionPipeline:
    """Open a base for sampling on the CPU, with plain attention, which is faster there for narrow heads."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.set_attn_processor(AttnProcessor())
    return pipeline


def sheet(pictures: Sequence[Image.Image], *, columns: int, scale: int = 2) -> Image.Image:
    """Pictures in rows on one sheet, enlarged without smoothing."""
    rows = -(-len(pictures) // columns)
    result = Image.new("RGB", (columns * PICTURE_SIZE, rows * PICTURE_SIZE))
    for index, picture in enumerate(pictures):
        result.paste(picture, (index % columns * PICTURE_SIZE, index // columns * PICTURE_SIZE))
    return result.resize((result.width * scale, result.height * scale), Image.Resampling.NEAREST)


def table(figures: Sequence[Figure]) -> str:
    """The figures as lines of text."""
    lines = [f"{'figure':46} {'value':>8} {'bar':>8}  holds"]
    for figure in figures:
        bar = "" if figure.bar is None else f"{'<=' if figure.at_most else '>='} {figure.bar:g}"
        verdict = {None: "", True: "yes", False: "NO"}[figure.holds]
        lines.append(f"{figure.name:46} {figure.value:8.3f} {bar:>8}  {verdict}")
    return "\n".join(lines)


def _sample_figures(
    pipeline: StableDiffusionPipeline, probe: Probe, world: World, config: ReportConfig, grids: Path | None
) -> list[Figure]:
    figures: list[Figure] = []
    for num_subjects, count in ((1, config.samples), (2, config.groups), (3, config.groups)):
        scenes = held_out_scenes(count, seed=config.seed, world=world, num_subjects=num_subjects)
        samples = draw_samples(
            pipeline,
            full_captions(scenes, seed=config.seed),
            seed=config.seed,
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
        )
        if num_subjects == 1:
            figures += measure_samples(probe, samples, scenes)
        else:
            figures.append(measure_places(probe, samples, scenes))
        if grids is not None:
            sheet(samples[:48], columns=16).save(grids / f"samples-{num_subjects}.png")
    return figures


def _concept_figures(
    weights: Path, probe: Probe, world: World, config: ReportConfig, grids: Path | None
) -> list[Figure]:
    from mos.smallworld.concept_figures import measure_concepts

    sampling = SamplingConfig(num_inference_steps=config.num_inference_steps, guidance_scale=config.guidance_scale)
    with torch.enable_grad():
        figures, samples = measure_concepts(
            weights,
            probe,
            world,
            seed=config.seed,
            count=config.concepts,
            seeds_per_place=config.seeds_per_place,
            sampling=sampling,
        )
    if grids is not None:
        sheet(samples, columns=2 * len(world.backdrops)).save(grids / "concepts.png")
    return figures


def _row(figure: Figure) -> dict[str, object]:
    return {**asdict(figure), "value": round(figure.value, 4), "holds": figure.holds}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mos.smallworld.report", description=__doc__)
    defaults = ReportConfig()
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of exported weights")
    parser.add_argument("--world", type=Path, help="world file the weights were trained on")
    parser.add_argument("--out", type=Path, help="folder for report.json and the grids")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--renders", type=int, default=defaults.renders)
    parser.add_argument("--samples", type=int, default=defaults.samples)
    parser.add_argument("--groups", type=int, default=defaults.groups)
    parser.add_argument("--concepts", type=int, default=defaults.concepts, help="train and draw so many")
    parser.add_argument("--steps", type=int, default=defaults.num_inference_steps)
    parser.add_argument("--guidance", type=float, default=defaults.guidance_scale)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    return parser


if __name__ == "__main__":
    sys.exit(main())
