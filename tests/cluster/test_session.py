"""A private Ray: on loopback only, and gone afterwards however its owner ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import keeper
from cluster.errors import RayUnavailableError
from cluster.session import Session, connected, local_ray
from tests.jobs.commands import as_from_a_terminal

OWNER = """
import sys, time
from cluster.session import local_ray
with local_ray(num_cpus=2) as session:
    import ray
    @ray.remote(num_cpus=0.5)
    class Sleeper:
        def ready(self): return True
        def sleep(self): time.sleep(600)
    sleepers = [Sleeper.remote() for _ in range(2)]
    ray.get([sleeper.ready.remote() for sleeper in sleepers])
    tasks = [sleeper.sleep.remote() for sleeper in sleepers]
    print(session.mark, session.temp_dir, len(session.processes()), flush=True)
    ray.get(tasks)
"""


def listening_addresses(process_ids: list[int]) -> set[str]:
    """The hex addresses on which the processes listen, from /proc."""
    inodes = set()
    for process_id in process_ids:
        for entry in Path(f"/proc/{process_id}/fd").iterdir():
            try:
                target = str(entry.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1].split(":")[0])
    return found


def test_a_private_ray_listens_on_loopback_only_and_asks_for_a_token(ray_session: Session) -> None:
    assert ray_session.address.startswith("127.0.0.1:")
    addresses = listening_addresses(ray_session.processes())
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert addresses
    assert addresses <= loopback
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) >= 32


def test_a_second_private_ray_in_one_process_is_refused(ray_session: Session) -> None:
    with pytest.raises(RayUnavailableError, match="connected to a Ray already"), local_ray():
        pass


def test_a_strangers_cluster_is_never_looked_for() -> None:
    with pytest.raises(RayUnavailableError, match="never a guess"), connected("auto"):
        pass


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_no_process_is_left_when_the_owner_is_ended(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, preexec_fn=as_from_a_terminal
    ) as owner:
        assert owner.stdout is not None
        mark, temp_dir, num_processes = owner.stdout.readline().split()
        assert int(num_processes) >= 6
        owner.send_signal(number)
        owner.wait(timeout=60)
    deadline = time.monotonic() + 60
    while (keeper.marked_processes(mark, temp_dir) or Path(temp_dir).exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert keeper.marked_processes(mark, temp_dir) == []
    assert not Path(temp_dir).exists()
