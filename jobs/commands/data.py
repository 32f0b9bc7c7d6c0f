"""`mos data`: look at a folder of pictures before training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.options import base_option, json_option, print_json

if TYPE_CHECKING:
    from mos.training.folder import FolderItem, FolderReport


@click.group("data")
def command() -> None:
    """Check a folder of pictures before training."""


@command.command("check")
@click.argument("directory", type=click.Path(path_type=Path))
@base_option
@click.option("--resolution", type=click.IntRange(32, 2048), help="Side in pixels. Default: the base's.")
@click.option(
    "--sheet",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The contact sheet, a PNG. Default: beside the folder, named after it; none with --json.",
)
@json_option
def check(directory: Path, base: str | None, resolution: int | None, sheet: Path | None, as_json: bool) -> None:
    """Say what a folder holds, what training will use of it, and why not the rest; draw a contact sheet of it.

    \b
    Examples:
      mos data check photos/
      mos data check photos/ --sheet sheet.png --resolution 512
    """
    from mos.training.folder import scan_folder
    from mos.training.pictures import DataError

    report = scan_folder(directory, resolution=resolution or _resolution(base))
    if sheet is None and not as_json:
        sheet = _sheet_beside(directory)
    if sheet is not None:
        from mos.training.sheet import contact_sheet

        contact_sheet(report).save(sheet, format="PNG")
    if as_json:
        print_json(_as_data(report, sheet))
    else:
        _print(report, sheet)
    if report.refused:
        raise DataError(
            f"{directory}: {len(report.refused)} of {len(report.items)} pictures cannot be used; "
            "mend or remove them and check again"
        )


def _sheet_beside(directory: Path) -> Path | None:
    """Where the contact sheet goes unasked, never among the pictures; None where nothing may be written."""
    folder = directory.resolve()
    return folder.with_name(f"{folder.name}-sheet.png") if os.access(folder.parent, os.W_OK) else None


def _resolution(base: str | None) -> int:
    from mos.base_model import base_resolution

    return base_resolution(base)


def _print(report: FolderReport, sheet: Path | None) -> None:
    for item in report.items:
        click.echo(_line(item))
    for left, right in report.near_duplicates:
        click.echo(f"nearly the same: {left} and {right}; keep one")
    for remark in report.remarks:
        click.echo(f"remark: {remark}")
    masks = sum(item.mask is not None for item in report.used)
    shown = sum(item.repeats for item in report.used)
    click.echo(
        f"{len(report.items)} pictures found, {len(report.used)} will be used ({shown} with repeats, "
        f"{masks} with a mask), {len(report.refused)} refused, {len(report.near_duplicates)} near-duplicate pairs"
    )
    if sheet is not None:
        click.echo(f"contact sheet: {sheet}")


def _line(item: FolderItem) -> str:
    if item.cause:
        return f"refused  {item.cause}"
    details = [f"{item.size[0]}x{item.size[1]}", f'"{item.caption}"']
    details += ["mask"] if item.mask is not None else []
    details += [f"{item.repeats} times"] if item.repeats > 1 else []
    return f"used     {item.name}  {', '.join([*details, *item.notes])}"


def _as_data(report: FolderReport, sheet: Path | None) -> dict[str, Any]:
    return {
        "pictures": [
            {
                "name": item.name,
                "used": not item.cause,
                "cause": item.cause,
                "notes": list(item.notes),
                "width": item.size[0],
                "height": item.size[1],
                "caption": item.caption,
                "repeats": item.repeats,
                "mask": item.mask is not None,
            }
            for item in report.items
        ],
        "near_duplicates": [list(pair) for pair in report.near_duplicates],
        "remarks": list(report.remarks),
        "sheet": None if sheet is None else str(sheet),
    }
