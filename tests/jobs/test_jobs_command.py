"""`mos jobs`: runs of other terminals, dead drivers, cancelling, waiting."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cluster.runs import RunBook, RunRecord
from cluster.states import RunState
from jobs import remote_runs
from jobs.cli import cli
from jobs.runs import is_at_work, known_run
from mos.errors import BadInputError, JobFailedError, MosError, TryAgainError

RUN = "concept-alice-robot-0123"


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunBook:
    monkeypatch.setenv("MOS_HOME", str(tmp_path))
    return RunBook()


def start(book: RunBook, process_id: int) -> None:
    record = RunRecord(run_id=RUN, kind="concept", owner="alice", subject="alice/robot", process_id=process_id)
    book.start(record)
    book.move(RUN, RunState.RUNNING)


def mos(*words: str) -> Result:
    return CliRunner().invoke(cli, ["jobs", *words])


def test_a_run_at_work_is_shown_as_running(book: RunBook) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        start(book, other.pid)
        (shown,) = json.loads(mos("ls", "--json").stdout)
        other.communicate(b"\n")
    assert (shown["run_id"], shown["state"]) == (RUN, "running")


def test_a_run_whose_driver_died_is_not_running_any_more(book: RunBook) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    start(book, done.pid)
    shown = mos("ls").stdout
    assert "failed" in shown
    assert "mos jobs retry" in shown


def test_a_cluster_that_does_not_answer_hides_no_run_and_is_named_once(book: RunBook) -> None:
    for number in (1, 2):
        record = RunRecord(run_id=f"{RUN}-{number}", kind="concept", owner="alice", subject="alice/robot")
        book.start(replace(record, address="http://127.0.0.1:9", submission_id=record.run_id))
        book.move(record.run_id, RunState.RUNNING)
    listed = mos("ls", "--json")
    assert [shown["state"] for shown in json.loads(listed.stdout)] == ["running", "running"]
    assert listed.stderr.count("no job server answers") == 1


def test_terminals_that_follow_one_run_at_once_write_each_of_its_events_down_once(
    book: RunBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = RunRecord(run_id=RUN, kind="concept", owner="alice", subject="alice/robot", spec={"registry": "r"})
    book.start(replace(record, address="http://127.0.0.1:9", submission_id=RUN))
    told = [{"event": "step", "step": step, "steps": 9, "loss": 1.0, "step_s": 1.0} for step in range(1, 10)]

    def slowly(*_: str) -> list[dict[str, object]]:
        time.sleep(0.05)
        return told

    monkeypatch.setattr(remote_runs, "job_status", lambda *_: "RUNNING")
    monkeypatch.setattr(remote_runs, "job_events", slowly)
    terminals = [threading.Thread(target=remote_runs.remote_state, args=(book, book.get(RUN))) for _ in range(4)]
    for terminal in terminals:
        terminal.start()
    for terminal in terminals:
        terminal.join()
    assert [event["step"] for event in book.events(RUN)] == list(range(1, 10))


def test_cancel_leaves_a_mark_that_the_driver_sees(book: RunBook) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        start(book, other.pid)
        assert mos("cancel", RUN).exit_code == 0
        other.communicate(b"\n")
    assert book.is_cancelled(RUN)


def test_a_spec_sent_again_joins_its_run_while_that_is_at_work_in_the_same_registry(book: RunBook) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        record = RunRecord(run_id=RUN, kind="concept", owner="alice", subject="alice/robot", spec={"registry": "r"})
        book.start(replace(record, process_id=other.pid))
        book.move(RUN, RunState.RUNNING)
        known = known_run(book, RUN, "r", None)
        assert known is not None
        assert is_at_work(book, known, None)
        assert known_run(book, RUN, "another", None) is None
        book.ask_to_cancel(RUN)
        assert not is_at_work(book, known, None)
        other.communicate(b"\n")


def test_logs_are_the_runs_events_in_order(book: RunBook) -> None:
    start(book, os.getpid())
    book.note(RUN, {"event": "started", "pid": 4, "step": 0, "steps": 10})
    book.note(RUN, {"event": "step", "step": 5, "steps": 10, "loss": 0.25, "step_s": 2.0, "embedding_norm": 0.4})
    book.move(RUN, RunState.DONE, result="alice/robot@1")
    first, second = mos("logs", RUN).stdout.splitlines()
    assert "alice/robot  training on process 4 from step 0 of 10" in first
    assert "step 5/10  loss 0.2500  norm 0.40  2.00 s a step  10 s left" in second


def test_waiting_for_a_failed_run_ends_with_its_error_and_for_a_done_one_with_its_result(book: RunBook) -> None:
    start(book, os.getpid())
    book.move(RUN, RunState.FAILED, error="no pictures")
    assert_error(mos("wait", RUN), JobFailedError, "no pictures")
    start(book, os.getpid())
    book.move(RUN, RunState.DONE, result="alice/robot@1")
    assert "alice/robot@1" in mos("wait", RUN).stdout


def test_waiting_has_an_end(book: RunBook) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        start(book, other.pid)
        assert_error(mos("wait", RUN, "--timeout", "0"), TryAgainError, "still running")
        other.communicate(b"\n")


def test_only_what_ended_badly_is_tried_again_and_only_what_works_is_cancelled(book: RunBook) -> None:
    start(book, os.getpid())
    book.move(RUN, RunState.DONE)
    assert_error(mos("retry", RUN), BadInputError, "only cancelled or failed")
    assert_error(mos("cancel", RUN), BadInputError, "nothing to stop")


def assert_error(result: Result, kind: type[MosError], text: str) -> None:
    assert isinstance(result.exception, kind)
    assert text in str(result.exception)
