"""Processes that are killed at every single system call of publishing, indexing and deleting.

`python -m tests.registry.victim FOLDER ACTION` prepares a registry, then, for k = 0, 1, 2, ..., copies it,
forks a child that does ACTION and kills itself with SIGKILL at its k-th file operation, and forks another
that inspects what is left, repeats ACTION and inspects again. It ends when a child survives, and prints how
many were killed and what was wrong.
"""

import itertools
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet  # noqa: F401 - before the forks, which then start in a moment

from mos.concept import ConceptRef
from mos.errors import NotFoundError
from registry.client import Details, Registry
from registry.indexer import Indexer
from registry.reading import readable_manifest
from registry.row import Row, State
from registry.shards import read_table
from tests.registry.world import LICENCE, any_weights, make_package

CAT = ConceptRef("alice", "cat")
CALLS = ("open", "fsync", "link", "unlink", "rename", "replace", "mkdir", "close")
WEIGHTS = b"weights of a cat" * 100


def kill_at(number: int) -> None:
    """Make this process kill itself before its `number`-th file operation from now on."""
    counter = itertools.count()

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(counter) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, wrapped(getattr(os, name)))


def open_registry(folder: Path, *, create: bool = False) -> Registry:
    """The registry of one trial."""
    return Registry.open(folder / "shelf", create=create, home=folder / "home")


def publish(
    registry: Registry, run_id: str = "run-2", weights: bytes = WEIGHTS, concept: ConceptRef = CAT
) -> ConceptRef:
    """Publish one version."""
    package = make_package(concept.name, content=weights)
    key = registry.home.owner_key(concept.owner)
    return registry.publish_package(package, concept, key, run_id, LICENCE, Details()).ref


def index(registry: Registry, scope: Any = "hints") -> None:
    """Bring the catalogue up to date."""
    Indexer(registry.shelf, registry.home.registry_key(registry.record.registry_id, "indexer"), any_weights).run(scope)


def delete(registry: Registry) -> None:
    """Delete the first version."""
    registry.withdraw(CAT.at(1), "delete", registry.home.owner_key("alice"), "consent withdrawn")


ACTIONS: dict[str, Callable[[Registry], object]] = {"publish": publish, "index": index, "delete": delete}


def prepare(folder: Path, action: str) -> None:
    """A registry with one listed version, and for indexing a second one to be listed."""
    registry = open_registry(folder, create=True)
    registry.new_owner("alice")
    publish(registry, "run-1", b"the first cat" * 100)
    index(registry)
    if action == "index":
        publish(registry)


def inspect(registry: Registry) -> None:
    """Whatever happened, nothing half-done is visible and everything listed can be had."""
    versions = registry.shelf.versions(CAT)
    assert versions == list(range(1, len(versions) + 1)), versions
    for version in versions:
        signed, problem, _ = readable_manifest(registry.shelf, CAT.at(version))
        assert signed is not None, problem
        if not any(item.event.action == "delete" for item in registry.shelf.events(CAT.at(version))[0]):
            registry.shelf.file(CAT.at(version), signed.manifest.weights)
    for row in registry.shelf.catalogue().owner("alice"):
        try:
            found = registry.resolve(row.ref, allow_unlisted=True)
        except NotFoundError as error:
            if "deleted" not in str(error):
                raise
        else:
            registry.pull(found)


def finish(registry: Registry, action: str) -> None:
    """Repeating the action converges."""
    ACTIONS[action](registry)
    inspect(registry)
    index(registry, "sweep")
    index(registry)
    states = {row.version: row.state for row in registry.shelf.catalogue().owner("alice")}
    first = State.DELETED if action == "delete" else State.LISTED
    expected = {1: first} if action == "delete" else {1: first, 2: State.LISTED}
    assert states == expected, states
    if action == "delete":
        assert not list(registry.shelf.store.list("users/alice/blobs/"))
    before = rows(registry)
    index(registry, "rebuild")
    assert rows(registry) == before


def rows(registry: Registry) -> list[Row]:
    """Every row of the catalogue."""
    catalogue = registry.shelf.catalogue()
    return [
        Row.from_dict(record)
        for shard in catalogue.snapshot.data
        for record in read_table(catalogue.load(shard)).to_pylist()
    ]


def in_child(work: Callable[[], object]) -> int:
    """Do something in a forked process; returns its wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # a child reports by its status alone
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def main(folder: Path, action: str) -> dict[str, Any]:
    """Kill at every call; returns how many kills there were and at which calls something was wrong."""
    template, trial = folder / "template", folder / "trial"
    assert in_child(lambda: prepare(template, action)) == 0
    wrong = []
    for number in itertools.count():
        shutil.rmtree(trial, ignore_errors=True)
        shutil.copytree(template, trial)

        def act(number: int = number) -> None:
            registry = open_registry(trial)
            kill_at(number)
            ACTIONS[action](registry)

        def look() -> None:
            registry = open_registry(trial)
            inspect(registry)
            finish(registry, action)

        status = in_child(act)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if (not killed and status != 0) or in_child(look) != 0:
            wrong.append(number)
        if not killed:
            return {"num_killed": number, "wrong": wrong}
    raise AssertionError("unreachable")


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
