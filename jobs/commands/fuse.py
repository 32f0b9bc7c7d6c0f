"""`mos fuse`: fuse concepts of the registry into one model."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.commands.submit import ray_address_option
from jobs.options import base_option, json_option, print_json, registry_option
from mos.errors import UsageError

if TYPE_CHECKING:
    from jobs.fuse_concepts import FusionOutcome


@click.command("fuse")
@click.argument("concepts", nargs=-1, metavar="OWNER/NAME[@VERSION]...")
@click.option(
    "--from-registry", "is_from_registry", is_flag=True, help="Take the concepts from the registry (the default)."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the fused model and its lockfile.")
@click.option("--spec", "spec_path", type=click.Path(path_type=Path), help="Read the fusion from a TOML file.")
@click.option("--publish", default="", metavar="OWNER/NAME", help="Publish the fused model with its lineage.")
@click.option("--allow-unlisted", is_flag=True, help="Also fuse what the catalogue does not list.")
@click.option(
    "--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes that record and solve."
)
@click.option(
    "-o", "--option", "options", multiple=True, metavar="NAME=VALUE", help="One option, such as solver=exact."
)
@click.option(
    "--scale",
    "scales",
    multiple=True,
    metavar="OWNER/NAME=FACTOR",
    help="Fuse a concept at another strength; FACTOR,FACTOR for text encoder and U-Net apart.",
)
@click.option("--extend", type=click.Path(path_type=Path), help="Start from the concepts and options of a fused model.")
@click.option("--add", multiple=True, metavar="OWNER/NAME", help="With --extend: a concept to fuse as well.")
@click.option("--remove", multiple=True, metavar="OWNER/NAME", help="With --extend: a concept to leave out.")
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Keep what is recorded of each concept here for later fusions."
)
@click.option("--merge", type=click.Path(path_type=Path), help="Also write a complete diffusers pipeline here.")
@click.option("--clip-norm", type=float, help="Scale far too large concepts down to this part of the base's norm.")
@click.option(
    "--allow-base-mismatch", is_flag=True, help="Fuse concepts of other bases; they may come out as anything."
)
@base_option
@registry_option
@ray_address_option
@json_option
def command(
    concepts: tuple[str, ...],
    is_from_registry: bool,
    out: Path | None,
    spec_path: Path | None,
    publish: str,
    allow_unlisted: bool,
    workers: int,
    options: tuple[str, ...],
    scales: tuple[str, ...],
    extend: Path | None,
    add: tuple[str, ...],
    remove: tuple[str, ...],
    cache: Path | None,
    merge: Path | None,
    clip_norm: float | None,
    allow_base_mismatch: bool,
    base: str | None,
    registry_url: str,
    ray_address: str | None,
    as_json: bool,
) -> None:
    """Fuse concepts of the registry into one model.

    \b
      mos fuse --from-registry alice/robot bob/cat carol/house --out fused/
      mos fuse --extend fused/ --add dave/mug --remove bob/cat --out other/
      mos fuse alice/robot bob/cat --scale bob/cat=0.8 --out fused/
    """
    from jobs.fuse_concepts import run_fusion
    from jobs.recordings import recordings_of
    from jobs.submission import fusion_spec
    from registry import Registry

    del is_from_registry
    concepts, options = _extended(extend, concepts, add, remove, options)
    options = _with_scales(options, scales)
    if extend is not None and cache is None:
        cache = recordings_of(extend)
        kept = f"taking from {cache} what was recorded for {extend}" if cache else "everything is recorded anew"
        click.echo(f"{kept}; --cache DIR names where recordings are kept", err=True)
    options += () if clip_norm is None else (f"clip_norm={clip_norm}",)
    if allow_base_mismatch:
        options += ("allow_base_mismatch=true",)
        click.echo("fusing concepts of other bases: their updates rest on weights this base does not have", err=True)
    spec = fusion_spec(spec_path, concepts, out, options, base=base, publish=publish, allow_unlisted=allow_unlisted)
    if allow_unlisted:
        click.echo("also fusing what the catalogue does not list: nobody has checked it", err=True)
    outcome = run_fusion(
        spec,
        Registry.open(registry_url),
        ray_address=ray_address,
        num_workers=workers,
        say=lambda text: click.echo(text, err=True),
        cache=cache,
        merge=merge,
    )
    if as_json:
        _print_data(outcome)
    else:
        _print_lines(outcome, extend)


def _print_data(outcome: "FusionOutcome") -> None:
    data = {
        "out": str(outcome.out),
        "words": list(outcome.model.words),
        "published": outcome.published,
        "concepts": outcome.locked,
        "report": outcome.model.report,
        "time": {"seconds": outcome.time.seconds, "spared_seconds": outcome.time.spared_seconds},
    }
    print_json(data)


def _print_lines(outcome: "FusionOutcome", extend: Path | None) -> None:
    from jobs.fuse_concepts import read_time

    click.echo(f"fused model  {outcome.out}")
    click.echo(f"words        {' '.join(outcome.model.words)}")
    click.echo(f"time         {outcome.time}")
    before = None if extend is None else read_time(extend)
    if before is not None:
        click.echo(f"before       {extend}: {before}")
    if outcome.published:
        click.echo(f"published    {outcome.published}")


def _extended(
    extend: Path | None,
    concepts: tuple[str, ...],
    add: tuple[str, ...],
    remove: tuple[str, ...],
    options: tuple[str, ...],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Concepts and options of a fusion that starts from a fused model; options given now win."""
    if extend is None:
        if add or remove:
            raise UsageError("--add and --remove change a fused model; name it with --extend")
        return concepts, options
    if concepts:
        raise UsageError("--extend takes its concepts from the fused model; use --add and --remove")
    from mos.fusion import FusionConfig, extended_refs, read_fused_record

    record = read_fused_record(extend)
    refs = extended_refs(record, add, remove)
    names = {text.partition("@")[0] for text in refs}
    kept = FusionConfig.from_json(record["config"]).to_json()
    kept["scales"] = {name: value for name, value in kept["scales"].items() if name in names}
    differing = {name: value for name, value in kept.items() if value != FusionConfig().to_json()[name]}
    texts = tuple(f"{name}={_toml(value)}" for name, value in differing.items() if value is not None)
    return refs, texts + options


def _with_scales(options: tuple[str, ...], scales: tuple[str, ...]) -> tuple[str, ...]:
    """The options with `--scale` words on top of the scales among them."""
    from jobs.submission import parse_options
    from mos.concept import ConceptRef

    if not scales:
        return options
    found = dict(parse_options(options).get("scales", {}))
    for text in scales:
        name, _, factors = text.partition("=")
        ref = ConceptRef.parse(name)
        try:
            first, *others = map(float, factors.split(","))
            (unet,) = others or (first,)
        except ValueError:
            raise UsageError(f"--scale {text}: expected OWNER/NAME=FACTOR, such as alice/robot=0.8") from None
        found[f"{ref.owner}/{ref.name}"] = (
            {"text_encoder": first, "text_encoder_2": first, "unet": unet} if others else first
        )
    return (*options, f"scales={_toml(found)}")


def _toml(value: object) -> str:
    """A JSON value as TOML writes it; tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {_toml(item)}" for name, item in value.items()) + "}"
    return json.dumps(value)
