"""`mos sample`: draw pictures, with a region for each concept if asked."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.opening import MODEL_HELP
from jobs.options import base_option, json_option, print_json, registry_option
from mos.errors import BadInputError, UsageError

if TYPE_CHECKING:
    from PIL import Image

    from jobs.opening import OpenedModel
    from mos.base_model import BaseModel
    from mos.sampling import Condition, Layout, Region, SamplingConfig

MAX_PICTURES = 10_000
EXAMPLES = """
\b
Examples:
  mos sample alice/robot "a <alice-robot> on a beach" --count 4
  mos sample fused/ "two friends in a forest" \\
      --region "<alice-robot> @ 0,0,0.5,1" --region "<bob-cat> | a dog @ 0.5,0,1,1"
  mos sample fused/ "<alice-robot> left of <bob-cat>, on a beach" --auto-layout
  mos sample base "a street" --concept alice/robot --region "<alice-robot> @ 0,0,32,64"
"""


@click.command(
    "sample", epilog=EXAMPLES, help="Draw pictures, with a region for each concept if asked.\n\n" + MODEL_HELP
)
@click.argument("model", metavar="MODEL")
@click.argument("prompts", metavar="[PROMPT]...", nargs=-1)
@click.option(
    "--region",
    "regions",
    metavar='"PROMPT [| NEGATIVE] @ PLACE"',
    multiple=True,
    help="PLACE is x0,y0,x1,y1 in fractions or pixels, or a PNG mask. Repeat for more regions.",
)
@click.option("--layout", type=click.Path(path_type=Path), help="TOML file with the prompt and the regions of a scene.")
@click.option("--auto-layout", is_flag=True, help="Make the regions from the prompt: <a-cat> left of <b-dog>.")
@click.option(
    "--soft-edge", default=0.0, show_default=True, help="Fade --region borders over this share of the picture."
)
@click.option("--negative", default="", help="What to move away from, outside the regions.")
@click.option(
    "--concept",
    "concepts",
    metavar="MODEL",
    multiple=True,
    help="A concept that is not fused in: regions whose prompt names its word carry it. Repeat for more.",
)
@click.option("--count", type=click.IntRange(1, MAX_PICTURES), default=1, show_default=True, help="Pictures a prompt.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**62),
    default=0,
    show_default=True,
    help="Of the first picture; the next take the next seeds.",
)
@click.option("--size", metavar="SIDE|WxH", help="In pixels. Default: the base's own.")
@click.option("--steps", type=int, default=50, show_default=True, help="Denoising steps.")
@click.option(
    "--guidance", type=float, help="Classifier-free guidance; 1 switches it off. Default 7.5, the small world's 3."
)
@click.option("--scheduler", help="dpm++ (default), ddim, euler, euler-a, unipc, pndm, base, or a diffusers class.")
@click.option(
    "--scale",
    type=float,
    default=1.0,
    show_default=True,
    help="Factor on the LoRA updates; words keep their embeddings.",
)
@click.option(
    "--guard",
    type=click.Choice(["none", "self-attention", "blend", "windows"]),
    default="none",
    show_default=True,
    help="Keep concepts from bleeding into each other's regions.",
)
@click.option("--guard-until", type=float, help="Share of the steps the guard acts; default 0.4, windows 0.8.")
@click.option(
    "--condition",
    "conditions",
    metavar="ADAPTER:PICTURE[:WEIGHT]",
    multiple=True,
    help="A T2I-Adapter folder, or sketch for the small world's own, and its sketch or pose.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("mos-pictures"),
    show_default=True,
    help="Folder for the PNG files and their grid.",
)
@click.option("--batch-size", type=int, default=8, show_default=True, help="Pictures drawn together.")
@click.option("--device", help="cpu, cuda, cuda:1 ... Default: cuda if there is one.")
@click.option("--truncate", is_flag=True, help="Cut prompts that are too long.")
@click.option("--allow-unlisted", is_flag=True, help="Take registry concepts that are not listed.")
@base_option
@registry_option
@json_option
def command(**options: Any) -> None:
    """Draw pictures, with a region for each concept if asked."""
    request = _Request(**options)
    if request.seed + request.count > 2**62:
        raise UsageError("--seed plus --count is too large; use seeds below 4611686018427387904")
    _draw(request)


@dataclass(frozen=True, kw_only=True)
class _Request:
    """The command line as given."""

    model: str
    prompts: tuple[str, ...]
    regions: tuple[str, ...]
    layout: Path | None
    auto_layout: bool
    soft_edge: float
    negative: str
    concepts: tuple[str, ...]
    count: int
    seed: int
    size: str | None
    steps: int
    guidance: float | None
    scheduler: str | None
    scale: float
    guard: str
    guard_until: float | None
    conditions: tuple[str, ...]
    out: Path
    batch_size: int
    device: str | None
    truncate: bool
    allow_unlisted: bool
    base: str | None
    registry_url: str
    as_json: bool


def _draw(request: _Request) -> None:
    from jobs.opening import open_base, open_model
    from mos.sampling import sample
    from mos.sampling.sampler import picture_size

    config = _config(request)
    base = open_base(request.base, device=_device(request.device))
    height, width = picture_size(base, config)
    opened = [
        open_model(name, base.facts, request.registry_url, allow_unlisted=request.allow_unlisted)
        for name in (request.model, *request.concepts)
    ]
    layout = _with_concepts(_layout(request, width=width, height=height), opened[1:])
    prompts = request.prompts or ((layout.prompt,) if layout.prompt else ())
    if not prompts:
        raise UsageError("no prompt: give one after MODEL, or a layout file that has one")
    if len(prompts) * request.count > MAX_PICTURES:
        raise UsageError(f"{len(prompts) * request.count} pictures asked for, at most {MAX_PICTURES} in one call")
    drawn = [(prompt, request.seed + index) for prompt in prompts for index in range(request.count)]
    conditions, named_conditions = _conditions(request.conditions, width=width, height=height)
    negative = request.negative or layout.negative_prompt
    pictures = sample(
        base,
        opened[0].adapter,
        [prompt for prompt, _ in drawn],
        negative_prompt=negative,
        regions=layout.regions,
        seeds=[seed for _, seed in drawn],
        config=config,
        scale=request.scale,
        conditions=conditions,
        on_pictures=_progress,
    )
    recipes = [
        _recipe(request, base, opened, prompt, negative, layout.regions, seed, config, named_conditions)
        for prompt, seed in drawn
    ]
    _report(request, opened, _write(request.out, pictures, recipes, columns=request.count), recipes)


def _config(request: _Request) -> SamplingConfig:
    from mos.sampling import SamplingConfig
    from mos.sampling.config import SMALL_WORLD_GUIDANCE

    width, height = _size(request.size)
    usual = SMALL_WORLD_GUIDANCE if request.base is None else SamplingConfig.guidance_scale
    return SamplingConfig(
        num_inference_steps=request.steps,
        guidance_scale=usual if request.guidance is None else request.guidance,
        height=height,
        width=width,
        scheduler=request.scheduler,
        batch_size=request.batch_size,
        bleeding_guard=request.guard,  # type: ignore[arg-type]
        guard_until=request.guard_until,
        truncate=request.truncate,
    )


def _size(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text.strip().lower())
    if match is None:
        raise UsageError(f"--size {text}: expected a side such as 64 or widthxheight such as 96x64")
    return int(match[1]), int(match[2] or match[1])


def _device(asked: str | None) -> str:
    import torch

    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise UsageError(f"--device {asked}: unknown; use cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"--device {asked}: unknown; use cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {asked}: there are {torch.cuda.device_count()} CUDA devices here; use cpu")
    return asked


def _layout(request: _Request, *, width: int, height: int) -> Layout:
    from mos.sampling import Layout, parse_region, read_layout
    from mos.sampling.auto_layout import layout_from_prompt

    ways = [bool(request.regions), request.layout is not None, request.auto_layout]
    if sum(ways) > 1:
        raise UsageError("give regions in one way: --region, --layout or --auto-layout")
    if request.layout is not None:
        return read_layout(request.layout, width=width, height=height)
    if request.auto_layout:
        if len(request.prompts) != 1:
            raise UsageError(f"--auto-layout needs exactly one prompt, found {len(request.prompts)}")
        return layout_from_prompt(request.prompts[0])
    return Layout(
        regions=tuple(
            parse_region(text, width=width, height=height, soft_edge=request.soft_edge) for text in request.regions
        )
    )


def _with_concepts(layout: Layout, concepts: Sequence[OpenedModel]) -> Layout:
    """Give every region whose prompt names an unfused concept's word that concept's adapter."""
    from dataclasses import replace

    owners = {word: model for model in concepts for word in model.words}
    used: set[str] = set()
    regions: list[Region] = []
    for region in layout.regions:
        named = [word for word in owners if word in region.prompt.lower()]
        if len(named) > 1:
            raise BadInputError(
                f"region {region.prompt!r}: names {' and '.join(named)}; a region carries one unfused concept"
            )
        used.update(named)
        regions.append(replace(region, adapter=owners[named[0]].adapter) if named else region)
    idle = sorted(set(owners) - used)
    if idle:
        raise UsageError(f'--concept {idle[0]}: no region names it; add --region "{idle[0]} @ x0,y0,x1,y1"')
    return replace(layout, regions=tuple(regions))


def _conditions(texts: Sequence[str], *, width: int, height: int) -> tuple[list[Condition], list[dict[str, Any]]]:
    from mos.sampling.condition import adapter_sha256, load_condition
    from mos.sampling.sketch import SHIPPED

    conditions, named = [], []
    for text in texts:
        parts = text.split(":")
        if len(parts) not in (2, 3) or not all(parts):
            raise UsageError(f"--condition {text}: expected ADAPTER:PICTURE or ADAPTER:PICTURE:WEIGHT")
        try:
            weight = float(parts[2]) if len(parts) == 3 else 1.0
        except ValueError:
            raise UsageError(f"--condition {text}: weight {parts[2]!r} is no number") from None
        adapter = SHIPPED if parts[0] == "sketch" and not Path("sketch").is_dir() else Path(parts[0])
        picture = Path(parts[1])
        conditions.append(load_condition(adapter, picture, weight, width=width, height=height))
        digests = {
            "adapter_sha256": adapter_sha256(adapter),
            "picture_sha256": sha256(picture.read_bytes()).hexdigest(),
        }
        named.append({"adapter": parts[0], "picture": parts[1], "weight": weight} | digests)
    return conditions, named


def _recipe(
    request: _Request,
    base: BaseModel,
    opened: Sequence[OpenedModel],
    prompt: str,
    negative: str,
    regions: Sequence[Region],
    seed: int,
    config: SamplingConfig,
    conditions: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    from mos.sampling.pictures import recipe

    return recipe(
        base={"name": base.facts.name, "fingerprint": dict(base.facts.fingerprint)},
        model=opened[0].label,
        concepts=[model.label for model in opened[1:]],
        prompt=prompt,
        negative_prompt=negative,
        regions=regions,
        seed=seed,
        config=config,
        scale=request.scale,
        conditions=conditions,
    )


def _write(
    folder: Path, pictures: Sequence[Image.Image], recipes: Sequence[dict[str, Any]], *, columns: int
) -> list[Path]:
    """Number on from what the folder already holds; the grid comes last."""
    from mos.sampling.pictures import picture_grid, save_picture

    folder.mkdir(parents=True, exist_ok=True)
    taken = [int(path.stem) for path in folder.glob("[0-9]*.png") if path.stem.isdigit()]
    first = max(taken, default=0) + 1
    paths = []
    for number, (picture, data) in enumerate(zip(pictures, recipes, strict=True), start=first):
        paths.append(folder / f"{number:05d}.png")
        save_picture(picture, paths[-1], data)
    if len(pictures) > 1:
        paths.append(folder / f"grid-{first:05d}.png")
        width = columns if columns > 1 else min(len(pictures), 8)
        save_picture(picture_grid(pictures, columns=min(width, 16)), paths[-1], recipes[0])
    return paths


def _report(
    request: _Request, opened: Sequence[OpenedModel], paths: Sequence[Path], recipes: Sequence[dict[str, Any]]
) -> None:
    words = [word for model in opened for word in model.words]
    if request.as_json:
        grid = str(paths[-1]) if len(paths) > len(recipes) else None
        listed = [{"path": str(path), "recipe": data} for path, data in zip(paths, recipes, strict=False)]
        print_json({"pictures": listed, "grid": grid, "words": words})
        return
    if words:
        click.echo(f"words of this model: {' '.join(words)}", err=True)
    for path in paths:
        click.echo(str(path))


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{done}/{total} pictures" + ("\n" if done == total else ""), err=True, nl=False)
