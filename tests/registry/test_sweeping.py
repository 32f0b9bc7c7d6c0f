"""Garbage collection and deletion: what goes, when, and what stays although a listing does not show it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mos.concept import ConceptRef
from mos.errors import ConflictError
from registry.client import Details, Registry
from registry.indexer import Indexer
from registry.layout import CATALOGUE, EMBEDDINGS, LOG, RUNS, Stored, user_prefix
from registry.reading import Shelf
from registry.snapshot import ShardEntry
from registry.sweeping import Swept, sweep
from tests.registry.faults import Died, Fault, FaultyStore
from tests.registry.world import LICENCE, Clock, ColourScorer, MemoryStore, any_weights, make_package, write_picture

HOUR = 3600.0
DAY = 24 * HOUR
CAT, DOG = ConceptRef("alice", "cat"), ConceptRef("alice", "dog")


@pytest.fixture
def store(clock: Clock) -> FaultyStore:
    return FaultyStore(MemoryStore(clock), clock)


@pytest.fixture
def registry(store: FaultyStore, tmp_path: Path, clock: Clock) -> Registry:
    registry = Registry.over(store, create=True, home=tmp_path / "home", clock=clock)
    registry.new_owner("alice")
    return registry


def publish(registry: Registry, ref: ConceptRef, content: bytes, run_id: str = "run-1", *previews: Path) -> ConceptRef:
    package = make_package(ref.name, content=content, title=f"A {ref.name} of {content.decode()}")
    key = registry.home.owner_key(ref.owner)
    return registry.publish_package(package, ref, key, run_id, LICENCE, Details(previews=previews)).ref


def delete(registry: Registry, ref: ConceptRef) -> list[ConceptRef]:
    return registry.withdraw(ref, "delete", registry.home.owner_key(ref.owner), "consent withdrawn")


def index(registry: Registry, *scorers: ColourScorer) -> None:
    key = registry.home.registry_key(registry.record.registry_id, "indexer")
    Indexer(registry.shelf, key, any_weights, scorers=scorers, clock=registry._clock).run()


def collect(registry: Registry, clock: Clock, *, dry_run: bool = False) -> Swept:
    return sweep(registry.shelf, now_s=clock(), dry_run=dry_run)


def keys(store: FaultyStore, prefix: str) -> list[str]:
    return [stored.key for stored in store.inner.list(prefix)]


def test_what_a_killed_publisher_left_goes_after_a_day_and_nothing_else(
    registry: Registry, store: FaultyStore, clock: Clock
):
    kept = publish(registry, CAT, b"kept")
    index(registry)
    before = keys(store, "users/")
    for at in range(100):
        store.arm({at: Fault.DIES_BEFORE})
        try:
            publish(registry, DOG, b"left")
        except Died:
            continue
        break
    store.arm({})
    store.inner.delete("users/alice/m/dog/000001.json")  # as if the last one had died before its manifest too
    (left,) = set(keys(store, "users/")) - set(before)
    clock.advance(DAY - HOUR)
    assert collect(registry, clock).keys == []
    clock.advance(2 * HOUR)
    assert collect(registry, clock, dry_run=True).keys == [left]
    assert collect(registry, clock).keys == [left]
    assert keys(store, "users/") == before
    assert registry.pull(kept).read_bytes() == b"kept"
    assert collect(registry, clock).keys == []


def test_of_what_was_deleted_no_catalogue_file_speaks_a_day_later(
    registry: Registry, store: FaultyStore, clock: Clock, tmp_path: Path
):
    preview = write_picture(tmp_path / "ann.png", (250, 0, 0))
    other = write_picture(tmp_path / "dog.png", (0, 0, 250))
    ref = publish(registry, CAT, b"ann", "run-1", preview)
    publish(registry, DOG, b"dog", "run-1", other)
    index(registry, ColourScorer())
    delete(registry, ref)
    index(registry, ColourScorer())
    old = keys(store, CATALOGUE)
    clock.advance(DAY - HOUR)
    collect(registry, clock)
    assert keys(store, CATALOGUE) == old  # an older reader may be at them
    clock.advance(2 * HOUR)
    collect(registry, clock)
    left = [key for key in keys(store, CATALOGUE) if not key.startswith(LOG)]
    assert left == _files_named(registry.shelf)
    assert len(left) == 2
    assert registry.pull(DOG).read_bytes() == b"dog"
    assert [row.concept for row, _ in registry.similar(ColourScorer(), prompts=["red"])] == ["dog"]


def _files_named(shelf: Shelf) -> list[str]:
    snapshot = shelf.catalogue().snapshot

    def paths(folder: str, shards: Sequence[ShardEntry]) -> list[str]:
        return [f"catalog/{folder}/{shard.sha256}.parquet" for shard in shards]

    return sorted([*paths("data", snapshot.data), *paths("emb", snapshot.embeddings["colours"])])


def test_a_deletion_killed_before_the_bytes_is_finished_by_a_sweep(
    registry: Registry, store: FaultyStore, clock: Clock
):
    ref = publish(registry, CAT, b"ann")
    clock.advance(9 * HOUR)
    for at in range(100):
        store.arm({at: Fault.DIES_BEFORE})
        try:
            delete(registry, ref)
        except Died:
            if keys(store, f"{user_prefix('alice')}ev/"):
                break
    store.arm({})
    (blob,) = keys(store, f"{user_prefix('alice')}blobs/")
    assert collect(registry, clock).keys == [blob]


@pytest.mark.parametrize("hours", [0, 5, 7])
def test_bytes_published_again_outlive_a_sweep_whose_listing_is_stale(
    registry: Registry, store: FaultyStore, clock: Clock, hours: int
):
    """The deletion of one version died before its bytes went; another version uses them."""
    ref = publish(registry, CAT, b"same")
    blob = keys(store, f"{user_prefix('alice')}blobs/")[0]
    delete(registry, ref)
    store.inner.put(blob, b"same")
    clock.advance(hours * HOUR)
    made = publish(registry, DOG, b"same")
    clock.advance(0.9 * HOUR)
    store.arm({0: Fault.STALE_LISTING})
    collect(registry, clock)
    assert store.struck == [Fault.STALE_LISTING]
    store.arm({})
    assert registry.shelf.file(made, registry.shelf.manifest(made).manifest.weights) == b"same"


def test_what_is_published_while_a_sweep_is_under_way_stays(
    registry: Registry, store: FaultyStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    """A sweep has listed an old file that nobody names; before it removes it, somebody publishes these bytes."""
    publish(registry, CAT, b"same")
    store.inner.delete("users/alice/m/cat/000001.json")
    clock.advance(2 * DAY)
    listing = store.list

    def listing_slowly(prefix: str, after: str = "") -> Iterator[Stored]:
        if prefix == RUNS:  # after the owners' files
            publish(registry, DOG, b"same")
        return listing(prefix, after)

    monkeypatch.setattr(store, "list", listing_slowly)
    assert collect(registry, clock).keys == []
    assert registry.pull(DOG).read_bytes() == b"same"


def test_a_catalogue_file_that_is_needed_again_is_fresh(
    registry: Registry, store: FaultyStore, clock: Clock, tmp_path: Path
):
    """Embeddings of what is yanked and comes back are the same bytes, which a sweep under way may have listed."""
    key = registry.home.owner_key("alice")
    preview = write_picture(tmp_path / "cat.png", (250, 0, 0))
    publish(registry, CAT, b"cat", "run-1", preview)
    index(registry, ColourScorer())
    (embeddings,) = keys(store, EMBEDDINGS)
    registry.withdraw(CAT.at(1), "yank", key)
    index(registry, ColourScorer())
    clock.advance(2 * DAY)
    registry.withdraw(CAT.at(1), "unyank", key)
    index(registry, ColourScorer())
    assert registry.shelf.catalogue().snapshot.embeddings["colours"][0].sha256 in embeddings
    found = store.inner.head(embeddings)
    assert found is not None
    assert found.modified_s == clock()


def test_a_deletion_reaches_the_version_a_listing_does_not_show(registry: Registry, store: FaultyStore, clock: Clock):
    made = [publish(registry, CAT, content, f"run-{content.decode()}") for content in (b"1", b"2")]
    store.arm({0: Fault.STALE_LISTING})
    assert delete(registry, CAT) == made
    assert store.struck == [Fault.STALE_LISTING]
    assert keys(store, f"{user_prefix('alice')}blobs/") == []


def test_bytes_a_listed_version_needs_are_not_deleted_though_a_listing_does_not_show_it(
    registry: Registry, store: FaultyStore, clock: Clock
):
    ref = publish(registry, CAT, b"same")
    made = publish(registry, DOG, b"same")
    index(registry)
    for at in range(20):
        store.arm({at: Fault.STALE_LISTING})
        with pytest.raises(ConflictError, match="shares a file with alice/dog@1"):
            delete(registry, ref)
    assert registry.pull(made).read_bytes() == b"same"


def test_runs_expire_after_a_month_without_a_word(registry: Registry, store: FaultyStore, clock: Clock):
    for run in ("busy", "done"):
        registry.runs(run).put("checkpoints/1", b"weights")
    clock.advance(29 * DAY)
    registry.runs("busy").put("checkpoints/2", b"weights")
    clock.advance(2 * DAY)
    assert collect(registry, clock).keys == ["runs/done/checkpoints/1"]
    assert keys(store, RUNS) == ["runs/busy/checkpoints/1", "runs/busy/checkpoints/2"]


@pytest.mark.parametrize("by_sweep", [False, True])
def test_with_a_version_goes_what_its_run_left(registry: Registry, store: FaultyStore, clock: Clock, by_sweep: bool):
    """Checkpoints and staged weights are the same person; a run that only shares its name stays."""
    for run in ("run-1", "run-2"):
        registry.runs(run).put("checkpoints/000100", b"almost ann")
    registry.runs("run-1").put("staged/weights", b"ann")
    first = publish(registry, CAT, b"ann", "run-1")
    second = publish(registry, CAT, b"somebody's", "run-2")
    if by_sweep:
        runs = {key: store.inner.get(key) for key in keys(store, RUNS)}
    for ref in (first, second):
        delete(registry, ref)
    if by_sweep:  # as an owner's credentials on S3 would have left it
        for key, data in runs.items():
            store.inner.put(key, data)
        assert set(collect(registry, clock).keys) == {"runs/run-1/checkpoints/000100", "runs/run-1/staged/weights"}
    assert keys(store, RUNS) == ["runs/run-2/checkpoints/000100"]
