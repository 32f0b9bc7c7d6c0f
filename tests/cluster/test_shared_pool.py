"""The cluster's pool of trainers: shared by owners, bound by their limits, and never left over."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.places import RegistryPlaces
from cluster.progress import Event
from cluster.session import Session
from cluster.shared_pool import open_pool, shared_config, train_in_shared_pool
from cluster.slots import Limits
from cluster.staging import read_staged
from cluster.supervisor import PoolConfig
from cluster.trainer import TrainingRequest
from mos.base_model import load_base
from mos.errors import BadInputError
from tests.bases import saved_random_base
from tests.cluster.work import TRAINING, concept_request, everything_is_back, living, undisturbed_artifact
from tests.jobs.commands import wait_until

ONE_TRAINER = PoolConfig(limits=Limits(max_workers=1, slots_per_worker=2, max_slots_per_owner=1), lease_s=4.0)


def test_a_cluster_is_run_by_its_machines_and_its_keepers_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    laptop = shared_config([{"CPU": 2.0}])
    assert (laptop.limits.max_workers, laptop.limits.slots_per_worker, laptop.resources.num_gpus) == (3, 1, 0)
    farm = shared_config([{"CPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}])
    assert (farm.limits.max_workers, farm.limits.slots_per_worker, farm.resources.num_gpus) == (8, 8, 1)
    monkeypatch.setenv("MOS_SLOTS_PER_OWNER", "2")
    assert shared_config([{"CPU": 2.0}]).limits.max_slots_per_owner == 2
    monkeypatch.setenv("MOS_TRAINER_GPUS", "0.5")
    assert shared_config([{"CPU": 16.0, "GPU": 4.0}]).limits.max_workers == 8
    assert shared_config([{"CPU": 2.0}]).resources.num_gpus == 0.5
    monkeypatch.setenv("MOS_MAX_TRAINERS", "many")
    with pytest.raises(BadInputError, match="MOS_MAX_TRAINERS=many"):
        shared_config([{"CPU": 2.0}])


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_random_base(tmp_path_factory.mktemp("base"))


def train(
    request: TrainingRequest,
    url: str,
    base: Path,
    hear: Callable[[Event], None],
    is_cancelled: Callable[[str], bool] = lambda _: False,
) -> Event:
    return train_in_shared_pool(
        request,
        url,
        str(base),
        config=ONE_TRAINER,
        is_cancelled=is_cancelled,
        on_event=lambda _, event: hear(event),
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_pool_that_is_killed_costs_its_runs_only_the_steps_since_their_checkpoint(
    ray_session: Session, base_path: Path, tmp_path: Path
) -> None:
    import ray

    url = str(tmp_path)
    events: list[Event] = []
    request = concept_request("alice", url)
    killed: list[int] = []

    def kill_the_pool(event: Event) -> None:
        events.append(event)
        if event["event"] == "checkpoint" and not killed:
            (name,) = [name for name in living() if name.startswith("mos-trainers-")]
            killed.append(ray.get(ray.get_actor(name, namespace="mos").place.remote()))
            os.kill(killed[0], signal.SIGKILL)

    outcome = train(request, url, base_path, kill_the_pool)
    assert killed
    assert outcome["event"] == "staged"
    assert "retrying" in [event["event"] for event in events]
    assert [event["step"] for event in events if event["event"] == "started"][-1] >= request.checkpoint_every
    assert read_staged(RegistryPlaces(url)("concept-alice"))[0] == undisturbed_artifact(load_base(base_path), "alice")
    wait_until(everything_is_back, "no actor lives, all resources are free", timeout_s=60)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_whose_driver_is_gone_is_stopped_with_its_checkpoint_and_the_pool_ends(
    ray_session: Session, base_path: Path, tmp_path: Path
) -> None:
    import ray

    url = str(tmp_path)
    request = concept_request("alice", url, TRAINING.with_options(steps=20_000))
    pool = open_pool(url, ONE_TRAINER)
    ray.get(pool.join.remote(request, str(base_path)))
    seen = wait_until(
        lambda: [e for e in ray.get(pool.events.remote("concept-alice", 0)) if e["event"] == "step"], "a step"
    )
    wait_until(everything_is_back, "the pool is gone", timeout_s=60)
    pointers = list(RegistryPlaces(url)("concept-alice").names("pointers"))
    assert pointers
    events: list[Event] = []
    has_started = lambda _: "started" in [event["event"] for event in events]  # noqa: E731
    outcome = train(request, url, base_path, events.append, has_started)
    assert outcome["event"] == "cancelled"
    started = next(event for event in events if event["event"] == "started")
    assert started["step"] >= seen[0]["step"]
    wait_until(everything_is_back, "no actor lives, all resources are free", timeout_s=60)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_owner_at_the_limit_waits_while_another_owner_gets_the_slot(
    ray_session: Session, base_path: Path, tmp_path: Path
) -> None:
    url = str(tmp_path)
    config = TRAINING.with_options(steps=40)
    first, other = concept_request("alice", url, config), concept_request("bob", url, config)
    second = replace(first, run_id="concept-alice-2")
    place = RegistryPlaces(url)
    for name in place("concept-alice").names("pictures"):
        place(second.run_id).put(name, place("concept-alice").get(name))
    events: dict[str, list[Event]] = {run.run_id: [] for run in (first, second, other)}
    threads = [
        threading.Thread(target=train, args=(run, url, base_path, events[run.run_id].append))
        for run in (first, second, other)
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.5)
    for thread in threads:
        thread.join()

    def at(run_id: str, kind: str) -> float:
        return float(next(event["at"] for event in events[run_id] if event["event"] == kind))

    assert at("concept-bob", "started") < at("concept-alice", "staged")
    alices = sorted((at(run, "started"), at(run, "staged")) for run in ("concept-alice", "concept-alice-2"))
    assert alices[0][1] <= alices[1][0]
    pids = {event["pid"] for found in events.values() for event in found if event["event"] == "started"}
    assert len(pids) == 1
    wait_until(everything_is_back, "no actor lives, all resources are free", timeout_s=60)
