"""`mos export`: write a concept or fused model for another tool."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.options import base_option, json_option, print_json, registry_option
from mos.errors import BadInputError, NotAllowedError

if TYPE_CHECKING:
    from jobs.export_source import ExportSource
    from mos.facts import BaseFacts
    from mos.formats.exporting import ExportResult

TARGETS = ("diffusers", "kohya", "a1111", "comfyui", "mixofshow", "merged")
EXAMPLES = """
\b
Examples:
  mos export alice/robot --to a1111 --out stable-diffusion-webui/
  mos export fused/ --to diffusers --out exported/
  mos export robot.safetensors --to mixofshow --base chilloutmix/
"""
_PICTURES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg"}
_SD_VERSION = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}


@click.command("export", epilog=EXAMPLES)
@click.argument("model", metavar="CONCEPT|FUSED")
@click.option("--to", "target", type=click.Choice(TARGETS), required=True, help="The tool to write for.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("exported"), show_default=True,
    help="Folder to write into.",
)  # fmt: skip
@click.option("--name", help="Of the files. Default: owner-name, or the folder's name.")
@click.option("--licence", default="", help="Its terms, where the registry does not say.")
@click.option("--author", default="", help="Who made it.")
@click.option("--preview", "previews", multiple=True, type=click.Path(path_type=Path), help="A picture for the card.")
@click.option("--half", is_flag=True, help="Write float16; the default float32 loses nothing.")
@click.option("--allow-unlisted", is_flag=True, help="Take a registry concept that is not listed.")
@base_option
@registry_option
@json_option
def command(
    model: str,
    target: str,
    out: Path,
    name: str | None,
    licence: str,
    author: str,
    previews: tuple[Path, ...],
    half: bool,
    allow_unlisted: bool,
    base: str | None,
    registry_url: str,
    as_json: bool,
) -> None:
    """Write a concept or fused model for another tool, with a model card.

    CONCEPT|FUSED is an ED-LoRA file, a fused directory, or owner/name[@version] of the registry. Words with an
    embedding a layer are exact for diffusers (with mos) and mixofshow; elsewhere their layer mean is written
    and what that loses is printed.
    """
    from jobs.export_source import open_source
    from jobs.opening import open_base
    from mos.formats.exporting import export
    from mos.formats.metadata import ExportDetails

    loaded = open_base(base)
    source = open_source(model, loaded.facts, registry_url, allow_unlisted=allow_unlisted)
    if target == "merged" and not source.allows_derivatives:
        raise NotAllowedError(f"{model}: its licence {source.licence} allows no derivatives, and a merged base is one")
    details = ExportDetails(
        title=source.title,
        trigger=" ".join(source.adapter.words),
        author=author or ", ".join(source.credit),
        licence=source.licence or licence,
        sources=source.sources,
        card=source.card,
    )
    result = export(source.adapter, loaded, target, out, name=name or source.name, details=details, half=half)
    pictures = _copy_previews(previews or tuple(source.previews), out, name or source.name)
    card = _write_card(source, loaded.facts, result, out, licence=licence, pictures=pictures)
    extra = [_write_sidecar(source, loaded.facts, result)] if target == "a1111" and result.tensor_hash else []
    _print(result, [*result.files, *extra, *pictures, card], as_json)


def _copy_previews(previews: tuple[Path, ...], out: Path, name: str) -> list[Path]:
    """Copy pictures beside the card, named by their order; what a picture is comes from its first bytes."""
    copies = []
    for index, preview in enumerate(previews):
        data = preview.read_bytes()
        suffix = next((suffix for start, suffix in _PICTURES.items() if data.startswith(start)), None)
        if suffix is None:
            raise BadInputError(f"{preview}: a preview is a PNG or JPEG file")
        copy = out / f"{name}-{index}{suffix}"
        copy.write_bytes(data)
        copies.append(copy)
    return copies


def _write_card(
    source: ExportSource, facts: BaseFacts, result: ExportResult, out: Path, *, licence: str, pictures: list[Path]
) -> Path:
    from jobs.model_card import CardContents, model_card

    prompt = f"a photo of {' and '.join(source.adapter.words)}"
    contents = CardContents(
        title=source.title,
        description=source.description,
        base_name=facts.name,
        family=facts.family,
        licence=source.licence or licence,
        credit=source.credit,
        words=source.adapter.words,
        tags=source.tags,
        instance_prompt=prompt,
        previews=[(picture.name, prompt) for picture in pictures],
        usage=result.usage,
        losses=[loss.line() for loss in result.losses],
        sources=source.sources,
        recipe=source.recipe,
        tensor_hash=result.tensor_hash,
    )
    path = out / "README.md"
    path.write_text(model_card(contents), encoding="utf-8")
    return path


def _write_sidecar(source: ExportSource, facts: BaseFacts, result: ExportResult) -> Path:
    """Write the JSON that A1111 shows on a LoRA's card and inserts into the prompt."""
    path = result.files[0].with_suffix(".json")
    fields = {
        "description": source.title,
        "sd version": _SD_VERSION[facts.family],
        "activation text": " ".join(word.strip("<>") for word in source.adapter.words),
        "preferred weight": 1.0,
        "notes": source.description,
    }
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    return path


def _print(result: ExportResult, files: list[Path], as_json: bool) -> None:
    if as_json:
        data: dict[str, Any] = {
            "files": {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
            "losses": [{**vars(loss), "is_exact": loss.is_exact} for loss in result.losses],
            "tensor_hash": result.tensor_hash,
            "usage": result.usage,
        }
        print_json(data)
        return
    for loss in result.losses:
        click.echo(loss.line(), err=True)
    click.echo(result.usage, err=True)
    for path in files:
        click.echo(str(path))
