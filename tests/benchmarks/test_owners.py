"""The simulation of many owners: conservation, limits, and a case worked out by hand."""

import pytest

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
