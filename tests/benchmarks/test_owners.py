"""The simulation of many owners: conservation, limits, and a case worked out by hand."""

import json
from pathlib import Path

import pytest

from benchmarks.cluster import gpu_step_seconds, many_owners
from benchmarks.owners import Arrival, arrivals, simulate
from cluster.slots import Limits


def test_two_runs_on_one_slot_wait_for_each_other() -> None:
    runs = [Arrival(run_id=str(n), owner=f"o{n}", at_s=0.0, steps=10) for n in range(2)]
    found = simulate(runs, num_gpus=1, slots_per_gpu=1, step_seconds={1: 2.0}, limits=Limits())
    assert found.waits_s == (0.0, 20.0)
    assert found.makespan_s == 40.0
    assert found.utilisation == pytest.approx(1.0)
    assert found.concepts_per_gpu_hour == pytest.approx(180.0)


def test_nobody_waits_where_there_is_room_for_all() -> None:
    runs = arrivals(num_owners=20, hours=1.0, steps=(10,), seed=1)
    found = simulate(runs, num_gpus=64, slots_per_gpu=4, step_seconds={4: 0.01}, limits=Limits())
    assert set(found.waits_s) == {0.0}
    assert found.fairness == pytest.approx(1.0)


def test_a_single_run_is_not_kept_waiting_by_an_owner_with_many() -> None:
    many = [Arrival(run_id=f"a{n}", owner="alice", at_s=0.0, steps=10) for n in range(10)]
    one = Arrival(run_id="b", owner="bob", at_s=1.0, steps=10)
    found = simulate([*many, one], num_gpus=1, slots_per_gpu=1, step_seconds={1: 1.0}, limits=Limits())
    assert found.waits_s[-1] == pytest.approx(9.0)


def test_the_same_seed_gives_the_same_owners() -> None:
    assert arrivals(num_owners=50, hours=2.0, steps=(1, 2), seed=3) == arrivals(
        num_owners=50, hours=2.0, steps=(1, 2), seed=3
    )


def test_step_times_are_those_the_training_benchmark_measured_on_a_gpu_if_it_did(tmp_path: Path) -> None:
    results = tmp_path / "train.json"
    assert {row.value for row in many_owners(results)} == {None}
    rows = [("GPU: 1 slots", 10.0), ("GPU: 8 slots", 40.0), ("GPU: peak memory", 5000.0), ("GPU: 8 slots / peer", 2.1)]
    results.write_text(json.dumps({"rows": [{"name": name, "value": value} for name, value in rows]}))
    assert gpu_step_seconds(results) == {1: pytest.approx(0.1), 8: pytest.approx(0.2)}
    assert all(row.value is not None for row in many_owners(results))
