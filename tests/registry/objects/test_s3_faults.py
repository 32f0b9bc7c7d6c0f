"""The S3 store against a server that misbehaves on the wire: 503s, bodies cut short, replies that are lost."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mos.errors import NotAllowedError, TryAgainError
from registry.client import Registry
from registry.errors import StoreBusyError, UnsafeBackendError
from registry.objects.s3 import S3Store
from registry.writing import create_or_same


class Server(ThreadingHTTPServer):
    """Objects in a dictionary; `faults` are used up one a request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.requests = 0
        self.heeds_conditions = True


class Handler(BaseHTTPRequestHandler):
    """PUT with If-None-Match and GET, each perhaps with a fault; HEAD and DELETE without."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        fault = self._fault()
        if self._refused(fault):
            return
        is_conditional = self.server.heeds_conditions and self.headers.get("If-None-Match") == "*"
        if is_conditional and self.path in self.server.objects:
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        self.server.objects[self.path] = body
        if fault == "lost":
            self.close_connection = True
            return
        self._answer(200, b"")

    def do_GET(self) -> None:
        fault = self._fault()
        if self._refused(fault):
            return
        body = self.server.objects.get(self.path)
        if body is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        elif fault == "short":
            self._answer(200, body[: len(body) // 2], length=len(body))
            self.close_connection = True
        else:
            self._answer(200, body)

    def do_HEAD(self) -> None:
        self._answer(200 if self.path in self.server.objects else 404, b"")

    def do_DELETE(self) -> None:
        self.server.objects.pop(self.path, None)
        self._answer(204, b"")

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def _fault(self) -> str:
        self.server.requests += 1
        return self.server.faults.pop(0) if self.server.faults else ""

    def _refused(self, fault: str) -> bool:
        if fault == "busy":
            self._answer(503, b"<Error><Code>SlowDown</Code></Error>")
        if fault == "forbidden":
            self._answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        return fault in ("busy", "forbidden")

    def _answer(self, status: int, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def store(running: Server) -> Iterator[S3Store]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{running.server_port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield S3Store("shelf", "x", max_attempts=2, timeout_s=20)


@pytest.fixture(autouse=True)
def fresh(running: Server) -> None:
    running.objects.clear()
    running.faults.clear()
    running.heeds_conditions = True


def test_a_503_is_tried_again_and_many_are_said_to_be_passing(running: Server, store: S3Store):
    running.faults[:] = ["busy"]
    store.create("a", b"one")
    assert store.get("a") == b"one"
    running.faults[:] = ["busy"] * 2
    with pytest.raises(TryAgainError, match="503 SlowDown"):
        store.create("b", b"two")
    assert "/shelf/x/b" not in running.objects


def test_a_create_whose_reply_is_lost_is_ours_when_read_back(running: Server, store: S3Store):
    running.faults[:] = ["lost"]
    before = running.requests
    assert create_or_same(store, "a", b"one") is False
    assert running.objects == {"/shelf/x/a": b"one"}
    assert running.requests - before == 3  # the lost one, its repetition that met 412, the reading back


def test_a_body_cut_short_is_asked_for_again_and_never_returned(running: Server, store: S3Store):
    store.create("a", b"0123456789")
    running.faults[:] = ["short"]
    assert store.get("a") == b"0123456789"
    running.faults[:] = ["short"] * 3
    with pytest.raises(StoreBusyError, match="no whole answer"):
        store.get("a")


def test_a_403_is_not_repeated_and_says_whose_fault_it_is(running: Server, store: S3Store):
    running.faults[:] = ["forbidden"]
    before = running.requests
    with pytest.raises(NotAllowedError, match="credentials"):
        store.put("a", b"one")
    assert running.requests - before == 1


def test_no_registry_is_founded_on_a_server_that_ignores_conditions(running: Server, store: S3Store, tmp_path: Path):
    running.heeds_conditions = False
    with pytest.raises(UnsafeBackendError, match="ignores conditional writes"):
        Registry.over(store, create=True, home=tmp_path / "home")
    assert running.objects == {}
