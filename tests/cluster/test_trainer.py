"""Training by actors: the same artifacts as the plain loop, whatever happens to the workers."""

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.checkpoint import RunPlace
from cluster.failure import RetryPolicy
from cluster.placement import Resources
from cluster.places import RegistryPlaces
from cluster.progress import Event, event_line
from cluster.session import Session
from cluster.slots import Limits
from cluster.staging import neutral, read_staged
from cluster.supervisor import PoolConfig, Supervisor
from cluster.timeline import WorkInterval, most_at_once
from cluster.trainer import OpenPlace, TrainerWorker
from mos.artifact import artifact_bytes
from mos.base_model import load_base
from mos.training import TrainingConfig
from mos.training.contest import train_seeds
from tests.bases import saved_random_base
from tests.cluster.kills import KillingPlaces
from tests.cluster.work import (
    OWNERS,
    TRAINING,
    concept_request,
    everything_is_back,
    published_versions,
    undisturbed_artifact,
)
from tests.jobs.commands import wait_until
from tests.mos.training.concepts import made_up_concept

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_random_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def config() -> TrainingConfig:
    return TRAINING


@pytest.fixture(scope="module")
def undisturbed(base_path: Path, config: TrainingConfig) -> dict[str, bytes]:
    """What the plain loop makes of each owner's concept."""
    base = load_base(base_path)
    return {owner: undisturbed_artifact(base, owner, config) for owner in OWNERS}


class Watch:
    """Remembers every event."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Event]] = []

    def __call__(self, run_id: str, event: Event) -> None:
        self.events.append((run_id, event))

    def of(self, kind: str) -> list[Event]:
        return [event for _, event in self.events if event["event"] == kind]


def pool(open_place: OpenPlace, watch: Watch, *, workers: int = 1, slots: int = 1, **more: object) -> Supervisor:
    settings = PoolConfig(
        limits=Limits(max_workers=workers, slots_per_worker=slots),
        retries=RetryPolicy(max_retries=2, first_wait_s=0.0),
        heartbeat_timeout_s=120.0,
    )
    return Supervisor(open_place, settings, on_event=watch, **more)  # type: ignore[arg-type]


@dataclass(frozen=True)
class MeetingPlaces:
    """Opens a run's place on a worker only once every run is being opened: so all train at once."""

    url: str
    folder: Path
    number: int
    driver: int

    def __call__(self, run_id: str) -> RunPlace:
        if os.getpid() != self.driver:
            (self.folder / run_id).touch()
            deadline = time.monotonic() + 200
            while len(list(self.folder.iterdir())) < self.number and time.monotonic() < deadline:
                time.sleep(0.05)
        return RegistryPlaces(self.url)(run_id)


def test_two_actors_at_once_make_what_the_plain_loop_makes(
    ray_session: Session, base_path: Path, config: TrainingConfig, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    url, watch = str(tmp_path / "registry"), Watch()
    (tmp_path / "registry").mkdir()
    (tmp_path / "met").mkdir()
    supervisor = pool(MeetingPlaces(url, tmp_path / "met", len(OWNERS), os.getpid()), watch, workers=2)
    for owner in OWNERS:
        supervisor.enqueue(concept_request(owner, url, config), str(base_path))
    outcomes = supervisor.run()
    assert [event["event"] for event in outcomes.values()] == ["staged", "staged"], outcomes
    for owner, expected in undisturbed.items():
        assert read_staged(RegistryPlaces(url)(f"concept-{owner}"))[0] == expected
    intervals = [WorkInterval.from_dict(event["interval"]) for event in outcomes.values()]
    assert most_at_once(intervals) == 2
    assert len(watch.of("step")) == 2 * config.steps // 2


def check_kill(
    kill: tuple[str, int, bool],
    base_path: Path,
    config: TrainingConfig,
    expected: bytes,
    tmp_path: Path,
) -> Watch:
    url, watch = str(tmp_path / "registry"), Watch()
    (tmp_path / "registry").mkdir()
    kind, number, is_after = kill
    places = KillingPlaces(url, kind, number, is_after, tmp_path / "killed")
    supervisor = pool(places, watch)
    supervisor.enqueue(concept_request("alice", url, config), str(base_path))
    outcomes = supervisor.run()
    assert (tmp_path / "killed").exists()
    assert outcomes["concept-alice"]["event"] == "staged"
    assert read_staged(RegistryPlaces(url)("concept-alice"))[0] == expected
    assert published_versions(url, tmp_path / "home") == ["000001.json"]
    assert list(RegistryPlaces(url)("concept-alice").names("pictures")) == []
    wait_until(everything_is_back, "no actor lives, all resources are free", timeout_s=60)
    assert watch.of("retrying")  # a busy machine may lose a worker of its own besides
    return watch


def test_a_trainer_killed_between_checkpoint_and_pointer_changes_nothing(
    ray_session: Session, base_path: Path, config: TrainingConfig, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    watch = check_kill(("checkpoints/", 2, True), base_path, config, undisturbed["alice"], tmp_path)
    assert watch.of("started")[-1]["step"] == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "kill",
    [
        ("checkpoints/", 1, False),
        ("checkpoints/", 1, True),
        ("pointers/", 1, False),
        ("pointers/", 2, True),
        ("delete checkpoints/", 1, False),
        ("delete checkpoints/", 1, True),
        ("delete pointers/", 1, True),
        ("staged/", 1, False),
        ("staged/", 1, True),
        ("staged/", 2, True),
    ],
)
def test_a_trainer_killed_at_any_point_of_a_checkpoint_changes_nothing(
    ray_session: Session,
    base_path: Path,
    config: TrainingConfig,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    kill: tuple[str, int, bool],
) -> None:
    check_kill(kill, base_path, config, undisturbed["alice"], tmp_path)


def test_cancelling_writes_a_checkpoint_and_the_next_submission_goes_on_from_it(
    ray_session: Session, base_path: Path, config: TrainingConfig, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    url, watch = str(tmp_path), Watch()
    seen_at: list[float] = []

    def is_cancelled(_: str) -> bool:
        if not seen_at and watch.of("step"):
            seen_at.append(time.monotonic())
        return bool(seen_at)

    long = config.with_options(steps=4000)
    supervisor = pool(RegistryPlaces(url), watch, is_cancelled=is_cancelled)
    supervisor.enqueue(concept_request("alice", url, long), str(base_path))
    outcome = supervisor.run()["concept-alice"]
    step_s = watch.of("step")[-1]["step_s"]
    assert outcome["event"] == "cancelled"
    assert 0 < outcome["step"] < 4000
    assert time.monotonic() - seen_at[0] <= step_s + 2.0
    again = pool(RegistryPlaces(url), watch, is_cancelled=lambda _: len(watch.of("started")) > 1)
    again.enqueue(concept_request("alice", url, long), str(base_path))
    again.run()
    assert watch.of("started")[-1]["step"] == outcome["step"]


def test_a_run_whose_own_data_is_wrong_fails_once_and_the_others_go_on(
    ray_session: Session, base_path: Path, config: TrainingConfig, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    url, watch = str(tmp_path), Watch()
    wrong = concept_request("bob", url, config)
    place = RegistryPlaces(url)("concept-bob")
    place.put("pictures/000.png", b"not what was sent")
    supervisor = pool(RegistryPlaces(url), watch, slots=2)
    supervisor.enqueue(wrong, str(base_path))
    supervisor.enqueue(concept_request("alice", url, config), str(base_path))
    outcomes = supervisor.run()
    assert (outcomes["concept-bob"]["event"], outcomes["concept-bob"]["exit_code"]) == ("failed", 7)
    assert "bytes changed on the way" in outcomes["concept-bob"]["error"]
    assert outcomes["concept-alice"]["event"] == "staged"
    assert not watch.of("retrying")
    assert read_staged(RegistryPlaces(url)("concept-alice"))[0] == undisturbed["alice"]


def test_of_several_seeds_the_best_is_staged_with_its_grids_and_its_advice(
    base_path: Path, config: TrainingConfig, tmp_path: Path
) -> None:
    url = str(tmp_path)
    order = dataclasses.replace(concept_request("alice", url, config), num_seeds=2, grid_steps=(3, config.steps))
    worker = TrainerWorker(name="here", base=str(base_path), open_place=RegistryPlaces(url))
    worker.admit(order, 1)
    worker.close()
    worker.work()
    events = worker.poll(0)
    staged = events[-1]
    assert staged["event"] == "staged", staged
    best = train_seeds(load_base(base_path), neutral(made_up_concept("robot")), config, 2)[0]
    assert best.edlora is not None
    assert best.share is not None
    assert staged["seed"] == best.seed
    assert sorted(staged["seeds"]) == ["0", "1"]
    place = RegistryPlaces(url)("concept-alice")
    artifact, report = read_staged(place)
    assert artifact == b"".join(artifact_bytes(best.edlora))
    assert report["words_share"] == best.share.share
    assert list(place.names("grids")) == ["grids/000003.png", "grids/000012.png"]
    drawn = [place.get(event["name"]) for event in events if event["event"] == "grid"]
    assert len(set(drawn)) == 2
    assert f"kept seed {best.seed} of 2" in event_line(staged)
    assert best.share.warning in event_line(staged)


@pytest.mark.slow
def test_a_trainer_that_finds_no_room_is_given_up_with_what_is_free(ray_session: Session, tmp_path: Path) -> None:
    import ray

    taken = ray.remote(Taker).options(num_cpus=0, num_gpus=1).remote()
    assert ray.get(taken.has_it.remote())
    settings = PoolConfig(
        resources=Resources(num_cpus=0.5, num_gpus=1),
        retries=RetryPolicy(max_retries=1, first_wait_s=0.0),
        pending_timeout_s=3.0,
    )
    watch = Watch()
    supervisor = Supervisor(RegistryPlaces(str(tmp_path)), settings, on_event=watch)
    supervisor.enqueue(concept_request("alice", str(tmp_path)), "no base is loaded")
    outcome = supervisor.run()["concept-alice"]
    assert (outcome["event"], outcome["exit_code"]) == ("failed", 8)
    assert "0.5 CPU + 1 GPU found no room within 3 s; free now are 2 CPU and 0 GPU" in outcome["error"]
    assert len(watch.of("retrying")) == 1
    ray.kill(taken)
    wait_until(everything_is_back, "no actor lives, all resources are free", timeout_s=60)


class Taker:
    """Holds what it was given."""

    def has_it(self) -> bool:
        return True


@pytest.mark.slow
def test_what_no_trainer_can_hold_is_refused_with_both_numbers_and_a_missing_base_by_name(
    ray_session: Session, base_path: Path, tmp_path: Path
) -> None:
    url, watch = str(tmp_path), Watch()
    supervisor = pool(RegistryPlaces(url), watch)
    supervisor.enqueue(dataclasses.replace(concept_request("alice", url), memory_bytes=2**50), str(base_path))
    supervisor.enqueue(concept_request("bob", url), str(tmp_path / "no-such-base"))
    outcomes = supervisor.run()
    assert [event["event"] for event in outcomes.values()] == ["failed", "failed"]
    assert "1048576.00 GiB" in outcomes["concept-alice"]["error"]
    assert "ask for a smaller batch" in outcomes["concept-alice"]["error"]
    assert "no-such-base" in outcomes["concept-bob"]["error"]
    assert outcomes["concept-bob"]["exit_code"] == 4
    assert not watch.of("retrying")
