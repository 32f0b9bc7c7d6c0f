"""Who may sign what: rotation, revocation, grants, quotas, names and words, and catalogues that go back."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mos.concept import ConceptRef
from mos.errors import MosError, NotAllowedError
from registry.client import Details, Registry
from registry.documents import Envelope
from registry.errors import FormatError, RollbackError, SignatureError
from registry.fields import format_time
from registry.grant import Grant
from registry.indexer import Indexer, Scope
from registry.keys import OwnerKey, SigningKey
from registry.layout import LOG, REGISTRY, event_key, manifest_key, owner_key, snapshot_key
from registry.licence import Licence, Person
from registry.manifest import FileEntry
from registry.records import Limits, RegistryRecord
from registry.row import Row, State
from registry.screening import ScreeningError, skeleton
from registry.weights import Package
from tests.registry.world import LICENCE, Clock, any_weights, make_package

ROBOT = ConceptRef("alice", "robot")
Publish = Callable[..., ConceptRef]


@pytest.fixture
def publish(registry: Registry) -> Publish:
    """Publish any bytes: `publish(ref, run_id, key=..., package=..., grant=...)`."""

    def run(
        ref: ConceptRef = ROBOT,
        run_id: str = "run-1",
        key: SigningKey | None = None,
        package: Package | None = None,
        licence: Licence = LICENCE,
        grant: Envelope | None = None,
        **details: str,
    ) -> ConceptRef:
        signer = key or registry.new_owner(ref.owner)
        package = package or make_package(ref.name, content=f"{ref} {run_id}".encode())
        return registry.publish_package(package, ref, signer, run_id, licence, Details(**details), grant=grant).ref

    return run


def index(registry: Registry, scope: Scope = "hints", clock: Clock | None = None) -> dict[ConceptRef, Row]:
    """Index without looking into weights; the rows by version."""
    key = registry.home.registry_key(registry.record.registry_id, "indexer")
    kwargs = {} if clock is None else {"clock": clock}
    Indexer(registry.shelf, key, any_weights, **kwargs).run(scope)
    catalogue = registry.shelf.catalogue()
    owners = ("alice", "bob", "a", "a-b", "al1ce", "mallory")
    return {row.ref: row for owner in owners for row in catalogue.owner(owner)}


def states(rows: dict[ConceptRef, Row]) -> dict[str, str]:
    return {str(ref): row.state for ref, row in rows.items()}


def test_a_rotated_key_signs_no_more_but_what_it_signed_stays(registry: Registry, publish: Publish, clock: Clock):
    old = registry.new_owner("alice")
    publish()
    index(registry, clock=clock)
    clock.advance(60)
    new = OwnerKey.create("alice")
    registry.administrator.rotate("alice", new.public)
    clock.advance(60)
    with pytest.raises(NotAllowedError, match="not the one enrolled"):
        publish(run_id="run-2", key=old)
    assert publish(run_id="run-2", key=new) == ROBOT.at(2)
    assert states(index(registry, "rebuild", clock)) == {"alice/robot@1": "listed", "alice/robot@2": "listed"}
    assert registry.resolve(ROBOT.at(1)).state is State.LISTED


def _forge(registry: Registry, key: SigningKey, ref: ConceptRef, like: ConceptRef) -> None:
    """Write a manifest past the client's own checks, as a thief of a key would."""
    draft = registry.shelf.manifest(like).manifest
    forged = replace(draft, ref=ref, run_id="forged", created_at=format_time(registry._clock()))
    registry.shelf.store.create(manifest_key(ref), forged.sign(key))


def test_a_revoked_key_counts_for_what_was_seen_before_and_for_nothing_after(
    registry: Registry, publish: Publish, clock: Clock
):
    stolen = registry.new_owner("alice")
    publish()
    index(registry, clock=clock)
    clock.advance(3600)
    since = format_time(clock())
    clock.advance(60)
    publish(run_id="run-2")
    index(registry, clock=clock)
    registry.administrator.revoke("alice", since=since)
    _forge(registry, stolen, ROBOT.at(3), ROBOT.at(1))
    rows = index(registry, clock=clock)
    assert states(rows) == {
        "alice/robot@1": "listed", "alice/robot@2": "quarantined", "alice/robot@3": "quarantined",
    }  # fmt: skip
    assert "revoked" in rows[ROBOT.at(3)].reason
    assert states(index(registry, "rebuild", clock)) == states(rows)
    with pytest.raises(SignatureError, match="revoked"):
        registry.resolve(ROBOT.at(2))


def test_a_manifest_signed_by_a_stranger_is_quarantined(registry: Registry, publish: Publish, clock: Clock):
    publish()
    mallory = registry.new_owner("mallory")
    _forge(registry, mallory, ROBOT.at(2), ROBOT.at(1))
    rows = index(registry, "sweep", clock)
    assert states(rows) == {"alice/robot@1": "listed", "alice/robot@2": "quarantined"}
    assert "none of alice's" in rows[ROBOT.at(2)].reason


def _grant(key: OwnerKey, cluster: SigningKey, **changes: object) -> Envelope:
    values: dict[str, object] = {
        "ref": ROBOT,
        "run_id": "run-1",
        "spec_sha256": "a" * 64,
        "publisher": cluster.public,
        "expires_at": format_time(Clock()() + 3600),
    }
    return Grant(**{**values, **changes}).sign(key)  # type: ignore[arg-type]


def test_a_cluster_publishes_with_a_grant_while_its_owner_is_away(registry: Registry, publish: Publish, clock: Clock):
    alice, cluster = registry.new_owner("alice"), SigningKey.generate("cluster")
    ref = publish(key=cluster, grant=_grant(alice, cluster), spec_sha256="a" * 64)
    assert states(index(registry, clock=clock)) == {str(ref): "listed"}
    assert registry.resolve(ref).manifest.grant is not None


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"run_id": "run-9"}, "it is for run run-9"),
        ({"ref": ConceptRef("alice", "cat")}, "it is for alice/cat"),
        ({"spec_sha256": "b" * 64}, "was not made from the specification"),
        ({"expires_at": format_time(Clock()() - 1)}, "expired"),
        ({"publisher": SigningKey.generate("other").public}, "expected key"),
    ],
)
def test_a_grant_for_something_else_does_not_count(
    registry: Registry, publish: Publish, clock: Clock, changes: dict[str, object], because: str
):
    alice, cluster = registry.new_owner("alice"), SigningKey.generate("cluster")
    ref = publish(key=cluster, grant=_grant(alice, cluster, **changes), spec_sha256="a" * 64)
    rows = index(registry, clock=clock)
    assert rows[ref].state == "quarantined"
    assert because in rows[ref].reason


def test_a_grant_first_used_long_after_it_expired_does_not_count(registry: Registry, publish: Publish, clock: Clock):
    alice, cluster = registry.new_owner("alice"), SigningKey.generate("cluster")
    ref = publish(key=cluster, grant=_grant(alice, cluster), spec_sha256="a" * 64)
    clock.advance(3600 + 86_400 + 1)
    assert "first seen" in index(registry, clock=clock)[ref].reason


def test_quotas_count_the_oldest_first_and_deleting_makes_room(registry: Registry, publish: Publish, clock: Clock):
    key = registry.new_owner("alice")
    registry.administrator.set_standing("alice", max_versions=2)
    for run in range(3):
        publish(run_id=f"run-{run}")
        index(registry, clock=clock)
    rows = index(registry, clock=clock)
    assert states(rows) == {"alice/robot@1": "listed", "alice/robot@2": "listed", "alice/robot@3": "quarantined"}
    assert "over the quota of 2 versions" in rows[ROBOT.at(3)].reason
    registry.withdraw(ROBOT.at(1), "delete", key)
    rows = index(registry, clock=clock)
    assert states(rows) == {"alice/robot@1": "deleted", "alice/robot@2": "listed", "alice/robot@3": "listed"}
    assert index(registry, "rebuild", clock) == rows


def test_a_quota_of_bytes_lets_in_what_still_fits(registry: Registry, publish: Publish, clock: Clock):
    registry.new_owner("alice")
    registry.administrator.set_standing("alice", max_bytes=100)
    for run, size_bytes in enumerate((60, 60, 40)):
        publish(run_id=f"run-{run}", package=make_package(content=b"%d" % run * size_bytes))
        index(registry, clock=clock)
    rows = index(registry, "rebuild", clock)
    assert states(rows) == {"alice/robot@1": "listed", "alice/robot@2": "quarantined", "alice/robot@3": "listed"}
    assert "100 bytes" in rows[ROBOT.at(2)].reason


def test_a_suspended_owner_is_not_listed_until_it_is_lifted(registry: Registry, publish: Publish, clock: Clock):
    publish()
    index(registry, clock=clock)
    registry.administrator.set_standing("alice", suspended=True)
    assert states(index(registry, clock=clock)) == {"alice/robot@1": "quarantined"}
    with pytest.raises(NotAllowedError, match="suspended"):
        publish(run_id="run-2", key=registry.home.owner_key("alice"))
    registry.administrator.set_standing("alice", suspended=False)
    assert states(index(registry, clock=clock)) == {"alice/robot@1": "listed"}


def test_names_that_look_alike_are_refused(registry: Registry, publish: Publish, clock: Clock):
    registry.new_owner("alice")
    with pytest.raises(ScreeningError, match="looks like 'alice'"):
        registry.new_owner("al1ce")
    assert skeleton("modern-cat") == skeleton("m0dem-cat") == skeleton("moderncat")
    publish(ConceptRef("alice", "robot"))
    index(registry, clock=clock)
    publish(ConceptRef("alice", "r0bot"), "run-2")
    rows = index(registry, clock=clock)
    assert states(rows) == {"alice/robot@1": "listed", "alice/r0bot@1": "quarantined"}
    assert "looks like the owner's 'robot'" in rows[ConceptRef("alice", "r0bot", 1)].reason


def test_two_concepts_typed_with_the_same_word_cannot_both_be_listed(
    registry: Registry, publish: Publish, clock: Clock
):
    publish(ConceptRef("a", "b-c"))
    index(registry, clock=clock)
    publish(ConceptRef("a-b", "c"))
    rows = index(registry, clock=clock)
    assert states(rows) == {"a/b-c@1": "listed", "a-b/c@1": "quarantined"}
    assert "<a-b-c>" in rows[ConceptRef("a-b", "c", 1)].reason
    assert index(registry, "rebuild", clock) == rows


def test_a_word_that_means_another_owners_concept_is_a_hijack(registry: Registry, publish: Publish, clock: Clock):
    publish()
    index(registry, clock=clock)
    hijack = make_package("x", words=("<alice-robot>", "<x-class>"), content=b"x")
    ref = publish(ConceptRef("mallory", "x"), package=hijack)
    rows = index(registry, clock=clock)
    assert rows[ref].state == "quarantined"
    assert "what people type for alice/robot" in rows[ref].reason


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"words": ("<new1>", "<x-class>")}, "never <newN>"),
        ({"words": ("<Robot>", "<x-class>")}, "lower-case"),
        ({"words": ("<x>", "<x>")}, "not different"),
        ({"class_word": "two words"}, "one plain English word"),
        ({"concept_kind": "human"}, "names no person"),
        ({"rank": 5000}, "rank 5000"),
    ],
)
def test_screening_says_why(
    registry: Registry, publish: Publish, clock: Clock, changes: dict[str, object], because: str
):
    ref = publish(package=make_package(content=b"x", **changes))
    rows = index(registry, clock=clock)
    assert rows[ref].state == "quarantined"
    assert because in rows[ref].reason
    assert rows[ref].checks == []


def test_a_person_needs_a_consent(registry: Registry, publish: Publish, clock: Clock):
    without = Licence.named("cc-by-4.0", persons=[Person(label="Ann", consent_sha256=None)])
    agreed = Licence.named("cc-by-4.0", persons=[Person(label="Ann", consent_sha256="c" * 64)])
    first, second = publish(licence=without), publish(run_id="run-2", licence=agreed)
    rows = index(registry, clock=clock)
    assert (rows[first].state, rows[second].state) == ("quarantined", "listed")


def test_an_administrator_approves_and_an_owner_cannot(tmp_path: Path, clock: Clock):
    registry = Registry.open(
        tmp_path / "shelf", create=True, home=tmp_path / "home", limits=Limits(needs_approval=True), clock=clock
    )
    key = registry.new_owner("alice")
    ref = registry.publish_package(make_package(), ROBOT, key, "run-1", LICENCE, Details()).ref
    assert index(registry, clock=clock)[ref].state == "checked"
    registry.withdraw(ref, "approve", key)
    assert index(registry, clock=clock)[ref].state == "checked"
    registry.withdraw(ref, "approve", registry.administrator.key)
    assert index(registry, clock=clock)[ref].state == "listed"


def test_an_owner_cannot_lift_or_erase_the_administrators_yank(registry: Registry, publish: Publish, clock: Clock):
    ref = publish()
    registry.withdraw(ref, "yank", registry.administrator.key, "complaint")
    registry.withdraw(ref, "unyank", registry.home.owner_key("alice"))
    assert index(registry, clock=clock)[ref].state == "yanked"
    registry.shelf.store.delete(event_key(ref, 1))
    assert index(registry, "rebuild", clock)[ref].state == "tampered"


def test_a_client_refuses_a_catalogue_older_than_it_has_seen(registry: Registry, publish: Publish, clock: Clock):
    publish()
    index(registry, clock=clock)
    publish(run_id="run-2")
    index(registry, clock=clock)
    registry.resolve(ROBOT)
    store = registry.shelf.store
    newest = store.get(snapshot_key(2))
    store.delete(snapshot_key(2))
    with pytest.raises(RollbackError, match="seen before, is gone"):
        registry.resolve(ROBOT)
    store.put(snapshot_key(2), newest[:-1])
    with pytest.raises(FormatError):
        registry.resolve(ROBOT)
    store.put(snapshot_key(2), newest)
    assert registry.resolve(ROBOT).ref == ROBOT.at(2)


def test_a_catalogue_nobody_but_the_indexer_signs(registry: Registry, publish: Publish, clock: Clock):
    publish()
    index(registry, clock=clock)
    snapshot = registry.shelf.catalogue().snapshot
    forged = replace(snapshot, number=2)
    registry.shelf.store.create(snapshot_key(2), forged.sign(SigningKey.generate("indexer")))
    with pytest.raises(SignatureError, match="signed by key"):
        registry.resolve(ROBOT)
    assert [one.key for one in registry.shelf.store.list(LOG)] == [snapshot_key(1), snapshot_key(2)]


def test_another_registry_under_the_same_url_is_noticed(registry: Registry, clock: Clock):
    store = registry.shelf.store
    key = SigningKey.generate("administrator")
    other = RegistryRecord(
        registry_id=registry.record.registry_id, administrator=key.public, indexer=registry.record.indexer
    )
    store.put(REGISTRY, other.sign(key))
    with pytest.raises(SignatureError, match="not the one seen before"):
        Registry.over(store, home=registry.home, clock=clock)


def test_an_owner_record_neither_forged_nor_rolled_back(registry: Registry, publish: Publish, clock: Clock):
    publish()
    index(registry, clock=clock)
    store = registry.shelf.store
    first = store.get(owner_key("alice"))
    record = registry.shelf.owner("alice")
    registry.administrator.rotate("alice", OwnerKey.create("alice").public)
    store.put(owner_key("alice"), first)
    with pytest.raises(RollbackError, match="older than record"):
        registry.shelf.owner("alice")
    store.put(owner_key("alice"), replace(record, serial=9).sign(registry.home.owner_key("alice")))
    with pytest.raises(SignatureError, match="owner record of alice"):
        registry.shelf.owner("alice")


def test_a_newer_format_is_refused_with_the_command_that_helps(registry: Registry, publish: Publish):
    ref = publish()
    key = registry.home.owner_key("alice")
    document = {**registry.shelf.manifest(ref).manifest.to_json(), "format": 99, "version": 2}
    envelope = Envelope.seal(document, "application/vnd.mos.manifest+json", key)
    registry.shelf.store.create(manifest_key(ROBOT.at(2)), envelope.to_bytes())
    with pytest.raises(FormatError, match="pip install --upgrade mos"):
        registry.shelf.manifest(ROBOT.at(2))


def test_flipped_bits_in_weights_are_noticed_by_the_reader_and_by_the_indexer(
    registry: Registry, publish: Publish, clock: Clock
):
    ref = publish()
    index(registry, clock=clock)
    entry = registry.shelf.manifest(ref).manifest.weights
    key = f"users/alice/blobs/sha256/{entry.sha256}"
    good = registry.shelf.store.get(key)
    registry.shelf.store.put(key, bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(MosError, match="are not those of the manifest"):
        registry.pull(ref)
    assert index(registry, "rebuild", clock)[ref].state == "uploaded"
    with pytest.raises(MosError, match="uploaded"):
        Registry.open(registry.url, home=registry.home.root / "stranger").resolve(ref)
    publish()  # the same run again mends what is damaged
    assert index(registry, clock=clock)[ref].state == "listed"
    assert registry.pull(ref).read_bytes() == good


def test_a_preview_or_a_manifest_longer_than_any_is_refused_unread(registry: Registry, publish: Publish, clock: Clock):
    """By those who skip the client: 5 MiB of preview; a manifest and weights that go on and on."""
    ref = publish()
    key = registry.home.owner_key("alice")
    manifest = registry.shelf.manifest(ref).manifest
    preview = FileEntry(role="preview", sha256="0" * 64, size_bytes=5 << 20)
    long = replace(manifest, ref=ROBOT.at(2), run_id="run-2", files=(*manifest.files, preview))
    store = registry.shelf.store
    store.create(manifest_key(long.ref), long.sign(key))
    store.create(manifest_key(ROBOT.at(3)), b"{" * (8 << 20))
    store.put(f"users/alice/blobs/sha256/{manifest.weights.sha256}", b"x" * (8 << 20))
    reads = _longest_reads(registry)
    rows = index(registry, "sweep", clock)
    assert "preview of 5242880 bytes, allowed are 4194304" in rows[ROBOT.at(2)].reason
    assert "expected at most 1048576" in rows[ROBOT.at(3)].reason
    assert rows[ref].state == "uploaded"
    assert max(reads) == (1 << 20) + 1


def _longest_reads(registry: Registry) -> list[int]:
    """Lengths of what is read from the store from now on."""
    reads: list[int] = []
    store = registry.shelf.store
    get = store.get

    def watched(key: str, *, at_most: int | None = None) -> bytes:
        data = get(key, at_most=at_most)
        reads.append(len(data))
        return data

    store.get = watched  # type: ignore[method-assign]
    return reads
