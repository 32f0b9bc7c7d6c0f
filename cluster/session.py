"""A private Ray on this machine: started on loopback, found by nobody else, and gone afterwards."""

import contextlib
import gc
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from cluster import keeper
from cluster.errors import RayUnavailableError
from cluster.progress import Terminal

Started = TypeVar("Started")

START_ATTEMPTS = 3
"""Ray gives itself a fixed 30 s to start, which a very busy machine misses."""
OBJECT_STORE_BYTES = 256 * 2**20
"""Shared memory of the private object store: statistics and artifacts of a few concepts at a time."""

TOKEN_VARIABLE = "RAY_AUTH_TOKEN"  # noqa: S105 - the name of a variable


@dataclass(frozen=True, kw_only=True)
class Session:
    """A Ray this process is connected to.

    Attributes:
        address: `127.0.0.1:port` of its control store.
        dashboard_url: Where its dashboard is, or None.
        mark: Value of MOS_RAY_SESSION in all its processes; None for a cluster that somebody else keeps.
        temp_dir: Where a private Ray has its logs and sockets; None for a cluster that somebody else keeps.
        num_cpus: Its logical CPUs.
    """

    address: str
    dashboard_url: str | None
    mark: str | None
    temp_dir: str | None
    num_cpus: float

    def processes(self) -> list[int]:
        """Ids of the private Ray's living processes; empty for somebody else's."""
        return keeper.marked_processes(self.mark, self.temp_dir) if self.mark and self.temp_dir else []


@contextlib.contextmanager
def local_ray(
    *, num_cpus: int | None = None, num_gpus: int | None = None, dashboard: bool = False
) -> Iterator[Session]:
    """Start a private Ray, connect to it, and leave no process of it behind.

    It listens on 127.0.0.1 only, asks for a token, sends no usage statistics, and ignores RAY_ADDRESS. When
    this process is killed outright, a keeper process ends what is left.

    Args:
        num_cpus: Logical CPUs; default the machine's, but at least 2 (actors ask for fractions).
        num_gpus: GPUs; default what Ray finds.
        dashboard: Also serve Ray's dashboard on a free loopback port.

    Raises:
        RayUnavailableError: If this process is connected to a Ray already, or Ray does not start.
    """
    mark = secrets.token_hex(8)
    temp_dir = tempfile.mkdtemp(prefix="mos-ray-")
    with _environment(private_environment(mark)), _kept(mark, temp_dir):
        import ray

        read_environment_again()
        if ray.is_initialized():
            raise RayUnavailableError("this process is connected to a Ray already; disconnect before starting another")
        cpus = num_cpus or max(2, os.cpu_count() or 1)
        session = Session(address="", dashboard_url=None, mark=mark, temp_dir=temp_dir, num_cpus=cpus)
        try:
            yield started(
                lambda: _start_once(session, num_gpus, dashboard), clean_up=lambda: _disconnect(mark, temp_dir)
            )
        finally:
            _disconnect(mark, temp_dir)


def started(start: Callable[[], Started], *, clean_up: Callable[[], object]) -> Started:
    """Start a Ray, up to three times, with a line on stderr before each further attempt.

    Args:
        start: One attempt; whatever it raises is a reason to try again.
        clean_up: Ends what a failed attempt left.

    Raises:
        RayUnavailableError: If the last attempt fails as well.
    """
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            return start()
        except Exception as error:  # Ray raises bare Exception here
            clean_up()
            line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if attempt == START_ATTEMPTS:
                raise RayUnavailableError(f"Ray did not start: {line}; `mos doctor` may say why") from error
            reason = line.partition(". ")[0]
            Terminal().say(f"Ray did not start ({reason}); trying again, attempt {attempt + 1} of {START_ATTEMPTS}")
    raise AssertionError("unreachable")


def _start_once(session: Session, num_gpus: int | None, dashboard: bool) -> Session:
    import ray

    with _termination_stays_ours():
        context = ray.init(
            address="local",
            num_cpus=int(session.num_cpus),
            num_gpus=num_gpus,
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level="ERROR",
            namespace="mos",
            _node_ip_address="127.0.0.1",
            _temp_dir=session.temp_dir,
        )
    url, address = context.address_info.get("webui_url"), str(context.address_info["gcs_address"])
    if not address.startswith("127.0.0.1:"):
        raise RayUnavailableError(f"it listens on {address} instead of loopback only")
    return replace(session, address=address, dashboard_url=f"http://{url}" if dashboard and url else None)


@contextlib.contextmanager
def _termination_stays_ours() -> Iterator[None]:
    """Keep SIGTERM as it was: Ray's own handler aborts a process that is not gone three seconds later."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def read_environment_again() -> None:
    """Let a Ray that was imported earlier see the token mode and the loopback rule: it reads both at import."""
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    ray_constants.ENABLE_RAY_CLUSTER = False


def _disconnect(mark: str, temp_dir: str) -> None:
    """Stop Ray and wait for its processes, which Ray itself does not: they would stay as zombies."""
    import ray

    ours = set(keeper.marked_processes(mark, temp_dir))
    children = [item for item in gc.get_objects() if issubclass(type(item), subprocess.Popen) and item.pid in ours]
    ray.shutdown()
    keeper.end_processes(mark, temp_dir)
    for child in children:
        child.wait(timeout=10)


@contextlib.contextmanager
def connected(address: str | None = None, **local: int | bool | None) -> Iterator[Session]:
    """Connect to the Ray at `address`, or start a private one when there is none.

    Args:
        address: `host:port` of a control store, or what `mos cluster up` printed for the head started here.
        local: Arguments of `local_ray`.

    Raises:
        RayUnavailableError: If nothing answers at `address`.
    """
    if address is None:
        with local_ray(**local) as session:  # type: ignore[arg-type]
            yield session
        return
    from cluster.head import find_head, token_for

    head = find_head()
    is_ours = head is not None and address in (head.address, head.dashboard_url)
    target = head.address if head is not None and is_ours else address
    with token_for(target):
        _connect(target)
        try:
            yield _session_at(
                target, head.mark if head and is_ours else None, head.temp_dir if head and is_ours else None
            )
        finally:
            _ray().shutdown()


def _connect(address: str) -> None:
    if address == "auto" or address.startswith("http"):
        raise RayUnavailableError(f"ray address {address!r}: give host:port of its control store, never a guess")
    ray = _ray()
    read_environment_again()
    try:
        with _termination_stays_ours():
            ray.init(address=address, namespace="mos", logging_level="ERROR", log_to_driver=False)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise RayUnavailableError(f"no Ray answers at {address}: {error}; start one with `mos cluster up`") from error


def _session_at(address: str, mark: str | None, temp_dir: str | None) -> Session:
    cpus = float(_ray().cluster_resources().get("CPU", 0.0))
    return Session(address=address, dashboard_url=None, mark=mark, temp_dir=temp_dir, num_cpus=cpus)


def _ray() -> Any:
    import ray

    return ray


def private_environment(mark: str) -> dict[str, str]:
    """The environment of a private Ray: one mark, loopback only, a token, one compute thread a process."""
    return {
        keeper.MARK: mark,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        TOKEN_VARIABLE: os.environ.get(TOKEN_VARIABLE) or secrets.token_hex(32),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "TOKENIZERS_PARALLELISM": "false",
    }


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables for children started inside; the token stays, because Ray reads it once a process."""
    before = {name: os.environ.get(name) for name in values if name != TOKEN_VARIABLE}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _kept(mark: str, temp_dir: str) -> Iterator[None]:
    """Sweep the session's processes and folder at the end; a keeper does so if this process is killed."""
    environment = {name: value for name, value in os.environ.items() if name != keeper.MARK}
    command = [sys.executable, "-I", "-S", str(Path(keeper.__file__)), mark, temp_dir]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as watcher:
        try:
            yield
        finally:
            keeper.end_processes(mark, temp_dir)
            shutil.rmtree(temp_dir, ignore_errors=True)
            with contextlib.suppress(BrokenPipeError):
                watcher.communicate("done")
