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
@json_option
def up(cpus: int | None, gpus: int | None, as_json: bool) -> None:
    """Start a head with dashboard, job server and token."""
    from cluster.head import start_head

    click.echo("starting a Ray head (about ten seconds) ...", err=True)
    head = start_head(num_cpus=cpus, num_gpus=gpus)
    if as_json:
        print_json({"ray_address": head.dashboard_url, "gcs_address": head.address, "metrics_port": head.metrics_port})
        return
    click.echo(f"dashboard and --ray-address  {head.dashboard_url}")
    click.echo(f"token                        {head.token_path} (the dashboard asks for it)")
    click.echo(f"metrics for Prometheus       127.0.0.1:{head.metrics_port}")


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
