"""`mos doctor`: name what is missing on this machine."""

import sys

import click

from jobs.commands.submit import ray_address_option
from jobs.options import base_option, json_option, print_json, registry_option


@click.command("doctor")
@base_option
@registry_option
@ray_address_option
@json_option
def command(base: str | None, registry_url: str, ray_address: str | None, as_json: bool) -> None:
    """Name what is missing on this machine, and the command that mends it.

    Exit code 7 if something needed is missing.
    """
    from dataclasses import asdict

    from jobs.doctor import examine

    findings = examine(base, registry_url, ray_address)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        marks = {True: "ok", False: "MISSING", None: "note"}
        for finding in findings:
            remedy = f"  ->  {finding.remedy}" if finding.remedy else ""
            click.echo(f"{marks[finding.is_good]:<8} {finding.name:<20} {finding.found}{remedy}")
    if any(finding.is_good is False for finding in findings):
        sys.exit(7)
