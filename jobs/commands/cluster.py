"""`mos cluster up | status | down`: a Ray head on this machine that outlives the command."""

import click

from jobs.options import json_option, print_json


@click.group("cluster")
def command() -> None:
    """Start, look at and stop a local Ray head.

    It listens on loopback only and asks for a token. Commands find it by the address that `up` prints:

    \b
      mos cluster up
      mos submit concept ... --ray-address http://127.0.0.1:PORT
    """


@command.command()
@click.option("--cpus", type=click.IntRange(1), help="Logical CPUs to offer. Default: this machine's, at least 2.")
@click.option("--gpus", type=click.IntRange(0), help="GPUs to offer. Default: those Ray finds.")
@click.option("--trainers", type=click.IntRange(1), help="Trainers at once. Default: one a GPU, or what CPUs allow.")
@click.option(
    "--slots-per-trainer", type=click.IntRange(1), help="Concepts on one shared base. Default: 8 on a GPU, else 1."
)
@click.option("--slots-per-owner", type=click.IntRange(1), help="Concepts one owner may train at once. Default: any.")
@json_option
def up(
    cpus: int | None,
    gpus: int | None,
    trainers: int | None,
    slots_per_trainer: int | None,
    slots_per_owner: int | None,
    as_json: bool,
) -> None:
    """Start a head with dashboard, job server and token."""
    from cluster.head import publisher_key_path, start_head
    from registry.keys import SigningKey

    click.echo("starting a Ray head (about ten seconds) ...", err=True)
    limits = {
        "MOS_MAX_TRAINERS": trainers,
        "MOS_SLOTS_PER_TRAINER": slots_per_trainer,
        "MOS_SLOTS_PER_OWNER": slots_per_owner,
    }
    settings = {name: str(value) for name, value in limits.items() if value is not None}
    head = start_head(num_cpus=cpus, num_gpus=gpus, settings=settings)
    publisher = SigningKey.read(publisher_key_path()).public.text
    if as_json:
        addresses = {"ray_address": head.dashboard_url, "gcs_address": head.address}
        print_json(addresses | {"metrics_port": head.metrics_port, "publisher": publisher})
        return
    click.echo(f"dashboard and --ray-address  {head.dashboard_url}")
    click.echo(f"token                        {head.token_path} (the dashboard asks for it)")
    click.echo(f"metrics for Prometheus       127.0.0.1:{head.metrics_port}")
    click.echo(f"publishes for absent owners  {publisher}")


@command.command()
@json_option
def status(as_json: bool) -> None:
    """Say whether the head runs, what it has and what is free."""
    from cluster.head import find_head, head_resources

    head = find_head()
    if head is None:
        if as_json:
            print_json({"running": False})
            return
        click.echo("no head was started here; `mos cluster up` starts one")
        return
    resources = head_resources(head)
    if as_json:
        print_json({"running": True, "ray_address": head.dashboard_url, "resources": resources})
        return
    click.echo(f"running at {head.dashboard_url}, {len(head.process_ids)} processes")
    for name, (free, total) in sorted(resources.items()):
        click.echo(f"  {name:<6} {free:g} free of {total:g}")


@command.command()
def down() -> None:
    """Stop the head and everything it started."""
    from cluster.head import stop_head

    click.echo(f"stopped {stop_head()} processes")
