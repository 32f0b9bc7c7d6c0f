"""The record of runs: states, idempotent starts, cancellation marks, events."""

from pathlib import Path

import pytest

from cluster.errors import RunNotFoundError
from cluster.runs import RunBook, RunRecord
from cluster.states import FOLLOWERS, RunState
from mos.errors import BadInputError


def record(run_id: str = "concept-alice-robot-0123") -> RunRecord:
    return RunRecord(run_id=run_id, kind="concept", owner="alice", subject="alice/robot", spec={"seed": 1})


def test_a_run_is_remembered_by_the_next_command(tmp_path: Path) -> None:
    RunBook(tmp_path).start(record())
    RunBook(tmp_path).move("concept-alice-robot-0123", RunState.RUNNING, attempts=1)
    found = RunBook(tmp_path).get("concept-alice")
    assert (found.state, found.attempts, found.spec) == (RunState.RUNNING, 1, {"seed": 1})


def test_taking_a_run_up_again_keeps_its_birth_and_its_attempts(tmp_path: Path) -> None:
    book = RunBook(tmp_path)
    first = book.start(record())
    book.move(first.run_id, RunState.RUNNING, attempts=2)
    book.ask_to_cancel(first.run_id)
    book.move(first.run_id, RunState.CANCELLED)
    again = book.start(record())
    assert (again.created_at, again.attempts, again.state) == (first.created_at, 2, RunState.QUEUED)
    assert not book.is_cancelled(first.run_id)


def test_a_step_that_no_run_can_take_is_refused(tmp_path: Path) -> None:
    book = RunBook(tmp_path)
    book.start(record())
    book.move("concept-alice-robot-0123", RunState.DONE)
    with pytest.raises(AssertionError, match="done -> running"):
        book.move("concept-alice-robot-0123", RunState.RUNNING)


def test_an_unknown_or_ambiguous_run_is_an_error_that_names_the_way_on(tmp_path: Path) -> None:
    book = RunBook(tmp_path)
    book.start(record("concept-alice-robot-1"))
    book.start(record("concept-alice-robot-2"))
    with pytest.raises(RunNotFoundError, match="several runs begin so"):
        book.get("concept-alice")
    with pytest.raises(RunNotFoundError, match="mos jobs ls"):
        book.get("concept-bob")


def test_a_run_id_never_climbs_out_of_its_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="run id"):
        RunBook(tmp_path).find("../../etc")


def test_events_come_back_in_order(tmp_path: Path) -> None:
    book = RunBook(tmp_path)
    run = book.start(record())
    for step in range(3):
        book.note(run.run_id, {"event": "step", "step": step})
    assert [event["step"] for event in book.events(run.run_id, skip=1)] == [1, 2]


def test_every_state_has_its_followers() -> None:
    assert set(FOLLOWERS) == set(RunState)
    assert not FOLLOWERS[RunState.DONE]
