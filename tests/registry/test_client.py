"""Publishing, indexing, resolving, pulling and searching on a directory, with true artifacts."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mos.artifact import read_artifact
from mos.concept import ConceptRef
from mos.errors import BadInputError, NotAllowedError, NotFoundError
from mos.facts import BaseFacts
from registry.client import Details, Registry
from registry.errors import NotListedError, ObjectMissingError
from registry.home import Home
from registry.layout import manifest_key
from registry.records import Limits
from registry.row import State
from registry.search import Query
from tests.registry.world import Clock

ROBOT = ConceptRef("alice", "robot")


def test_a_published_concept_is_found_and_pulled_byte_for_byte(registry: Registry, artifact, facts: BaseFacts):
    key = registry.new_owner("alice")
    path = artifact("robot")
    ref = registry.publish(path, ROBOT, key=key, run_id="run-1", details=Details(tags=("tin",)))
    assert ref == ROBOT.at(1)
    report = registry.index(bases=[facts])
    assert report.states == {"listed": 1}
    found = registry.resolve("alice/robot")
    assert (found.ref, found.state) == (ref, State.LISTED)
    assert found.checks == (
        "signature", "words", "licence", "limits", "digests", "previews", "artifact", "card", "base", "norms",
    )  # fmt: skip
    pulled = registry.pull(ref)
    assert pulled.read_bytes() == path.read_bytes()
    assert read_artifact(pulled, facts).card.words == ("<robot-rand>", "<robot-class>")
    assert [row.ref for row in registry.search(Query(text="tin rob"))] == [ref]


def test_the_same_run_published_twice_is_one_version_whatever_its_bytes(registry: Registry, artifact):
    key = registry.new_owner("alice")
    first = registry.publish(artifact("robot", seed=0), ROBOT, key=key, run_id="run-1")
    again = registry.publish(artifact("robot", seed=1), ROBOT, key=key, run_id="run-1")
    other = registry.publish(artifact("robot", seed=1), ROBOT, key=key, run_id="run-2")
    assert (first, again, other) == (ROBOT.at(1), ROBOT.at(1), ROBOT.at(2))


def test_two_owners_may_publish_the_same_concept_name(registry: Registry, artifact):
    for owner in ("alice", "bob"):
        registry.publish(
            artifact("robot", seed=1), ConceptRef(owner, "robot"), key=registry.new_owner(owner), run_id="run-1"
        )
    assert registry.index().states == {"listed": 2}


def test_an_unindexed_version_is_for_its_owner_and_those_who_say_so(registry: Registry, artifact, tmp_path: Path):
    registry.publish(artifact("robot"), ROBOT, key=registry.new_owner("alice"), run_id="run-1")
    assert registry.resolve(ROBOT).state is State.UPLOADED
    stranger = Registry.open(registry.url, home=tmp_path / "stranger")
    with pytest.raises(NotListedError, match="no version is listed"):
        stranger.resolve(ROBOT)
    with pytest.raises(NotListedError, match="not indexed yet"):
        stranger.resolve(ROBOT.at(1))
    assert stranger.resolve(ROBOT, allow_unlisted=True).ref == ROBOT.at(1)


def test_a_broken_artifact_is_refused_before_anything_is_written(registry: Registry, artifact, tmp_path: Path):
    key = registry.new_owner("alice")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(artifact("robot").read_bytes()[:-7])
    before = sorted(stored.key for stored in registry.shelf.store.list(""))
    with pytest.raises(BadInputError):
        registry.publish(bad, ROBOT, key=key, run_id="run-1")
    with pytest.raises(NotFoundError, match="nothing there"):
        registry.publish(tmp_path / "nowhere", ROBOT, key=key, run_id="run-1")
    assert sorted(stored.key for stored in registry.shelf.store.list("")) == before


def test_nobody_publishes_as_another_owner(registry: Registry, artifact):
    registry.new_owner("alice")
    mallory = registry.new_owner("mallory")
    with pytest.raises(NotAllowedError, match="only alice publishes as alice"):
        registry.publish(artifact("robot"), ROBOT, key=mallory, run_id="run-1")


def test_unknown_owner_unknown_concept_and_unknown_registry_are_one_line_each(registry: Registry, tmp_path: Path):
    with pytest.raises(NotFoundError, match="no such concept"):
        registry.resolve("alice/robot")
    with pytest.raises(ObjectMissingError, match="no such version"):
        registry.resolve("alice/robot@3")
    with pytest.raises(NotFoundError, match="mos registry init"):
        Registry.open(tmp_path / "nowhere", home=registry.home)


def test_a_manifest_that_changes_after_it_was_seen_is_tampered(
    registry: Registry, artifact: Callable[..., Path], clock: Clock
):
    key = registry.new_owner("alice")
    registry.publish(artifact("robot"), ROBOT, key=key, run_id="run-1")
    registry.publish(artifact("robot", seed=2), ROBOT, key=key, run_id="run-2")
    registry.index()
    store = registry.shelf.store
    original = store.get(manifest_key(ROBOT.at(1)))
    draft = registry.shelf.manifest(ROBOT.at(1)).manifest
    store.put(manifest_key(ROBOT.at(1)), type(draft)(**{**vars(draft), "title": "Another"}).sign(key))
    with pytest.raises(Exception, match="tampered"):
        registry.resolve(ROBOT.at(1))
    assert registry.index("rebuild").states == {"listed": 1, "tampered": 1}
    store.put(manifest_key(ROBOT.at(1)), original)
    assert registry.index("rebuild").states == {"listed": 2}


def test_an_owner_yanks_and_unyanks_and_deletes(registry: Registry, artifact, home: Home, tmp_path: Path):
    key = registry.new_owner("alice")
    ref = registry.publish(artifact("robot"), ROBOT, key=key, run_id="run-1")
    registry.index()
    stranger = Registry.open(registry.url, home=tmp_path / "stranger")
    pulled = stranger.pull(ref)
    registry.withdraw(ref, "yank", key, "blurred")
    with pytest.raises(NotListedError, match=r"yanked \(blurred\)"):
        stranger.resolve(ref)
    registry.index()
    assert registry.search() == []
    registry.withdraw(ref, "unyank", key)
    registry.index()
    assert stranger.resolve(ref).state is State.LISTED
    registry.withdraw(ref, "delete", key, "consent withdrawn")
    with pytest.raises(NotFoundError, match=r"deleted \(consent withdrawn\)"):
        stranger.resolve(ref)
    assert not pulled.exists()
    assert not [one.key for one in registry.shelf.store.list("users/alice/blobs/")]
    assert registry.index().states == {"deleted": 1}
    assert registry.index("rebuild").num_changed == 0


def test_weights_that_would_wreck_a_fusion_are_quarantined_where_the_base_is_known(
    artifact: Callable[..., Path], facts: BaseFacts, tmp_path: Path, home: Home
):
    """An update of 9 times the layer's norm: more than 4 for anyone; one of 2.4 times: too much where 2 is the cap."""
    for number, (cap, scale, state) in enumerate(
        [(4, 1.0, "quarantined"), (4, 0.5, "listed"), (2, 0.5, "quarantined")]
    ):
        registry = Registry.open(tmp_path / str(number), create=True, home=home, limits=Limits(max_norm_ratio=cap))
        path = artifact("robot", scale=scale)
        ref = registry.publish(path, ROBOT, key=registry.new_owner("alice"), run_id="run-1")
        assert registry.index(bases=[facts]).states == {state: 1}
        row = registry.shelf.catalogue().version(ref)
        assert row is not None
        assert ("times the layer's own" in row.reason) is (state == "quarantined"), row.reason


def test_a_cached_file_that_was_damaged_is_fetched_again(registry: Registry, artifact: Callable[..., Path]):
    ref = registry.publish(artifact("robot"), ROBOT, key=registry.new_owner("alice"), run_id="run-1")
    pulled = registry.pull(ref)
    good = pulled.read_bytes()
    pulled.write_bytes(good[:-1] + b"x")
    assert registry.pull(ref).read_bytes() == good


def test_a_registry_and_its_owners_are_the_administrators_to_change(registry: Registry, tmp_path: Path):
    key = registry.new_owner("alice")
    stranger = Registry.open(registry.url, home=tmp_path / "stranger")
    for action in (
        lambda: stranger.enrol("mallory", key.public),
        lambda: stranger.administrator.rotate("alice", key.public),
        lambda: stranger.administrator.revoke("alice"),
        lambda: stranger.administrator.set_standing("alice", suspended=True),
        stranger.index,
    ):
        with pytest.raises(NotAllowedError, match="key"):
            action()
