"""What this machine remembers of the runs it submitted: one folder a run.

    <home>/runs/<run id>/record.json     who, what, state, attempts, result or error
                         events.jsonl    one structured line an event, in order
                         cancel          there once somebody asked the run to stop
                         lock            held by whoever brings the record up to date with a cluster

`<home>` is MOS_HOME or ~/.mos. Everything is plain files, so `mos jobs` sees runs of other terminals too.
"""

import contextlib
import fcntl
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster.errors import RunNotFoundError
from cluster.states import RunState, may_follow
from mos.errors import BadInputError

_RUN_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,98}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run as its submitter remembers it.

    Attributes:
        run_id: Kind, owner, name and spec digest; the same spec gives the same run.
        kind: "concept", "fusion" or "evaluation".
        owner: Who submitted it.
        subject: What it makes, such as `alice/robot`.
        state: Where it stands.
        spec: The spec as JSON, enough to submit it again.
        attempts: How often a worker took it up.
        created_at: Unix time in seconds.
        updated_at: Unix time in seconds.
        process_id: Of the driver on this machine; 0 when the driver runs on a cluster.
        address: Ray address it was sent to; empty for a private Ray.
        submission_id: Its name among Ray's jobs; empty for a private Ray.
        result: Such as `alice/robot@1` or a folder; empty until done.
        error: One line; empty unless failed.
    """

    run_id: str
    kind: str
    owner: str
    subject: str
    state: RunState = RunState.QUEUED
    spec: dict[str, Any] = field(default_factory=dict)
    attempts: int = 0
    created_at: float = 0.0
    updated_at: float = 0.0
    process_id: int = 0
    address: str = ""
    submission_id: str = ""
    result: str = ""
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON can hold it."""
        return asdict(self) | {"state": self.state.value}


def home() -> Path:
    """Where mos keeps what it remembers: MOS_HOME, or ~/.mos."""
    return Path(os.environ.get("MOS_HOME") or Path.home() / ".mos")


class RunBook:
    """The runs remembered under one folder.

    Args:
        folder: Where they are; default `home() / "runs"`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or home() / "runs"

    def start(self, record: RunRecord) -> RunRecord:
        """Remember a new run, or take up again one that ended."""
        now = time.time()
        known = self.find(record.run_id)
        created_at = known.created_at if known else now
        started = replace(record, created_at=created_at, updated_at=now, attempts=known.attempts if known else 0)
        self._folder(record.run_id).mkdir(parents=True, exist_ok=True)
        self._cancel_path(record.run_id).unlink(missing_ok=True)
        self._write(started)
        return started

    def find(self, run_id: str) -> RunRecord | None:
        """The record of a run, or None."""
        path = self._folder(run_id) / "record.json"
        return _read(path) if path.exists() else None

    def get(self, run_id: str) -> RunRecord:
        """The record of a run; an unambiguous beginning of its id will do.

        Raises:
            RunNotFoundError: If there is none, or several begin so.
        """
        if (exact := self.find(run_id)) is not None:
            return exact
        matches = [record for record in self.all() if record.run_id.startswith(run_id)]
        if len(matches) == 1:
            return matches[0]
        found = "several runs begin so" if matches else "no such run"
        raise RunNotFoundError(f"run {run_id!r}: {found} in {self.folder}; `mos jobs ls` shows them")

    def all(self) -> list[RunRecord]:
        """Every run, newest first."""
        records = [_read(path) for path in self.folder.glob("*/record.json")]
        return sorted(records, key=lambda record: (-record.created_at, record.run_id))

    def move(self, run_id: str, state: RunState, **changes: Any) -> RunRecord:
        """Write a new state and other fields; a step that `states` does not allow is a bug.

        Raises:
            RunNotFoundError: If there is no such run.
        """
        record = self.get(run_id)
        assert may_follow(record.state, state), f"{run_id}: {record.state.value} -> {state.value}"
        moved = replace(record, state=state, updated_at=time.time(), **changes)
        self._write(moved)
        return moved

    def note(self, run_id: str, event: dict[str, Any]) -> None:
        """Append one structured line to the run's events."""
        with (self._folder(run_id) / "events.jsonl").open("a") as log:
            log.write(json.dumps({"at": round(time.time(), 3)} | event, sort_keys=True) + "\n")

    def events(self, run_id: str, *, skip: int = 0) -> Iterator[dict[str, Any]]:
        """The run's events after the first `skip`."""
        path = self._folder(run_id) / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        yield from (json.loads(line) for line in lines[skip:])

    def ask_to_cancel(self, run_id: str) -> None:
        """Leave the request to stop where the run's driver looks for it."""
        self._cancel_path(run_id).touch()

    def is_cancelled(self, run_id: str) -> bool:
        """Whether somebody asked this run to stop."""
        return self._cancel_path(run_id).exists()

    @contextlib.contextmanager
    def locked(self, run_id: str) -> Iterator[None]:
        """Keep other processes that bring this run's record up to date out of the block; they wait."""
        with (self._folder(run_id) / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _cancel_path(self, run_id: str) -> Path:
        return self._folder(run_id) / "cancel"

    def _folder(self, run_id: str) -> Path:
        if not _RUN_ID.fullmatch(run_id):
            raise BadInputError(f"run id {run_id!r}: expected lower-case letters, digits and hyphens")
        return self.folder / run_id

    def _write(self, record: RunRecord) -> None:
        folder = self._folder(record.run_id)
        with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".tmp", delete=False) as file:
            json.dump(record.as_dict(), file, indent=1, sort_keys=True)
        Path(file.name).replace(folder / "record.json")


def _read(path: Path) -> RunRecord:
    data = json.loads(path.read_text())
    return RunRecord(**data | {"state": RunState(data["state"])})
