"""Intervals of work: how many processes overlap."""

import json

import pytest

from cluster.timeline import Stopwatch, WorkInterval, measured, most_at_once, num_processes


def interval(process_id: int, started_at: float, ended_at: float) -> WorkInterval:
    return WorkInterval(
        role="trainer",
        label="",
        actor="",
        host="here",
        process_id=process_id,
        started_at=started_at,
        ended_at=ended_at,
        cpu_s=0.0,
        peak_rss_bytes=0,
    )


def test_processes_at_once_are_counted_by_their_overlap() -> None:
    intervals = [interval(1, 0, 10), interval(2, 5, 15), interval(3, 10, 20), interval(1, 16, 18)]
    assert most_at_once(intervals) == 2
    assert num_processes(intervals) == 3
    assert most_at_once([]) == 0


def test_one_process_with_two_tasks_is_one_process() -> None:
    assert most_at_once([interval(1, 0, 10), interval(1, 5, 15)]) == 1


def test_an_interval_is_measured_even_if_the_work_fails() -> None:
    intervals: list[WorkInterval] = []
    with pytest.raises(ZeroDivisionError), measured(intervals, "solver", "bin 0"):
        print(sum(i * i for i in range(200_000)) / 0)
    assert intervals[0].label == "bin 0"
    assert intervals[0].ended_at > intervals[0].started_at
    assert 0 < intervals[0].cpu_s < 5


def test_an_interval_survives_json() -> None:
    watch = Stopwatch("driver", "all").stop()
    assert WorkInterval.from_dict(json.loads(json.dumps(watch.as_dict()))) == watch
