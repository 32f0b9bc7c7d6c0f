"""What every object store promises, on a directory, on an S3 server and on the one tests keep in memory."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mos.errors import BadInputError, NotAllowedError, NotFoundError, TryAgainError
from registry.errors import ObjectExistsError, ObjectMissingError, StoreBusyError, UnsafeBackendError
from registry.objects import ObjectStore, open_store
from registry.objects.directory import DirectoryStore
from registry.objects.s3 import S3Store
from tests.registry.faults import Fault, FaultyStore
from tests.registry.world import MemoryStore

KINDS = ("directory", "s3", "memory")


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "directory":
        return open_store(tmp_path / "objects", create=True)
    if request.param == "s3":
        return open_store(request.getfixturevalue("s3_url"))
    return MemoryStore()


def test_what_is_created_is_read_back_and_not_created_twice(store: ObjectStore):
    store.create("a/b.json", b"one")
    assert store.get("a/b.json") == b"one"
    with pytest.raises(ObjectExistsError):
        store.create("a/b.json", b"two")
    assert store.get("a/b.json") == b"one"


def test_a_long_object_can_be_read_in_part(store: ObjectStore):
    store.put("long", b"0123456789" * 100_000)
    assert store.get("long", at_most=7) == b"0123456"
    assert store.get("long", at_most=1_000_000) == store.get("long")
    assert len(store.get("long", at_most=2_000_000)) == 1_000_000


def test_put_replaces_delete_removes_and_missing_is_said(store: ObjectStore):
    store.put("a", b"one")
    store.put("a", b"two")
    assert store.get("a") == b"two"
    found = store.head("a")
    assert found is not None
    assert (found.key, found.size_bytes) == ("a", 3)
    store.delete("a")
    store.delete("a")
    assert store.head("a") is None
    with pytest.raises(ObjectMissingError):
        store.get("a")


def test_listings_are_sorted_by_key_and_start_after_one(store: ObjectStore):
    keys = ["b/1", "b/10", "b/2", "b-c/1", "b.d", "a/x", "b/sub/1"]
    for key in keys:
        store.put(key, b"")
    assert [one.key for one in store.list("")] == sorted(keys)
    assert [one.key for one in store.list("b/")] == ["b/1", "b/10", "b/2", "b/sub/1"]
    assert [one.key for one in store.list("b/", after="b/10")] == ["b/2", "b/sub/1"]
    assert list(store.list("nothing/")) == []


def test_no_store_takes_a_key_that_could_climb_out(store: ObjectStore):
    for key in ["", "/a", "a//b", "../a", "a/../b", ".hidden", "a/.tmp", "a b", "a\n", "ä", "a" * 300, "a/"]:
        for action in (store.get, store.delete, store.head, lambda key: store.put(key, b"")):
            with pytest.raises(BadInputError):
                action(key)


def test_of_32_racing_creates_exactly_one_wins(store: ObjectStore):
    def attempt(number: int) -> bool:
        try:
            store.create("race", b"%02d" % number)
        except ObjectExistsError:
            return False
        return True

    with ThreadPoolExecutor(32) as pool:
        won = list(pool.map(attempt, range(32)))
    assert won.count(True) == 1
    assert store.get("race") == b"%02d" % won.index(True)


def test_the_self_test_passes_and_leaves_nothing(store: ObjectStore):
    store.check_conditional_writes("selftest/")
    assert list(store.list("")) == []


class IgnoresConditions(MemoryStore):
    """A store as some S3 servers are: If-None-Match means nothing to it."""

    def create(self, key: str, data: bytes) -> None:
        self.put(key, data)


def test_the_self_test_refuses_a_store_that_ignores_conditions():
    with pytest.raises(UnsafeBackendError, match="ignores conditional writes"):
        IgnoresConditions().check_conditional_writes("selftest/")


def test_the_self_test_takes_damaged_answers_for_what_they_are():
    store = FaultyStore(MemoryStore())
    store.arm({2: Fault.TRUNCATED, 3: Fault.TRUNCATED})  # both answers come back empty
    with pytest.raises(StoreBusyError, match="nobody wrote"):
        store.check_conditional_writes("selftest/")
    assert list(store.inner.list("")) == []


def test_an_s3_listing_goes_past_a_page(s3_url: str):
    store = S3Store("shelf", s3_url.rpartition("/")[2], page_size=3)
    for number in range(10):
        store.put(f"many/{number}", b"")
    assert [one.key for one in store.list("many/")] == [f"many/{number}" for number in range(10)]
    assert [one.key for one in store.list("many/", after="many/1")] == [f"many/{number}" for number in range(2, 10)]


def test_an_unknown_bucket_and_an_unreachable_server_are_said(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(NotFoundError, match="no such bucket"):
        open_store("s3://no-such-bucket/x").put("a", b"")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(TryAgainError):
        S3Store("shelf", "x", max_attempts=1, timeout_s=1).get("a")


@pytest.mark.parametrize("url", ["http://host/x", "s3://", "s3://UPPER/x", "file://elsewhere/x"])
def test_a_url_of_no_known_kind_is_refused(url: str):
    with pytest.raises(BadInputError):
        open_store(url)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = DirectoryStore(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TryAgainError, match="disk is full; free some space and run it again"):
        store.create("a/b", b"x" * 1000)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_link_out_of_the_registry_is_followed_by_nobody(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_bytes(b"private")
    store = DirectoryStore(tmp_path / "objects", create=True)
    store.put("users/m/x", b"")
    (tmp_path / "objects" / "users" / "m" / "file").symlink_to(secret / "key")
    (tmp_path / "objects" / "users" / "m" / "folder").symlink_to(secret)
    with pytest.raises(NotAllowedError, match="symbolic link"):
        store.get("users/m/file")
    for action in (
        lambda: store.put("users/m/folder/new", b""),
        lambda: store.delete("users/m/folder/key"),
        lambda: store.get("users/m/folder/key"),
        lambda: list(store.list("users/m/folder/")),
    ):
        with pytest.raises(NotAllowedError, match="leads out"):
            action()
    assert sorted(path.name for path in secret.iterdir()) == ["key"]


def test_half_written_files_are_never_listed_and_swept_in_time(tmp_path: Path):
    store = DirectoryStore(tmp_path)
    (tmp_path / ".tmp").mkdir()
    (tmp_path / ".tmp" / "half").write_bytes(b"ha")
    assert list(store.list("")) == []
    assert store.sweep_temporary(older_than_s=60) == 0
    assert store.sweep_temporary(older_than_s=0) == 1


def test_a_store_without_permission_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = DirectoryStore(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(NotAllowedError, match="permission denied"):
        store.create("a", b"")


def test_credentials_come_from_the_standard_chain_or_not_at_all(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with pytest.raises(NotAllowedError, match="credentials"):
        open_store(s3_url).put("a", b"one")
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = testing\naws_secret_access_key = testing\n")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    store = open_store(s3_url)
    store.put("a", b"one")
    assert store.get("a") == b"one"
