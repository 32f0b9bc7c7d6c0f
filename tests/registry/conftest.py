"""A registry in a directory, owners with keys, and small true artifacts to publish."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mos.artifact import write_artifact
from mos.facts import BaseFacts
from registry.client import Registry
from registry.home import Home
from registry.ulid import new_ulid
from tests.registry.world import Clock, make_edlora, tiny_facts


@pytest.fixture(scope="session")
def facts() -> BaseFacts:
    return tiny_facts()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def registry(tmp_path: Path, home: Home, clock: Clock) -> Registry:
    return Registry.open(tmp_path / "shelf", create=True, home=home, clock=clock)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """moto's server; the standard AWS chain finds it and its credentials in the environment."""
    from tests.servers.moto_server import make_bucket, moto_server

    with pytest.MonkeyPatch.context() as patch, moto_server() as endpoint:
        patch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        make_bucket(endpoint, "shelf")
        yield endpoint


@pytest.fixture
def s3_url(s3_endpoint: str) -> str:
    """A fresh prefix on the S3 server."""
    return f"s3://shelf/{new_ulid()}"


@pytest.fixture
def artifact(tmp_path: Path, facts: BaseFacts) -> Callable[..., Path]:
    """Write an artifact; `artifact(name, seed=..., **card)`."""

    def write(name: str = "robot", seed: int = 0, **card: object) -> Path:
        path = tmp_path / f"{name}-{seed}-{len(card)}.safetensors"
        write_artifact(make_edlora(facts, name=name, seed=seed, **card), path)
        return path

    return write
