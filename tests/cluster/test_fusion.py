"""Fusion on actors: the same bits as in one process, whatever happens to the workers."""

import os
import signal
from pathlib import Path

import pytest

from cluster.errors import PendingTimeoutError, UnsatisfiableError
from cluster.failure import RetryPolicy
from cluster.fusion import FusionWorker, RayFusionExecutor
from cluster.placement import Resources
from cluster.pool import Call, PoolOptions, WorkerPool
from cluster.session import Session
from cluster.timeline import WorkInterval, num_processes
from mos.base_model import BaseModel, load_base
from mos.errors import BadInputError
from mos.fusion import FusedModel, FusionSource, fuse, write_fused
from tests.bases import saved_random_base
from tests.cluster.work import FUSION, everything_is_back, fusion_sources, living
from tests.jobs.commands import wait_until

CONFIG = FUSION
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_random_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def base(base_path: Path) -> BaseModel:
    return load_base(base_path)


@pytest.fixture(scope="module")
def sources(base: BaseModel) -> list[FusionSource]:
    return fusion_sources(base, "alice", "bob", "carol")


def written(model: FusedModel, folder: Path) -> bytes:
    return (write_fused(model, folder) / "fused.safetensors").read_bytes()


def options(**more: object) -> PoolOptions:
    return PoolOptions(num_workers=2, retries=RetryPolicy(max_retries=2, first_wait_s=0.0), **more)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writ")
def test_a_fusion_on_two_actors_one_killed_midway_gives_the_bits_of_one_process(
    ray_session: Session, base: BaseModel, base_path: Path, sources: list[FusionSource], tmp_path: Path
) -> None:
    serial = fuse(base, sources, CONFIG)
    intervals: list[WorkInterval] = []
    retries: list[str] = []
    with RayFusionExecutor(
        str(base_path), CONFIG, options(), on_interval=intervals.append, on_retry=retries.append
    ) as executor:
        victim = executor.pool.process_ids()[0]
        assert len([name for name in living() if name.startswith("mos-fusion-")]) == 2

        def kill_between_stages(line: str) -> None:
            if line.startswith("text-encoder:") and "layers" in line:
                os.kill(victim, signal.SIGKILL)

        parallel = fuse(base, sources, CONFIG, executor=executor, progress=kill_between_stages)
    assert written(parallel, tmp_path / "parallel") == written(serial, tmp_path / "serial")
    assert retries
    for role in ("recorder", "solver"):
        assert num_processes([item for item in intervals if item.role == role]) >= 2
    wait_until(everything_is_back, "no actor lives, all resources are free", timeout_s=60)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writ")
@pytest.mark.parametrize("stage", ["text-encoder", "cross-attention", "spatial"])
@pytest.mark.parametrize("role", ["recorder", "solver"])
def test_a_fusion_worker_killed_inside_a_stage_changes_nothing(
    ray_session: Session,
    base: BaseModel,
    base_path: Path,
    sources: list[FusionSource],
    tmp_path: Path,
    stage: str,
    role: str,
) -> None:
    """When one worker has done the first piece of a stage, the other, which is at its own, is killed."""
    serial = fuse(base, sources, CONFIG)
    retries: list[str] = []
    killed: list[int] = []

    def kill_the_other(interval: WorkInterval) -> None:
        if not killed and interval.role == role and interval.label.startswith(stage):
            killed.extend(process_ids - {interval.process_id})
            os.kill(killed[0], signal.SIGKILL)

    with RayFusionExecutor(
        str(base_path), CONFIG, options(), on_interval=kill_the_other, on_retry=retries.append
    ) as executor:
        process_ids = set(executor.pool.process_ids())  # asked for now: a worker at its piece does not answer
        parallel = fuse(base, sources, CONFIG, executor=executor)
    assert killed
    assert retries
    assert written(parallel, tmp_path / "parallel") == written(serial, tmp_path / "serial")
    wait_until(everything_is_back, "no actor lives, all resources are free", timeout_s=60)


class Failing:
    """A worker whose calls fail in the ways a pool must tell apart."""

    def __init__(self, *, name: str) -> None:
        self.name = name

    def place(self) -> int:
        return os.getpid()

    def refuse(self) -> None:
        raise BadInputError("no such thing")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_pool_raises_user_errors_as_they_are_and_gives_up_on_a_deadly_call(ray_session: Session) -> None:
    policy = RetryPolicy(max_retries=1, first_wait_s=0.0)
    retries: list[str] = []
    settings = PoolOptions(num_workers=1, retries=policy)
    with WorkerPool("failing", Failing, {}, settings, on_retry=retries.append) as pool:
        with pytest.raises(BadInputError, match="no such thing"):
            pool.map([Call("refuse", (), "refuse")])
        with pytest.raises(Exception, match="failed 2 times; the limit is 1 retries"):
            pool.map([Call("die", (), "die")])
    assert len(retries) == 1


@pytest.mark.slow
def test_two_workers_share_a_gpu_by_halves_and_one_too_many_is_given_up_with_what_is_free(ray_session: Session) -> None:
    halves = Resources(num_cpus=0.5, num_gpus=0.5)
    with WorkerPool("halves", Failing, {}, PoolOptions(num_workers=2, resources=halves)) as pool:
        assert len(set(pool.process_ids())) == 2
    with pytest.raises(PendingTimeoutError, match=r"[1-3] of 3 workers .* 0 GPU of 1 node with 2 CPU"):
        WorkerPool("halves", Failing, {}, PoolOptions(num_workers=3, resources=halves, pending_timeout_s=20.0))
    with pytest.raises(UnsatisfiableError, match=r"0.5 CPU \+ 2 GPU, and no node has that: 1 node with 2 CPU \+ 1 GPU"):
        WorkerPool("whole", Failing, {}, PoolOptions(resources=Resources(num_cpus=0.5, num_gpus=2)))
    wait_until(everything_is_back, "no actor lives, all resources are free", timeout_s=60)


@pytest.mark.slow
def test_a_closed_pool_gives_its_resources_back(ray_session: Session) -> None:
    wait_until(everything_is_back, "what other tests held is given back", timeout_s=60)
    pool = WorkerPool("fusion", FusionWorker, {"base": "", "config": CONFIG}, PoolOptions(num_workers=2))
    wait_until(lambda: not everything_is_back(), "its workers hold something", timeout_s=60)
    pool.close()
    wait_until(everything_is_back, "no actor lives, all resources are free", timeout_s=60)
