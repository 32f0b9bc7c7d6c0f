"""`mos fuse`: fuse concepts of the registry into one model."""

from pathlib import Path

import click

from jobs.commands.submit import ray_address_option
from jobs.options import base_option, json_option, print_json, registry_option


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
    base: str | None,
    registry_url: str,
    ray_address: str | None,
    as_json: bool,
) -> None:
    """Fuse concepts of the registry into one model.

    \b
      mos fuse --from-registry alice/robot bob/cat carol/house --out fused/
    """
    from jobs.fuse_concepts import run_fusion
    from jobs.submission import fusion_spec
    from registry import Registry

    del is_from_registry
    spec = fusion_spec(spec_path, concepts, out, options, base=base, publish=publish, allow_unlisted=allow_unlisted)
    if allow_unlisted:
        click.echo("also fusing what the catalogue does not list: nobody has checked it", err=True)
    outcome = run_fusion(
        spec,
        Registry.open(registry_url),
        ray_address=ray_address,
        num_workers=workers,
        say=lambda text: click.echo(text, err=True),
    )
    words = list(outcome.model.words)
    if as_json:
        data = {"out": str(outcome.out), "words": words, "published": outcome.published, "concepts": outcome.locked}
        print_json(data | {"report": outcome.model.report})
        return
    click.echo(f"fused model  {outcome.out}")
    click.echo(f"words        {' '.join(words)}")
    if outcome.published:
        click.echo(f"published    {outcome.published}")
