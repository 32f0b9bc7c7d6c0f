"""moto's S3 server over HTTP on a free loopback port, its conditional writes made atomic by one lock.

moto checks for an existing key and writes it in two steps; without the lock two racing creates of one
object may both win, which no real store allows.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

LOCK = threading.RLock()
"""Held while the server creates, completes or deletes an object."""


_LOCKED = ("put_object", "delete_object", "list_objects_v2")


class WrappedMethod:
    """A method of moto's backend that runs under the lock."""

    def __init__(self, method: Any) -> None:
        self._method = method

    def __get__(self, instance: Any, owner: Any) -> Any:
        bound = self._method.__get__(instance, owner)

        def locked(*args: Any, **kwargs: Any) -> Any:
            with LOCK:
                return bound(*args, **kwargs)

        return locked


@contextlib.contextmanager
def moto_server() -> Iterator[str]:
    """Run the server; yields its endpoint."""
    from moto.s3.responses import S3Response

    original = {name: S3Response.__dict__[name] for name in _LOCKED}
    for name, method in original.items():
        setattr(S3Response, name, WrappedMethod(method))
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # not a line a request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
        for name, method in original.items():
            setattr(S3Response, name, method)


def make_bucket(endpoint: str, name: str) -> None:
    """Make a bucket."""
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )
    client.create_bucket(Bucket=name)


def main(bucket: str) -> None:
    """Run a server with one bucket, print its endpoint, and wait to be terminated."""
    import signal

    with moto_server() as endpoint:
        make_bucket(endpoint, bucket)
        print(endpoint, flush=True)
        signal.pause()


if __name__ == "__main__":
    import sys

    main(sys.argv[1])
