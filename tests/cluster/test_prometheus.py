"""Every panel of the dashboard gets data from a real Prometheus that scrapes a running job."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.dashboard import PANELS
from cluster.fusion import RayFusionExecutor
from cluster.metrics import METRICS
from cluster.places import RegistryPlaces
from cluster.pool import PoolOptions
from cluster.progress import Event
from cluster.session import Session
from cluster.slots import Limits
from cluster.supervisor import PoolConfig, Supervisor
from jobs.specs import ConceptSpec
from jobs.train_concept import publish_staged
from mos.base_model import load_base
from mos.fusion import fuse
from registry import Registry
from tests.bases import saved_random_base
from tests.cluster.work import FUSION, TRAINING, concept_request, fusion_sources

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CONFIG = """
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: ray
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def prometheus(folder: Path, metrics_port: int) -> Iterator[int]:
    """A Prometheus that scrapes one node of Ray; yields the port it answers on."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("no prometheus here; tests/install_system_packages.sh installs it")
    config, port = folder / "prometheus.yml", free_port()
    config.write_text(CONFIG.format(port=metrics_port))
    words = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    command = [binary, *words, f"--web.listen-address=127.0.0.1:{port}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            yield port
        finally:
            server.terminate()


def query(port: int, text: str) -> list[dict[str, Any]]:
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": text})
    with urllib.request.urlopen(url, timeout=10) as answer:
        document = json.load(answer)
    assert document["status"] == "success", document
    return list(document["data"]["result"])


def answers(port: int, text: str) -> bool:
    try:
        found = query(port, text)
    except OSError:
        return False
    return any(str(entry["value"][1]) != "NaN" for entry in found)


class Work:
    """Alice trains for long, and goes on after her trainer was killed; bob trains briefly and publishes."""

    def __init__(self, registry: Registry, base: Path) -> None:
        self._registry, url = registry, registry.url
        self._published: list[object] = []
        self._kinds: list[str] = []
        limits = Limits(max_workers=1, slots_per_worker=2)
        self._supervisor = Supervisor(RegistryPlaces(url), PoolConfig(limits=limits), on_event=self._hear)
        self._supervisor.enqueue(concept_request("alice", url, TRAINING.with_options(steps=50_000)), str(base))
        self._supervisor.enqueue(concept_request("bob", url), str(base))

    def tick(self) -> None:
        self._supervisor.tick()
        if "checkpoint" in self._kinds and "retrying" not in self._kinds:
            for process_id in self._supervisor.worker_pids().values():
                os.kill(process_id, signal.SIGKILL)
        if "concept-bob" in self._supervisor.outcomes and not self._published:
            spec = ConceptSpec(owner="bob", name="cat", class_word="cat", kind="pet", pictures="staged")
            self._published.append(publish_staged("concept-bob", spec, self._registry, "0" * 64).ref)

    def close(self) -> None:
        self._supervisor.close()

    def _hear(self, _: str, event: Event) -> None:
        self._kinds.append(event["event"])


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writ")
def test_every_panels_query_returns_data_while_a_job_runs(ray_session: Session, tmp_path: Path) -> None:
    import ray

    path = saved_random_base(tmp_path / "base")
    registry = Registry.open(tmp_path / "registry", create=True, home=tmp_path / "home")
    base, waiting = load_base(path), {panel.title: panel.query for panel in PANELS}
    with (
        prometheus(tmp_path, ray.nodes()[0]["MetricsExportPort"]) as port,
        RayFusionExecutor(str(path), FUSION, PoolOptions(num_workers=1)) as executor,
    ):
        fuse(base, fusion_sources(base), FUSION, executor=executor)
        work, deadline = Work(registry, path), time.monotonic() + 420
        while waiting and time.monotonic() < deadline:
            work.tick()
            waiting = {title: text for title, text in waiting.items() if not answers(port, text)}
            time.sleep(0.3)
        work.close()
    assert waiting == {}
    assert len(PANELS) >= len(METRICS)
