"""`mos jobs ls | logs | wait | cancel | retry`: the runs this machine submitted."""

import time
from collections.abc import Mapping
from typing import Any

import click

from jobs.options import json_option, print_json


@click.group("jobs")
def command() -> None:
    """List, follow, wait for, cancel and retry jobs.

    A run is named by the id that `ls` shows, or by its beginning.
    """


@command.command("ls")
@click.option("--all", "show_all", is_flag=True, help="Also runs that ended more than a week ago.")
@json_option
def list_runs(show_all: bool, as_json: bool) -> None:
    """Show runs, newest first."""
    from jobs.runs import known_runs

    records = known_runs(max_age_s=None if show_all else 7 * 24 * 3600.0)
    if as_json:
        print_json([record.as_dict() for record in records])
        return
    if not records:
        click.echo("no runs; `mos submit concept --help` shows how to start one", err=True)
        return
    width = max(len(record.run_id) for record in records)
    for record in records:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.created_at))
        outcome = record.result or record.error
        click.echo(f"{record.run_id:<{width}}  {record.state.value:<10}  {since}  {record.subject}  {outcome}".rstrip())


@command.command()
@click.argument("run")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends.")
@json_option
def logs(run: str, follow: bool, as_json: bool) -> None:
    """Print a run's events."""
    from cluster.progress import event_line
    from jobs.runs import events_of

    for event in events_of(run, follow=follow):
        click.echo(_as_json_line(event) if as_json else event_line(event))


@command.command()
@click.argument("run")
@click.option("--timeout", "timeout_s", type=float, help="Give up after so many seconds (exit code 8).")
@json_option
def wait(run: str, timeout_s: float | None, as_json: bool) -> None:
    """Wait until a run ends, publish its result if that is still to do, and say how it ended."""
    from jobs.runs import wait_for

    record = wait_for(run, timeout_s=timeout_s)
    if as_json:
        print_json(record.as_dict())
    else:
        click.echo(f"{record.run_id}  {record.state.value}  {record.result}".rstrip())


@command.command()
@click.argument("run")
@json_option
def cancel(run: str, as_json: bool) -> None:
    """Stop a run after the step under way; its checkpoint stays for `retry`."""
    from jobs.runs import cancel_run

    record = cancel_run(run)
    if as_json:
        print_json(record.as_dict())
    else:
        click.echo(f"{record.run_id}  asked to stop")


@command.command()
@click.argument("run")
@click.option("--wait/--no-wait", "is_waiting", default=True, help="Wait for the result.")
@json_option
def retry(run: str, is_waiting: bool, as_json: bool) -> None:
    """Submit a cancelled or failed run again; it goes on from its last checkpoint."""
    from jobs.runs import retry_run

    record = retry_run(run, is_waiting=is_waiting)
    if as_json:
        print_json(record.as_dict())
    else:
        click.echo(f"{record.run_id}  {record.state.value}  {record.result}".rstrip())


def _as_json_line(event: Mapping[str, Any]) -> str:
    import json

    return json.dumps(dict(event), sort_keys=True)
