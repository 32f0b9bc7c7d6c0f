"""32 publishers at once, on one concept and on many, on a directory and on an S3 server, with indexers beside."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mos.concept import ConceptRef
from registry.client import Details, Registry
from registry.indexer import Indexer
from registry.reading import Shelf
from registry.search import Query
from tests.registry.world import LICENCE, any_weights, make_package

NUM = 32
CAT = ConceptRef("alice", "cat")


def _found(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    url = tmp_path / "shelf" if request.param == "directory" else request.getfixturevalue("s3_url")
    return Registry.open(url, create=True, home=tmp_path / "home")


@pytest.fixture(params=["directory", pytest.param("s3", marks=pytest.mark.slow)])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    return _found(request, tmp_path)


@pytest.fixture(params=["directory", "s3"])
def everywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    return _found(request, tmp_path)


def _publish(registry: Registry, ref: ConceptRef, run_id: str, content: bytes) -> ConceptRef:
    client = Registry(Shelf(registry.shelf.store, registry.record, registry.home))
    package = make_package(ref.name, content=content)
    key = registry.home.owner_key(ref.owner)
    return client.publish_package(package, ref, key, run_id, LICENCE, Details()).ref


def _index(registry: Registry) -> None:
    key = registry.home.registry_key(registry.record.registry_id, "indexer")
    Indexer(registry.shelf, key, any_weights).run()


def _listed(registry: Registry) -> list[ConceptRef]:
    return sorted(row.ref for row in registry.search(Query(all_versions=True, limit=1000)))


def test_32_runs_of_one_concept_become_32_versions(registry: Registry):
    registry.new_owner("alice")
    with ThreadPoolExecutor(NUM) as pool:
        made = list(pool.map(lambda n: _publish(registry, CAT, f"run-{n}", b"%d" % n), range(NUM)))
    assert sorted(ref.version or 0 for ref in made) == list(range(1, NUM + 1))
    for number, ref in enumerate(made):
        manifest = registry.shelf.manifest(ref).manifest
        assert manifest.run_id == f"run-{number}"
        assert registry.shelf.file(ref, manifest.weights) == b"%d" % number
    _index(registry)
    assert _listed(registry) == sorted(made)


def test_16_runs_published_twice_at_once_become_16_versions(everywhere: Registry):
    registry = everywhere
    registry.new_owner("alice")
    with ThreadPoolExecutor(NUM) as pool:
        made = list(pool.map(lambda n: _publish(registry, CAT, f"run-{n % 16}", b"%d" % n), range(NUM)))
    assert made[:16] == made[16:]
    assert sorted(ref.version or 0 for ref in made[:16]) == list(range(1, 17))
    _index(registry)
    assert _listed(registry) == sorted(made[:16])


def test_one_run_published_32_times_has_exactly_one_winner(registry: Registry):
    registry.new_owner("alice")
    with ThreadPoolExecutor(NUM) as pool:
        made = list(pool.map(lambda n: _publish(registry, CAT, "run-1", b"%d" % n), range(NUM)))
    assert Counter(made) == {CAT.at(1): NUM}
    assert registry.shelf.versions(CAT) == [1]
    _index(registry)
    assert _listed(registry) == [CAT.at(1)]


def test_32_concepts_of_two_owners_with_two_indexers_beside(registry: Registry):
    refs = [ConceptRef(("alice", "bob")[n % 2], f"thing-{n}") for n in range(NUM)]
    for owner in ("alice", "bob"):
        registry.new_owner(owner)
    with ThreadPoolExecutor(NUM + 2) as pool:
        publishing = [pool.submit(_publish, registry, ref, "run-1", str(ref).encode()) for ref in refs]
        indexing = [pool.submit(_index, registry) for _ in range(2)]
        made = [future.result() for future in publishing]
        for future in indexing:
            future.result()
    _index(registry)
    assert _listed(registry) == sorted(made)
    assert made == [ref.at(1) for ref in refs]
