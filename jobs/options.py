"""Options that several commands share, and how data is printed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_REGISTRY = str(Path.home() / ".mos" / "registry")
"""Where concepts are published when neither --registry nor MOS_REGISTRY says otherwise."""

base_option = click.option(
    "--base",
    metavar="PATH|ID",
    default=None,
    help="Diffusers folder or hub id of the base model. Default: the small world that comes with mos.",
)
registry_option = click.option(
    "--registry",
    "registry_url",
    metavar="URL",
    envvar="MOS_REGISTRY",
    default=DEFAULT_REGISTRY,
    show_default=True,
    help="A directory or s3://bucket/prefix; MOS_REGISTRY sets it too.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


def print_json(data: object) -> None:
    """Print `data` as one JSON document on stdout."""
    click.echo(json.dumps(data, indent=2, sort_keys=True, default=str))
