"""`mos cluster` and everything that can be sent to it: the same results as here, seen, stopped and taken up again."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cluster.places import RegistryPlaces
from mos.artifact import artifact_bytes
from mos.base_model import load_base
from mos.errors import TryAgainError
from tests.bases import saved_random_base
from tests.jobs.commands import Mos, wait_until
from tests.mos.evaluation.conftest import write_scorer
from tests.mos.training.concepts import made_up_concept

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SUITE = """
name = "two"
text_prefix = "a photo of "
generic = ["a dog"]
[families]
place = ["a <TOK> on the beach"]
"""


@dataclass(frozen=True)
class Cluster:
    """A head with one trainer of two slots, a registry, a base and pictures; concepts are sent with `concept`."""

    mos: Mos
    address: str
    metrics_port: int
    folder: Path

    @property
    def registry(self) -> Path:
        return self.folder / "registry"

    def concept(self, owner: str, name: str, *more: str, steps: int = 8, remote: bool = True) -> tuple[str | Path, ...]:
        words = ("submit", "concept", "--owner", owner, "--name", name, "--class", "cat")
        place = ("--pictures", self.folder / "photos", "--base", self.folder / "base", "--registry", self.registry)
        return (*words, *place, "-o", f"steps={steps}", *(("--ray-address", self.address) if remote else ()), *more)

    def weights(self, ref: str) -> str:
        shown = self.mos.data("concept", "show", ref, "--registry", self.registry)
        return str(next(file["sha256"] for file in shown["files"] if file["role"] == "weights"))

    def trained_here(self, owner: str, name: str, steps: int) -> str:
        """Digest of what the plain loop makes of the same spec and pictures."""
        from jobs.specs import ConceptSpec
        from jobs.train_concept import prepare
        from mos.training import train_concept

        base = load_base(self.folder / "base")
        spec = ConceptSpec(
            owner=owner,
            name=name,
            class_word="cat",
            pictures=str(self.folder / "photos"),
            base=str(self.folder / "base"),
            options={"steps": steps},
        )
        prepared = prepare(spec, base.facts)
        trained = train_concept(base, prepared.data, prepared.config)
        return hashlib.sha256(b"".join(artifact_bytes(trained))).hexdigest()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    saved_random_base(folder / "base")
    write_scorer(folder / "scorer")
    (folder / "suite.toml").write_text(SUITE)
    (folder / "photos").mkdir()
    for picture in made_up_concept("thing").pictures:
        Image.fromarray(picture.pixels).save(folder / "photos" / f"{picture.name}.png")
    mos = Mos(folder / "home")
    mos("registry", "init", folder / "registry")
    head = mos.data("cluster", "up", "--cpus", "2", "--trainers", "1", "--slots-per-trainer", "2")
    yield Cluster(mos, str(head["ray_address"]), int(head["metrics_port"]), folder)
    subprocess.run(mos._command(("cluster", "down")), env=mos.environment, check=False, capture_output=True)
    assert mos.left_behind() == []


def test_a_concept_trained_there_is_what_is_trained_here_and_its_owner_publishes_it(cluster: Cluster) -> None:
    mos = cluster.mos
    assert cluster.address.startswith("http://127.0.0.1:")
    with pytest.raises(urllib.error.HTTPError, match="401"):  # who has no token sees nothing
        urllib.request.urlopen(f"{cluster.address}/api/jobs/")
    mos("cluster", "up", code=5)
    assert mos.data("cluster", "status")["running"] is True
    sent = mos.data(*cluster.concept("alice", "there", "--no-wait"))
    assert sent["state"] in ("queued", "running")
    run = str(sent["run"])
    followed = mos("jobs", "logs", "-f", run)  # ends by itself when the run is staged
    assert "training on process" in followed
    assert "is staged" in followed
    assert mos.data("jobs", "wait", run)["result"] == "alice/there@1"
    assert cluster.weights("alice/there") == cluster.trained_here("alice", "there", 8)
    again = mos.data(*cluster.concept("alice", "there"))
    assert (again["run"], again["result"]) == (run, "alice/there@1")
    assert "nothing was trained" in str(again["note"])
    assert list(RegistryPlaces(str(cluster.registry))(run).names("pictures")) == []


def test_a_cancelled_run_writes_its_checkpoint_and_goes_on_from_it(cluster: Cluster) -> None:
    mos, steps = cluster.mos, 250
    run = str(mos.data(*cluster.concept("alice", "long", "--no-wait", steps=steps))["run"])
    wait_until(lambda: "step" in kinds(mos.data("jobs", "ls") and mos.events(run)), "a step")
    mos("jobs", "cancel", run)
    asked_at = time.time()
    mos("jobs", "wait", run, code=9)
    (cancelled,) = [event for event in mos.events(run) if event["event"] == "cancelled"]
    assert 0 < cancelled["step"] < steps
    assert cancelled["at"] - asked_at < mos.events(run)[-1].get("step_s", 0.5) + 10
    assert kinds(mos.events(run))[-2:] == ["checkpoint", "cancelled"]
    done = mos.data("jobs", "retry", run)
    assert (done["state"], done["result"]) == ("done", "alice/long@1")
    assert [event["step"] for event in mos.events(run) if event["event"] == "started"] == [0, cancelled["step"]]
    assert cluster.weights("alice/long") == cluster.trained_here("alice", "long", steps)


def test_a_job_that_still_clears_up_is_waited_for_before_its_run_is_sent_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.submission import ACTIVE, job_status, submit, wait_until_over

    for name, value in cluster.mos.environment.items():
        monkeypatch.setenv(name, value)
    submission_id = submit(cluster.address, "sleep 8", "slow-to-end", {"run": "slow-to-end"})
    assert submit(cluster.address, "sleep 8", "slow-to-end", {"run": "slow-to-end"}) == submission_id
    with pytest.raises(TryAgainError, match="still clears up"):
        wait_until_over(cluster.address, submission_id, limit_s=0)
    wait_until_over(cluster.address, submission_id)
    assert job_status(cluster.address, submission_id) not in ACTIVE
    assert submit(cluster.address, "true", "slow-to-end", {"run": "slow-to-end"}) == "slow-to-end-2"


def test_a_run_whose_driver_is_killed_there_is_taken_up_by_the_next_one(cluster: Cluster) -> None:
    mos, steps = cluster.mos, 200
    run = str(mos.data(*cluster.concept("alice", "lost", "--no-wait", "--checkpoint-every", "10", steps=steps))["run"])
    wait_until(lambda: "step" in kinds(mos.data("jobs", "ls") and mos.events(run)), "a step")
    (driver,) = [number for number in mos.left_behind() if is_driver_of(run, number)]
    os.kill(driver, signal.SIGKILL)
    mos("jobs", "wait", run, code=9)
    done = mos.data("jobs", "retry", run)
    assert (done["state"], done["result"]) == ("done", "alice/lost@1")
    assert cluster.weights("alice/lost") == cluster.trained_here("alice", "lost", steps)
    assert list(RegistryPlaces(str(cluster.registry))(run).names("pictures")) == []


def test_two_owners_share_one_trainer_which_ends_when_both_are_done(cluster: Cluster) -> None:
    mos = cluster.mos
    bob = str(mos.data(*cluster.concept("bob", "long", "--no-wait", steps=20_000))["run"])
    wait_until(lambda: "started" in kinds(mos.data("jobs", "ls") and mos.events(bob)), "bob's training")
    again = mos.data(*cluster.concept("bob", "long", "--no-wait", steps=20_000))
    assert (again["run"], again["ray_job"], again["state"]) == (bob, bob, "running")
    assert kinds(mos.events(bob)).count("submitted") == 1
    with mos.start(*cluster.concept("carol", "robot", steps=30)) as submitting:
        shown, _ = submitting.communicate()
    assert submitting.returncode == 0, shown
    assert "carol/robot  step " in shown
    assert "carol/robot  published as carol/robot@1" in shown
    mos("jobs", "cancel", bob)
    mos("jobs", "wait", bob, code=9)
    (carol,) = [record["run_id"] for record in mos.runs() if record["subject"] == "carol/robot"]
    started = [next(event for event in mos.events(run) if event["event"] == "started") for run in (bob, carol)]
    assert started[0]["pid"] == started[1]["pid"]
    assert kinds(mos.events(bob))[-1] == "cancelled", "bob's training was over before carol's"
    assert cluster.weights("carol/robot") == cluster.trained_here("carol", "robot", 30)
    wait_until(lambda: are_equal(mos.data("cluster", "status")["resources"]["CPU"]), "all is free", timeout_s=60)


def test_the_cluster_publishes_for_an_owner_who_is_away_also_when_the_run_is_tried_again(cluster: Cluster) -> None:
    mos = cluster.mos
    run = str(mos.data(*cluster.concept("dave", "mug", "--no-wait", "--grant-days", "1", steps=250))["run"])
    wait_until(lambda: "step" in kinds(mos.data("jobs", "ls") and mos.events(run)), "a step")
    mos("jobs", "cancel", run)
    mos("jobs", "wait", run, code=9)
    mos("jobs", "retry", run, "--no-wait")
    key = mos.home / "keys" / "owners" / "dave.key"
    key.rename(key.with_suffix(".away"))
    place = cluster.registry / "users" / "dave" / "m" / "mug" / "000001.json"
    wait_until(place.exists, "dave/mug is published")
    done = mos.data("jobs", "wait", run)
    assert (done["state"], done["result"]) == ("done", "dave/mug@1")
    shown = mos.data("concept", "show", "dave/mug", "--registry", cluster.registry)
    assert shown["state"] == "listed"
    assert list(RegistryPlaces(str(cluster.registry))(run).names("pictures")) == []
    wait_until(lambda: "dave" in counted(cluster, "ray_mos_publishes_total"), "it is counted", timeout_s=60)


def test_a_fusion_and_an_evaluation_there_give_what_they_give_here(cluster: Cluster, tmp_path: Path) -> None:
    mos = cluster.mos
    base = ("--base", cluster.folder / "base", "--registry", cluster.registry)
    options = ("-o", "sampling_steps=2", "-o", "latent_seeds=[0]", "-o", "solver=exact")
    fusion = ("submit", "fusion", "alice/there", "carol/robot", *base, *options)
    plan = mos.data(*fusion, "--out", tmp_path / "there", "--dry-run")
    assert not (tmp_path / "there").exists()
    assert [len(entry["weights_sha256"]) for entry in plan["concepts"]] == [64, 64]
    assert plan["bytes"] > 0
    assert plan["estimate"]["gpu_minutes"] >= 0
    assert "0.5 CPU" in plan["resources"]
    there = mos.data(*fusion, "--out", tmp_path / "there", "--ray-address", cluster.address)
    here = mos.data(*fusion, "--out", tmp_path / "here")
    assert there["state"] == here["state"] == "done"
    again = mos.data(*fusion, "--out", tmp_path / "there", "--ray-address", cluster.address)
    assert (again["run"], again["ray_job"]) == (there["run"], there["ray_job"])
    assert "nothing was fused" in again["note"]
    weights = [(tmp_path / place / "fused.safetensors").read_bytes() for place in ("here", "there")]
    assert weights[0] == weights[1]

    file = mos("concept", "pull", "carol/robot", "--registry", cluster.registry).strip()
    words = ("submit", "evaluation", tmp_path / "there", f"erin/robot={file}", "--seeds", "1", "--steps", "2")
    suite = ("--suite", cluster.folder / "suite.toml", "--scorer", cluster.folder / "scorer", "--guidance", "1")
    references = ("--references", f"erin/robot={cluster.folder / 'photos'}")
    plan = mos.data(*words, *suite, *references, *base, "--dry-run")
    assert plan["blocks_missing"] == plan["blocks"] > 0
    assert plan["pictures"] > 0
    assert plan["reference_bytes"] > 0
    assert plan["estimate"]["gpu_minutes"] >= 0
    assert "0.5 CPU" in plan["resources"]
    assert len(plan["evaluation"]) == 64
    assert [len(plan["models"][name]) for name in ("there", "erin/robot")] == [64, 64]
    sent = mos.data(*words, *suite, *references, *base, "--ray-address", cluster.address)
    assert sent["state"] == "done", sent
    told = metadata(cluster)
    assert told[str(there["run"])] == {"kind": "fusion", "owner": "alice", "concept": "alice/there, carol/robot"}
    assert told[str(sent["run"])].keys() == {"kind", "owner", "concept"}
    carol = next(about for run, about in told.items() if run.startswith("concept-carol-robot-"))
    assert carol == {"kind": "concept", "owner": "carol", "concept": "robot"}
    assert list(RegistryPlaces(str(cluster.registry))(str(sent["run"])).names("pictures")) == []
    digest = str(sent["result"]).split()[1]
    scored = mos.data("evaluation", "show", digest, "--registry", cluster.registry)["cells"]
    elsewhere = ("--base", cluster.folder / "base", "--registry", tmp_path / "other")
    mos("registry", "init", tmp_path / "other")
    alone = mos.data(*words, *suite, *references, *elsewhere, "--no-ray")
    assert alone["digest"].startswith(digest)
    assert mos.data("evaluation", "show", digest, "--registry", tmp_path / "other")["cells"] == scored


def test_no_actor_of_ours_stays_and_down_ends_everything(cluster: Cluster) -> None:
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not living_actors(cluster), "no actor lives", timeout_s=60)
    assert living_actors(cluster) == []
    cluster.mos("cluster", "down")
    assert cluster.mos.data("cluster", "status")["running"] is False
    cluster.mos("cluster", "down", code=4)
    assert cluster.mos.left_behind() == []


def counted(cluster: Cluster, name: str) -> str:
    """The lines of one metric that the head's node exposes to Prometheus."""
    with urllib.request.urlopen(f"http://127.0.0.1:{cluster.metrics_port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return "\n".join(line for line in lines if line.startswith(name))


def metadata(cluster: Cluster) -> dict[str, dict[str, str]]:
    """Run -> what Ray's dashboard shows of its last job besides."""
    script = (
        "import json\nfrom cluster.submission import _client\n"
        f"with _client({cluster.address!r}) as client:\n"
        "    print(json.dumps([job.metadata for job in client.list_jobs() if job.submission_id]))"
    )
    found: dict[str, dict[str, str]] = {}
    for entry in json.loads(printed(cluster, script)):
        found.setdefault(entry.pop("run"), entry)
    return found


def living_actors(cluster: Cluster) -> list[str]:
    """Names of what lives, without the detached actors that Ray Data leaves on every cluster it was used on."""
    script = (
        "from cluster.head import find_head\nfrom cluster.session import connected\n"
        "with connected(find_head().address):\n"
        "    from ray._private.state import actors\n"
        "    alive = [a for a in actors().values() if a['State'] != 'DEAD']\n"
        "    ours = [a for a in alive if not a['IsDetached'] or a['Name'].startswith('mos')]\n"
        "    print(*[a['Name'] or a['ActorClassName'] for a in ours])"
    )
    return printed(cluster, script).split()


def printed(cluster: Cluster, script: str) -> str:
    """What a program prints in the home of the cluster's keeper."""
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=cluster.mos.environment, capture_output=True, text=True, check=True).stdout


def is_driver_of(run: str, process_id: int) -> bool:
    """Whether a process is Python at work on the run, and not the shell that started it."""
    try:
        words = Path(f"/proc/{process_id}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"jobs.driver" in words and run.encode() in words


def are_equal(numbers: Sequence[float]) -> bool:
    """Whether what is free is all there is."""
    return len(set(numbers)) == 1


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events]
