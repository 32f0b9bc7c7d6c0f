"""Every panel of the dashboard gets data from a real Prometheus that scrapes a running job."""

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from cluster import metrics
from cluster.dashboard import PANELS
from cluster.metrics import METRICS
from cluster.session import Session

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


def query(port: int, text: str) -> list[dict[str, object]]:
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
    return any(str(entry["value"][1]) != "NaN" for entry in found)  # type: ignore[index]


class Worker:
    """Does what real workers report, on every metric of the table."""

    def work(self, rounds: int) -> None:
        values = {"run": "r", "owner": "alice", "concept": "robot", "worker": "trainer-1", "stage": "spatial"}
        for _ in range(rounds):
            for spec in METRICS:
                labels = {name: values[name] for name in spec.labels}
                {"counter": metrics.add, "gauge": metrics.put, "histogram": metrics.observe}[spec.kind](
                    spec.name, labels, 0.5
                )
            time.sleep(1.0)


def test_every_panels_query_returns_data(ray_session: Session, tmp_path: Path) -> None:
    import ray

    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("no prometheus here; tests/install_system_packages.sh installs it")
    metrics_port = ray.nodes()[0]["MetricsExportPort"]
    config, port = tmp_path / "prometheus.yml", free_port()
    config.write_text(CONFIG.format(port=metrics_port))
    worker = ray.remote(Worker).options(num_cpus=0.1).remote()
    running = worker.work.remote(600)
    with subprocess.Popen(
        [
            binary,
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            deadline = time.monotonic() + 300
            waiting = {panel.title: panel.query for panel in PANELS}
            while waiting and time.monotonic() < deadline:
                waiting = {title: text for title, text in waiting.items() if not answers(port, text)}
                time.sleep(1.0)
        finally:
            server.terminate()
    ray.cancel(running, force=False)
    ray.kill(worker)
    assert waiting == {}
    assert len(PANELS) >= len(METRICS)
