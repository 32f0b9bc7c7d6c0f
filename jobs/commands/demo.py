"""`mos demo`: the whole marketplace on this machine."""

from pathlib import Path

import click

from jobs.options import base_option


@click.command("demo")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("mos-demo"),
    show_default=True,
    help="Folder of everything it makes.",
)
@click.option(
    "--pictures",
    "num_pictures",
    type=click.IntRange(0),
    default=36,
    show_default=True,
    help="Evaluated pictures a concept and method; 0 leaves the evaluation out.",
)
@click.option(
    "--ray-address",
    metavar="HOST:PORT",
    help="Ray to run on (the address `mos cluster up` prints). Default: a private one.",
)
@base_option
def command(out: Path, num_pictures: int, ray_address: str | None, base: str | None) -> None:
    """Run the whole marketplace on this machine and write a report.

    Three owners train a concept each, publish it, a fusion takes the three from the registry, and the fused
    model draws each alone and all three together. About five minutes on two cores; OUT/report.html shows it.
    """
    from jobs.demo import DemoConfig, run_demo

    config = DemoConfig(out=out, base=base or "", ray_address=ray_address, pictures_per_concept=num_pictures)
    run_demo(config, lambda text: click.echo(text, err=True))
    click.echo(str(out / "report.html"))
