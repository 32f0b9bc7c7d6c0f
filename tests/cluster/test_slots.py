"""Admission: fair between owners, within limits, by memory and throughput."""

from cluster.slots import Limits, QueuedRun, WorkerRoom, admit, slots_worth_filling

FREE = 10**9


def run(run_id: str, owner: str, base: str = "small", memory_bytes: int = 0) -> QueuedRun:
    return QueuedRun(run_id=run_id, owner=owner, base=base, memory_bytes=memory_bytes)


def worker(name: str, free_slots: int, base: str = "small", free_bytes: int = FREE) -> WorkerRoom:
    return WorkerRoom(name=name, base=base, free_slots=free_slots, free_bytes=free_bytes)


def test_an_owner_with_many_runs_does_not_keep_others_waiting() -> None:
    queue = [run("a1", "alice"), run("a2", "alice"), run("a3", "alice"), run("b1", "bob")]
    admitted = admit(queue, [worker("w", 2)], {}, Limits())
    assert [admission.run_id for admission in admitted] == ["a1", "b1"]


def test_slots_already_held_count_against_their_owner() -> None:
    queue = [run("a2", "alice"), run("b1", "bob")]
    assert [admission.run_id for admission in admit(queue, [worker("w", 1)], {"alice": 1}, Limits())] == ["b1"]


def test_an_owners_limit_holds_even_when_slots_stay_free() -> None:
    queue = [run("a1", "alice"), run("a2", "alice"), run("a3", "alice")]
    assert len(admit(queue, [worker("w", 3)], {"alice": 1}, Limits(max_slots_per_owner=2))) == 1


def test_a_run_goes_only_where_its_base_and_its_memory_fit() -> None:
    workers = [worker("other", 4, base="large"), worker("full", 4, free_bytes=5), worker("fits", 1)]
    assert [item.worker for item in admit([run("a", "alice", memory_bytes=10)], workers, {}, Limits())] == ["fits"]
    assert admit([run("a", "alice", memory_bytes=FREE + 1)], workers, {}, Limits()) == []


def test_a_run_that_fits_nowhere_does_not_block_the_next() -> None:
    queue = [run("huge", "alice", memory_bytes=FREE + 1), run("small", "bob")]
    assert [item.run_id for item in admit(queue, [worker("w", 1)], {}, Limits())] == ["small"]


def test_runs_spread_over_the_workers_with_most_room() -> None:
    queue = [run("a", "alice"), run("b", "bob"), run("c", "carol")]
    placed = admit(queue, [worker("one", 1), worker("two", 2)], {}, Limits())
    assert sorted(item.worker for item in placed) == ["one", "two", "two"]


def test_a_trainer_tries_more_slots_until_more_of_them_are_slower() -> None:
    assert slots_worth_filling({}, 8) == 8
    assert slots_worth_filling({1: 1.0, 2: 1.2, 4: 1.6}, 8) == 8
    assert slots_worth_filling({1: 1.0, 2: 1.2, 4: 1.6, 8: 4.0}, 8) == 4
    assert slots_worth_filling({1: 1.0, 2: 2.1}, 8) == 8  # within the noise of a measurement
    assert slots_worth_filling({1: 1.0, 2: 3.0}, 8) == 1
    assert slots_worth_filling({1: 1.0, 8: 2.0}, 4) == 4


def test_among_equals_the_owner_whose_turn_is_longest_ago_comes_first() -> None:
    queue = [run("a2", "alice"), run("b1", "bob")]
    assert [item.run_id for item in admit(queue, [worker("w", 1)], {}, Limits(), {"alice": 1})] == ["b1"]
    assert [item.run_id for item in admit(queue, [worker("w", 1)], {}, Limits(), {"alice": 1, "bob": 2})] == ["a2"]
