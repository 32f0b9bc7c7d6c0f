"""Files of a pretraining run: a log of JSON lines, and checkpoints that are whole or not there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def log_line(path: Path, line: Mapping[str, float]) -> None:
    """Append one line to a run's log."""
    with path.open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace a checkpoint by a newer one; a kill in between leaves the old."""
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    partial.replace(path)
