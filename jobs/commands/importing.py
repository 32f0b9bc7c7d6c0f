"""`mos import`: turn a LoRA or embedding of another tool into a concept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.options import base_option, json_option, print_json
from mos.concept import CONCEPT_KINDS, check_name
from mos.errors import BadInputError, MosError, UsageError

if TYPE_CHECKING:
    from mos.artifact import EDLoRA
    from mos.base_model import BaseModel
    from mos.formats.importing import ImportReport

EXAMPLES = """
\b
Examples:
  mos import edlora_model.pth --base chilloutmix/ --class-word cat
  mos import lora.safetensors --base runwayml/stable-diffusion-v1-5 --class-word dog --trigger "sks dog"
  mos import lora.safetensors embeddings.safetensors --base sdxl/ --class-word woman --kind human
"""


@click.command("import", epilog=EXAMPLES)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Default: NAME.mos.safetensors here.")
@click.option("--name", help="Of the concept, such as red-robot. Default: from the file's name.")
@click.option("--class-word", help="The class it belongs to, one word, such as cat. Needed unless mos wrote the file.")
@click.option("--kind", type=click.Choice(CONCEPT_KINDS), help="What it shows. Default: object.")
@click.option("--trigger", help="What a LoRA without embeddings was trained with, such as 'sks dog'.")
@click.option("--title", default="", help="One line.")
@click.option("--scale", default=1.0, show_default=True, help="Strength to absorb into the updates.")
@click.option("--strict", is_flag=True, help="Refuse a file with any key that is not used.")
@base_option
@json_option
def command(
    files: tuple[Path, ...],
    out: Path | None,
    name: str | None,
    class_word: str | None,
    kind: str | None,
    trigger: str | None,
    title: str,
    scale: float,
    strict: bool,
    base: str | None,
    as_json: bool,
) -> None:
    """Turn a LoRA or embedding of another tool into a concept of the base.

    FILE is a Mix-of-Show .pth, a diffusers, PEFT or kohya LoRA, or a textual inversion; a LoRA and the
    embeddings that belong to it are given together. PyTorch files are opened without running anything in them.
    """
    from jobs.opening import open_base
    from mos.formats.importing import ImportOptions, import_concept

    if not 0 < abs(scale) <= 100:
        raise UsageError(f"--scale {scale}: expected a number other than 0, at most 100")
    name = check_name(name or _name_of(files[0]), "--name")
    options = ImportOptions(name=name, class_word=class_word, kind=kind, trigger=trigger, title=title, scale=scale)
    model = open_base(base)
    edlora, report = import_concept(files, model, options)
    if strict and report.unmatched:
        raise BadInputError(f"{files[0]}: {len(report.unmatched)} keys not used, such as {report.unmatched[0]}")
    path = out or Path(f"{name}.mos.safetensors")
    digest = _write(edlora, path, model)
    _print(report, path, digest, as_json)


def _write(edlora: EDLoRA, path: Path, model: BaseModel) -> str:
    """Write the artifact, and keep it only if the strict reader takes it for this base."""
    from mos.artifact import read_artifact, write_artifact

    path.parent.mkdir(parents=True, exist_ok=True)
    trial = path.with_name(f".{path.name}.trial")
    try:
        digest = write_artifact(edlora, trial)
        read_artifact(trial, model.facts)
        trial.replace(path)
    except MosError as error:
        raise type(error)(str(error).replace(str(trial), str(path))) from error
    finally:
        trial.unlink(missing_ok=True)
    return digest


def _print(report: ImportReport, path: Path, digest: str, as_json: bool) -> None:
    if as_json:
        print_json({**vars(report), "path": str(path), "sha256": digest})
        return
    for line in report.lines():
        click.echo(line, err=True)
    click.echo(str(path))


def _name_of(file: Path) -> str:
    stem = re.sub(r"[^a-z0-9]+", "-", file.resolve().stem.lower()).strip("-")[:40].strip("-")
    if not stem:
        raise BadInputError(f"{file}: no name can be made of this file name; give one with --name")
    return stem
