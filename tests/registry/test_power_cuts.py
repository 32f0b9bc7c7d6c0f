"""The power fails on the worst of disks, which keeps nothing but what was synced, at every sync of a publication."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mos.concept import ConceptRef
from registry.client import Details, Registry
from registry.layout import INBOX, blob_key, manifest_key
from registry.manifest import SignedManifest
from tests.registry.world import LICENCE, make_package

CAT = ConceptRef("alice", "cat")
PREVIEW = b"\x89PNG\r\n\x1a\n a preview"


class WorstDisk:
    """What would survive: a file's bytes once it was synced, a name once its folder was."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bytes: dict[int, bytes] = {}
        self.names: dict[int, dict[str, tuple[int, bool]]] = {}
        for folder, _, files in os.walk(root):
            self.keep(Path(folder))
            for name in files:
                self.keep(Path(folder, name))

    def keep(self, path: Path) -> None:
        """Sync a file or folder."""
        number = path.stat().st_ino
        if path.is_dir():
            self.names[number] = {one.name: (one.inode(), one.is_dir()) for one in os.scandir(path)}
        else:
            self.bytes[number] = path.read_bytes()

    def survivors(self) -> dict[str, bytes]:
        """Key -> bytes of every object after a power cut now; files never synced are empty."""
        found: dict[str, bytes] = {}
        folders = [("", self.root.stat().st_ino)]
        while folders:
            prefix, folder = folders.pop()
            for name, (number, is_folder) in self.names.get(folder, {}).items():
                if is_folder:
                    folders.append((f"{prefix}{name}/", number))
                else:
                    found[prefix + name] = self.bytes.get(number, b"")
        return found


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry.open(tmp_path / "shelf", create=True, home=tmp_path / "home")
    registry.new_owner("alice")
    return registry


@pytest.fixture
def disk(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> WorstDisk:
    _publish(registry, "run-0", b"another", ConceptRef("alice", "owl"))  # makes alice's folders, tests the store
    disk = WorstDisk(Path(registry.url))
    sync = os.fsync

    def watched(descriptor: int) -> None:
        sync(descriptor)
        disk.keep(Path(f"/proc/self/fd/{descriptor}").readlink())
        _check(disk.survivors())

    monkeypatch.setattr(os, "fsync", watched)
    return disk


def _publish(registry: Registry, run_id: str, weights: bytes, concept: ConceptRef = CAT, *previews: Path) -> ConceptRef:
    package = make_package(concept.name, content=weights)
    details = Details(created_at=1_790_000_000, previews=previews)
    key = registry.home.owner_key(concept.owner)
    return registry.publish_package(package, concept, key, run_id, LICENCE, details).ref


def _check(survivors: dict[str, bytes]) -> None:
    """Every manifest that survived is whole and has its files and a hint."""
    for key, data in survivors.items():
        if "/m/" in key:
            name, version = key.split("/")[3], int(key.split("/")[4].removesuffix(".json"))
            ref = ConceptRef("alice", name, version)
            for entry in SignedManifest.from_bytes(data, ref).manifest.files:
                assert len(survivors[blob_key("alice", entry.sha256)]) == entry.size_bytes
            assert any(hint.startswith(f"{INBOX}alice/") and hint.endswith(name) for hint in survivors)


def test_a_version_survives_with_all_it_promises_or_not_at_all(registry: Registry, disk: WorstDisk, tmp_path: Path):
    preview = tmp_path / "cat.png"
    preview.write_bytes(PREVIEW)
    for number, concept in enumerate([CAT, ConceptRef("alice", "dog"), CAT]):
        made = _publish(registry, f"run-{number + 1}", b"%d" % number * 1000, concept, preview)
        assert manifest_key(made) in disk.survivors()


@pytest.mark.parametrize("at", ["link", "replace", "mkdir"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_what_a_retry_finds_survives_once_it_returns(
    registry: Registry, disk: WorstDisk, monkeypatch: pytest.MonkeyPatch, at: str, moment: str
):
    with monkeypatch.context() as patch:
        patch.setattr(os, at, _dying(getattr(os, at), moment))
        with pytest.raises(KeyboardInterrupt):
            _publish(registry, "run-1", b"weights" * 1000)
    made = _publish(registry, "run-1", b"weights" * 1000)
    assert manifest_key(made) in disk.survivors()


def _dying(function: Callable[..., None], moment: str) -> Callable[..., None]:
    def call(*args: object) -> None:
        if moment == "after":
            function(*args)
        raise KeyboardInterrupt

    return call


def test_a_file_found_is_synced_by_whoever_promises_it(
    registry: Registry, disk: WorstDisk, monkeypatch: pytest.MonkeyPatch
):
    """Another publisher has named the same file and not yet synced the folder."""
    weights = b"weights" * 1000
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _dying(os.replace, "after"))
        with pytest.raises(KeyboardInterrupt):
            _publish(registry, "run-1", weights)
    made = _publish(registry, "run-2", weights, ConceptRef("alice", "dog"))
    assert manifest_key(made) in disk.survivors()
