"""A registry in a directory, owners with keys, and small true artifacts to publish."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mos.artifact import ArtifactCard, EDLoRA, write_artifact
from mos.facts import BaseFacts
from registry.client import Registry
from registry.home import Home
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


@pytest.fixture
def artifact(tmp_path: Path, facts: BaseFacts) -> Callable[..., Path]:
    """Write an artifact; `artifact(name, seed=..., **card)`."""

    def write(name: str = "robot", seed: int = 0, **card: object) -> Path:
        path = tmp_path / f"{name}-{seed}-{len(card)}.safetensors"
        write_artifact(make_edlora(facts, name=name, seed=seed, **card), path)
        return path

    return write


__all__ = ["ArtifactCard", "EDLoRA"]
