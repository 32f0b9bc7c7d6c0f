"""Ceph's S3 server (radosgw) on loopback, from Debian packages unpacked into a folder and not installed.

A cluster of one: a monitor, one object store in memory, and the gateway; nothing outlives `stop`. It needs a
Debian or Ubuntu machine with apt-get and about 350 MB of disk; `python -m tests.servers.radosgw FOLDER`
starts one and prints its endpoint until it is interrupted.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

UNWANTED = {
    *("sudo", "lvm2", "dmsetup", "dmeventd", "parted", "nvme-cli", "hdparm", "smartmontools", "gdisk"),
    *("thin-provisioning-tools", "uuid-runtime", "ceph-mgr", "ceph-mgr-modules-core", "python3-cherrypy3"),
    *("python3-pecan", "python3-webtest", "python3-webob", "python3-simplejson", "python3-bs4", "python3-cheroot"),
    *("python3-werkzeug", "python3-openssl", "python3-cryptography"),
}
"""Packages that apt would add and one node does not need."""

CONFIG = """
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{mon_port}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
ms bind msgr2 = false
run dir = {data}/run
admin socket = {data}/run/$name.$pid.asok
pid file = {data}/run/$name.pid
log file = {data}/$name.log
plugin dir = {lib}/ceph
erasure code dir = {lib}/ceph/erasure-code
osd class dir = {lib}/rados-classes
[mon]
mon data = {data}/mon
mon initial members = a
mgr initial modules =
[osd]
osd data = {data}/osd
osd objectstore = memstore
memstore device bytes = 2147483648
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{rgw_port}
rgw thread pool size = 64
rgw data = {data}/rgw
rgw dns name = 127.0.0.1
"""


class RadosGateway:
    """One running gateway."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root, self.data = folder / "root", folder / "data"
        self.rgw_port, self.mon_port = _free_port(), _free_port()

    @property
    def endpoint(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.rgw_port}"

    def fetch(self) -> None:
        """Download and unpack the packages, unless they are there."""
        if (self.root / "usr/bin/radosgw").exists():
            return
        debs = self.folder / "debs"
        debs.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        plan = subprocess.run(
            ["apt-get", "install", "--no-install-recommends", "-s", "radosgw", "ceph-mon", "ceph-osd"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        names = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
        wanted = [name for name in names if name not in UNWANTED] + ["libfuse2"]
        subprocess.run(["apt-get", "download", "-qq", *wanted], cwd=debs, check=True)
        for deb in sorted(debs.glob("*.deb")):
            subprocess.run(["dpkg", "-x", deb, self.root], check=True)
        shutil.rmtree(debs)

    def start(self) -> None:
        """Start monitor, store and gateway, and wait until the gateway answers."""
        self._configure()
        osd = str(uuid.uuid4())
        data = self.data
        address = f"[v1:127.0.0.1:{self.mon_port}]"
        self._run("monmaptool", "--create", "--fsid", self.fsid, "--addv", "a", address, f"{data}/monmap")
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", f"{data}/monmap", "--mon-data", f"{data}/mon")
        self._run("ceph-mon", "-i", "a", "--mon-data", f"{data}/mon")
        _until(lambda: self._run("ceph", "osd", "new", osd, check=False) == "", "the monitor")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd, "--osd-data", f"{data}/osd")
        self._run("ceph", "osd", "crush", "add", "osd.0", "1.0", "root=default", "host=localhost", check=False)
        _until(lambda: self._run("ceph-osd", "-i", "0", "--osd-data", f"{data}/osd", check=False) == "", "the store")
        _until(lambda: "1 up" in self._run("ceph", "osd", "stat", check=False), "the store to be up")
        self._run("radosgw", "-n", "client.rgw", "--setuser", "root", "--setgroup", "root")
        _until(self._answers, "the gateway")

    def add_user(self, name: str) -> tuple[str, str]:
        """Make a user; returns access key and secret."""
        key, secret = f"{name}key", f"{name}secret"
        self._run(
            "radosgw-admin", "-n", "client.rgw", "user", "create", f"--uid={name}", f"--display-name={name}",
            f"--access-key={key}", f"--secret={secret}",
        )  # fmt: skip
        return key, secret

    def stop(self) -> None:
        """Stop its processes by their ids."""
        pids = [int(path.read_text()) for path in (self.data / "run").glob("*.pid")]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 20
        for pid in pids:
            while _is_alive(pid):
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.1)

    def _configure(self) -> None:
        shutil.rmtree(self.data, ignore_errors=True)
        for name in ("mon", "osd", "rgw", "run"):
            (self.data / name).mkdir(parents=True)
        self.fsid = str(uuid.uuid4())
        text = CONFIG.format(
            fsid=self.fsid, mon_port=self.mon_port, rgw_port=self.rgw_port, data=self.data, lib=self._lib
        )
        (self.data / "ceph.conf").write_text(text)

    @property
    def _lib(self) -> Path:
        return next((self.root / "usr/lib").glob("*-linux-gnu"))

    def _run(self, *command: str, check: bool = True) -> str:
        """Run one of the unpacked programs; its stdout, or an error's text where `check` is off."""
        lib, more = self._lib, self.root / "lib" / self._lib.name
        environment = {
            "PATH": f"{self.root}/usr/bin:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": f"{lib}:{more}:{lib}/ceph:{self.root}/usr/lib/ceph",
            "PYTHONPATH": f"{self.root}/usr/lib/python3/dist-packages",
            "CEPH_CONF": str(self.data / "ceph.conf"),
            "HOME": os.environ.get("HOME", "/"),
        }
        log = self.data / "start.log"
        with log.open("a") as errors:
            done = subprocess.run(
                ["timeout", "60", *command],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                check=False,
            )
        if done.returncode == 0:
            return done.stdout if "stat" in command else ""
        if check:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}; see {log}")
        return f"ended with {done.returncode}"

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.endpoint, timeout=2).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True


@contextlib.contextmanager
def radosgw(folder: Path) -> Iterator[RadosGateway]:
    """A gateway unpacked into `folder`, running."""
    gateway = RadosGateway(folder)
    gateway.fetch()
    try:
        gateway.start()
        yield gateway
    finally:
        gateway.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until(condition: object, what: str, timeout_s: float = 180.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(0.5)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def main(arguments: Sequence[str]) -> None:
    """Run one until interrupted."""
    with radosgw(Path(arguments[0]).resolve()) as gateway:
        key, secret = gateway.add_user("tester")
        print(f"{gateway.endpoint} {key} {secret}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main(sys.argv[1:])
