"""Checkpoints: a kill between any two writes loses at most the newest step, and an old attempt cannot win."""

import pytest

from cluster.checkpoint import Checkpoints
from cluster.errors import FencedError
from mos.errors import CheckFailedError
from tests.cluster.places import KilledError, MemoryPlace


def test_the_newest_checkpoint_is_the_last_one_saved() -> None:
    place = MemoryPlace()
    first = Checkpoints(place, attempt=1)
    assert first.newest() is None
    for step in (10, 20, 30):
        first.save(step, f"state {step}".encode())
    found = Checkpoints(place, attempt=2).newest()
    assert found is not None
    assert (found.data, found.pointer.step, found.pointer.attempt) == (b"state 30", 30, 1)


def test_only_the_last_two_checkpoints_stay() -> None:
    place = MemoryPlace()
    checkpoints = Checkpoints(place, attempt=1)
    for step in range(6):
        checkpoints.save(step, f"state {step}".encode())
    assert len(list(place.names("checkpoints"))) == 2
    assert len(list(place.names("pointers"))) == 2


def test_a_kill_before_any_write_leaves_a_whole_checkpoint_in_force() -> None:
    points = 0
    for kill_before in range(1000):
        place = MemoryPlace()
        checkpoints = Checkpoints(place, attempt=1)
        for step in (1, 2, 3):
            checkpoints.save(step, f"state {step}".encode())
        place.kill_before = place.writes + kill_before
        try:
            checkpoints.save(4, b"state 4")
        except KilledError:
            points += 1
        place.kill_before = None
        found = Checkpoints(place, attempt=2).newest()
        assert found is not None
        assert found.data == f"state {found.pointer.step}".encode()
        assert found.pointer.step in (3, 4)
        Checkpoints(place, attempt=2).save(5, b"state 5")
        after = Checkpoints(place, attempt=3).newest()
        assert after is not None
        assert after.data == b"state 5"
        if points <= kill_before:
            break
    assert points >= 3


def test_a_worker_given_up_for_lost_is_fenced_by_the_next_attempt() -> None:
    place = MemoryPlace()
    zombie = Checkpoints(place, attempt=1)
    zombie.save(10, b"ten")
    successor = Checkpoints(place, attempt=2)
    assert successor.newest() is not None
    zombie.save(11, b"eleven, late")
    successor.save(12, b"twelve")
    with pytest.raises(FencedError, match="attempt 1 is over: attempt 2"):
        zombie.save(13, b"thirteen")
    newest = Checkpoints(place, attempt=3).newest()
    assert newest is not None
    assert newest.data == b"twelve"


def test_a_write_whose_answer_was_lost_is_recognised_as_ours() -> None:
    place = MemoryPlace()
    first = Checkpoints(place, attempt=1)
    pointer = first.save(1, b"one")
    again = Checkpoints(place, attempt=1)
    assert again.save(1, b"one") == pointer
    assert len(list(place.names("pointers"))) == 1


def test_changed_bytes_are_refused() -> None:
    place = MemoryPlace()
    pointer = Checkpoints(place, attempt=1).save(1, b"one")
    place.objects[f"checkpoints/{pointer.sha256}"] = b"eno"
    with pytest.raises(CheckFailedError, match="do not match"):
        Checkpoints(place, attempt=1).newest()
