"""`mos submit concept | fusion | evaluation`: hand work to Ray, here or on a cluster."""

from pathlib import Path
from typing import Any

import click

from jobs.commands.evaluation import submit_evaluation
from jobs.options import base_option, json_option, print_json, registry_option

ray_address_option = click.option(
    "--ray-address",
    metavar="URL",
    envvar="MOS_RAY_ADDRESS",
    help="Job server of a cluster, such as http://127.0.0.1:8265. Default: a private Ray for this command.",
)
wait_option = click.option("--wait/--no-wait", "is_waiting", default=True, help="Wait for the result.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Check everything, print what it would take, do nothing.")


@click.group("submit")
def command() -> None:
    """Submit a concept, a fusion or an evaluation as a job."""


@command.command()
@click.option("--owner", help="Who trains it; their key is used to publish.")
@click.option("--name", help="The concept's name.")
@click.option("--class", "class_word", help="Word of the class it belongs to, one the base knows: robot, cat, ...")
@click.option("--pictures", type=click.Path(path_type=Path), help="Folder with its pictures, captions, masks.")
@click.option("--kind", default=None, help="What it shows: human, object (default), scene, pet, style.")
@click.option("--spec", "spec_path", type=click.Path(path_type=Path), help="Read all of this from a TOML file.")
@click.option("--preset", default=None, help="Training recipe; default the one for the base.")
@click.option(
    "-o", "--option", "options", multiple=True, metavar="NAME=VALUE", help="One training option, such as steps=300."
)
@click.option("--seed", type=int, default=None, help="Of everything random.")
@click.option("--seeds", "num_seeds", type=click.IntRange(1, 16), default=None, help="Train so many seeds at once.")
@click.option(
    "--keep", type=click.Choice(["best"]), default="best", help="Of several seeds: the one whose words alone fit best."
)
@click.option(
    "--grids", type=click.Path(path_type=Path, file_okay=False), help="Folder for pictures at LoRA scale 0, .7, 1."
)
@click.option(
    "--grid-at", "grid_steps", type=click.IntRange(0), multiple=True, help="Draw them after this step; 0: the last."
)
@click.option("--title", default=None, help="One line for people.")
@click.option("--licence", default=None, help="Terms of the published concept.")
@click.option("--checkpoint-every", type=click.IntRange(1), default=100, show_default=True, help="Steps between.")
@click.option("--grant-days", type=click.IntRange(1), help="Let the cluster publish while you are away, for so long.")
@click.option("--publisher", default="", metavar="KEY", help="With --grant-days: the cluster's public key.")
@base_option
@registry_option
@ray_address_option
@wait_option
@dry_run_option
@json_option
def concept(
    spec_path: Path | None,
    options: tuple[str, ...],
    registry_url: str,
    ray_address: str | None,
    is_waiting: bool,
    dry_run: bool,
    as_json: bool,
    keep: str,
    grids: Path | None,
    grid_steps: tuple[int, ...],
    checkpoint_every: int,
    grant_days: int | None,
    publisher: str,
    **fields: Any,
) -> None:
    """Train a concept from a folder of pictures and publish it.

    The same spec and pictures submitted again are the same run: it is not trained twice.

    \b
      mos submit concept --owner alice --name robot --class robot --pictures photos/
      mos submit concept --owner alice --name robot --class robot --pictures photos/ --seeds 3 --keep best
      mos submit concept --owner alice --name robot --class robot --pictures photos/ --grids look/ --grid-at 100
    """
    from jobs.runs import submit_concept
    from jobs.submission import concept_spec
    from jobs.train_concept import fetch_grids

    del keep  # the best one is the only one that can be kept; the option says so
    wanted = {"grid_steps": grid_steps or (0,)} if grids or grid_steps else {}
    spec = concept_spec(spec_path, fields | wanted, options)
    outcome = submit_concept(
        spec,
        registry_url,
        ray_address=ray_address,
        is_waiting=is_waiting,
        is_dry_run=dry_run,
        checkpoint_every=checkpoint_every,
        grant_days=grant_days or 0,
        publisher=publisher,
    )
    if grids and is_waiting and not dry_run:
        outcome["grids"] = [str(path) for path in fetch_grids(outcome["run"], registry_url, grids)]
    if as_json:
        print_json(outcome)
    else:
        for name, value in outcome.items():
            click.echo(f"{name:<18} {value}")


@command.command()
@click.argument("concepts", nargs=-1)
@click.option("--spec", "spec_path", type=click.Path(path_type=Path), help="Read the fusion from a TOML file.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the fused model.")
@click.option("--publish", default="", metavar="OWNER/NAME", help="Publish the fused model too.")
@click.option("--allow-unlisted", is_flag=True, help="Also fuse what the catalogue does not list.")
@click.option("-o", "--option", "options", multiple=True, metavar="NAME=VALUE", help="One fusion option.")
@base_option
@registry_option
@ray_address_option
@wait_option
@dry_run_option
@json_option
def fusion(
    concepts: tuple[str, ...],
    spec_path: Path | None,
    out: Path | None,
    publish: str,
    allow_unlisted: bool,
    options: tuple[str, ...],
    base: str | None,
    registry_url: str,
    ray_address: str | None,
    is_waiting: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Fuse concepts of the registry into one model, as `mos fuse` does, on a cluster if one is given."""
    from jobs.fusion_runs import submit_fusion
    from jobs.submission import fusion_spec

    spec = fusion_spec(spec_path, concepts, out, options, base=base, publish=publish, allow_unlisted=allow_unlisted)
    outcome = submit_fusion(spec, registry_url, ray_address=ray_address, is_waiting=is_waiting, is_dry_run=dry_run)
    print_json(outcome) if as_json else _echo(outcome)


command.add_command(submit_evaluation)


def _echo(outcome: dict[str, Any]) -> None:
    for name, value in outcome.items():
        click.echo(f"{name:<18} {value}")
