"""A Ray head on this machine that outlives the command: `mos cluster up`, `status`, `down`.

It listens on loopback only, asks for a token, and serves Ray's dashboard. What is needed to find and stop
it again lies in `<home>/cluster/head.json`; it is stopped by its own mark, never by name.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster import keeper
from cluster.errors import RayUnavailableError
from cluster.runs import home
from cluster.session import OBJECT_STORE_BYTES, TOKEN_VARIABLE, private_environment, started
from mos.errors import ConflictError, NotFoundError

_START_LIMIT_S = 120.0

PUBLISHER_VARIABLE = "MOS_PUBLISHER_KEY"
"""Names, on a cluster, the file with the key that publishes what absent owners have granted."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """A running head.

    Attributes:
        address: `127.0.0.1:port` of its control store, for workers and drivers.
        dashboard_url: Ray's dashboard and job server: what `--ray-address` takes.
        mark: Value of MOS_RAY_SESSION in its processes.
        temp_dir: Its logs and sockets.
        token_path: File with the token, readable by its owner only.
        started_at: Unix time in seconds.
        metrics_port: Where Prometheus finds this node's figures.
    """

    address: str
    dashboard_url: str
    mark: str
    temp_dir: str
    token_path: str
    started_at: float
    metrics_port: int

    @property
    def process_ids(self) -> list[int]:
        """Its living processes."""
        return keeper.marked_processes(self.mark, self.temp_dir)


def start_head(
    *, num_cpus: int | None = None, num_gpus: int | None = None, settings: Mapping[str, str] | None = None
) -> Head:
    """Start a head and wait until its job server answers.

    Args:
        num_cpus: Logical CPUs; default this machine's, but at least 2.
        num_gpus: GPUs; default those Ray finds.
        settings: Variables of its processes' environment, such as the limits `cluster.shared_pool` reads.

    Raises:
        ConflictError: If one that was started here is running.
        RayUnavailableError: If it does not come up; nothing of it is left then.
    """
    running = find_head()
    if running is not None:
        raise ConflictError(f"a head runs at {running.dashboard_url} already; `mos cluster down` stops it")
    cpus = num_cpus or max(2, os.cpu_count() or 1)
    head = started(lambda: _start_once(cpus, num_gpus, settings or {}), clean_up=lambda: None)
    _record_path().write_text(json.dumps(asdict(head), indent=1))
    return head


def _start_once(num_cpus: int, num_gpus: int | None, settings: Mapping[str, str]) -> Head:
    """One attempt, with ports and a folder of its own; nothing is left of one that fails or is interrupted."""
    ports = _free_ports(7)
    head = Head(
        address=f"127.0.0.1:{ports[0]}",
        dashboard_url=f"http://127.0.0.1:{ports[1]}",
        mark=secrets.token_hex(8),
        temp_dir=tempfile.mkdtemp(prefix="mos-head-"),
        token_path=str(_write_token()),
        started_at=time.time(),
        metrics_port=ports[2],
    )
    command = _command(head, ports, num_cpus, num_gpus)
    environment = _environment(head) | {PUBLISHER_VARIABLE: str(_publisher_key())} | dict(settings)
    try:
        _run(command, environment)
        _close_client_server(head)
        _wait_for_jobs_server(head)
    except BaseException:
        _end(head)
        raise
    return head


def _run(command: list[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, start_new_session=True)
    if done.returncode != 0:
        raise RayUnavailableError(_last_line(done.stderr or done.stdout))


def head_resources(head: Head) -> dict[str, tuple[float, float]]:
    """Resource name -> (free, total) of the head's cluster.

    Raises:
        RayUnavailableError: If it does not answer.
    """
    from cluster.session import connected

    with token_for(head.address), connected(head.address):
        import ray

        free, total = ray.available_resources(), ray.cluster_resources()
    return {name: (free.get(name, 0.0), total[name]) for name in ("CPU", "GPU") if name in total}


def find_head() -> Head | None:
    """The head started here, or None; a record whose processes are gone is dropped."""
    path = _record_path()
    if not path.exists():
        return None
    head = Head(**json.loads(path.read_text()))
    if head.process_ids:
        return head
    _end(head)
    return None


def stop_head() -> int:
    """Stop the head and everything it started; returns how many processes that were.

    Raises:
        NotFoundError: If none is running.
    """
    head = find_head()
    if head is None:
        raise NotFoundError("no head was started here; `mos cluster up` starts one")
    return _end(head)


@contextlib.contextmanager
def token_for(url: str) -> Iterator[None]:
    """Offer the token of the head started here inside the block, if `url` or address is that head's."""
    head = find_head()
    if head is None or url not in (head.address, head.dashboard_url):
        yield
        return
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=head.token_path)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _end(head: Head) -> int:
    number = keeper.end_processes(head.mark, head.temp_dir)
    shutil.rmtree(head.temp_dir, ignore_errors=True)
    _record_path().unlink(missing_ok=True)
    return number


def _command(head: Head, ports: list[int], num_cpus: int, num_gpus: int | None) -> list[str]:
    host, port = head.address.split(":")
    options = {
        "node-ip-address": host,
        "port": port,
        "dashboard-host": host,
        "dashboard-port": ports[1],
        "metrics-export-port": ports[2],
        "dashboard-agent-listen-port": ports[3],
        "dashboard-agent-grpc-port": ports[4],
        "runtime-env-agent-port": ports[5],
        "ray-client-server-port": ports[6],
        "num-cpus": num_cpus,
        "object-store-memory": OBJECT_STORE_BYTES,
        "temp-dir": head.temp_dir,
    }
    if num_gpus is not None:
        options["num-gpus"] = num_gpus
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--disable-usage-stats"]
    return ray + [f"--{name}={value}" for name, value in options.items()]


def _environment(head: Head) -> dict[str, str]:
    own = private_environment(head.mark) | {"RAY_AUTH_TOKEN_PATH": head.token_path}
    del own[TOKEN_VARIABLE]
    kept = {name: value for name, value in os.environ.items() if name not in (TOKEN_VARIABLE, "RAY_ADDRESS")}
    return kept | own


def _close_client_server(head: Head) -> None:
    """End the Ray Client server, which `ray start` always brings up and nobody here uses: one door less."""
    for process_id in head.process_ids:
        with contextlib.suppress(OSError):
            if b"ray.util.client.server" in Path(f"/proc/{process_id}/cmdline").read_bytes():
                os.kill(process_id, signal.SIGKILL)


def _write_token() -> Path:
    folder = _record_path().parent
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / "token"
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    return path


def publisher_key_path() -> Path:
    """The file of the key with which the head started here publishes for absent owners."""
    return _record_path().parent / "publisher.key"


def _publisher_key() -> Path:
    from registry.keys import SigningKey

    path = publisher_key_path()
    if not path.exists():
        SigningKey.generate("cluster").save(path)
    return path


def _record_path() -> Path:
    return home() / "cluster" / "head.json"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]
    finally:
        for item in sockets:
            item.close()


def _wait_for_jobs_server(head: Head) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    request = urllib.request.Request(  # noqa: S310 - our own http address
        f"{head.dashboard_url}/api/version",
        headers={"Authorization": f"Bearer {Path(head.token_path).read_text()}"},
    )
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise RayUnavailableError(f"its job server at {head.dashboard_url} did not answer within {_START_LIMIT_S:g} s")


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].removeprefix("Exception: ") if lines else "no message"
