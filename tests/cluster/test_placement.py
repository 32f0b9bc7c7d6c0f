"""What workers ask for, and the answer when nobody has it."""

import pytest

from cluster.errors import UnsatisfiableError
from cluster.placement import (
    GROWS_VARIABLE,
    TRAINER,
    Resources,
    check_satisfiable,
    gpu_trainer,
    pending_timeout_s,
    solver,
)
from mos.errors import BadInputError

LAPTOP = {"CPU": 2.0, "memory": 8.0 * 2**30}
GPU_NODE = {"CPU": 16.0, "GPU": 2.0, "memory": 100.0 * 2**30}


def test_three_trainers_fit_on_two_cores_and_leave_room_for_a_solver() -> None:
    assert 3 * TRAINER.num_cpus + 0.5 <= 2


def test_cpus_and_gpus_are_both_stated() -> None:
    assert Resources(num_cpus=0.5).options() == {"num_cpus": 0.5, "num_gpus": 0.0}
    assert gpu_trainer(0.25).options() == {"num_cpus": 1.0, "num_gpus": 0.25}


def test_what_no_node_has_is_refused_with_what_is_asked_and_what_there_is() -> None:
    with pytest.raises(UnsatisfiableError) as caught:
        check_satisfiable("trainer of alice/robot", gpu_trainer(4), [LAPTOP, GPU_NODE])
    message = str(caught.value)
    assert "1 CPU + 4 GPU" in message
    assert "2 nodes with 16 CPU + 2 GPU + 100.0 GiB, 2 CPU + 0 GPU + 8.0 GiB" in message


def test_a_cluster_that_grows_is_asked_for_what_it_does_not_have_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pending_timeout_s() == 300
    monkeypatch.setenv(GROWS_VARIABLE, "1")
    check_satisfiable("trainer", gpu_trainer(1), [LAPTOP])
    assert pending_timeout_s() == 1800


def test_two_nodes_with_half_each_do_not_add_up() -> None:
    with pytest.raises(UnsatisfiableError):
        check_satisfiable("solver", Resources(num_cpus=3), [LAPTOP, LAPTOP])
    check_satisfiable("solver", Resources(num_cpus=2), [LAPTOP, LAPTOP])


def test_fusion_workers_ask_for_a_share_of_a_gpu_only_where_the_cluster_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert str(solver()) == "0.5 CPU"
    monkeypatch.setenv("MOS_FUSION_GPUS", "0.25")
    assert solver().options() == {"num_cpus": 0.5, "num_gpus": 0.25}
    monkeypatch.setenv("MOS_FUSION_GPUS", "2")
    with pytest.raises(BadInputError, match="MOS_FUSION_GPUS=2: expected a share of one GPU"):
        solver()


def test_resources_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="whole numbers"):
        Resources(num_cpus=1, num_gpus=1.5)
    with pytest.raises(ValueError, match="negative"):
        Resources(num_cpus=-1)
