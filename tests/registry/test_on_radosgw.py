"""The registry on Ceph radosgw with an identity for each role: nobody writes under another's prefix."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest

from mos.concept import ConceptRef
from mos.errors import NotAllowedError
from registry.client import Details, Registry
from registry.documents import sha256_hex
from registry.errors import ObjectExistsError
from registry.home import Home
from registry.indexer import Indexer
from registry.keys import OwnerKey
from registry.layout import manifest_key
from registry.objects.s3 import S3Store
from registry.policy import bucket_policy
from registry.search import Query
from registry.sweeping import sweep
from tests.registry.world import LICENCE, any_weights, make_package
from tests.servers.radosgw import RadosGateway, radosgw

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROLES = ("root", "indexer", "alice", "bob", "reader")
URL = "s3://shelf/mos"
As = Callable[[str], S3Store]


@pytest.fixture(scope="module")
def gateway() -> Iterator[RadosGateway]:
    folder = Path(os.environ.get("MOS_RADOSGW", Path(tempfile.gettempdir()) / f"mos-radosgw-{os.getuid()}"))
    with radosgw(folder) as running:
        yield running


@pytest.fixture(scope="module")
def as_user(gateway: RadosGateway) -> Iterator[As]:
    """A store seen with the credentials of a role; the bucket is root's, its policy ours."""
    users = {name: gateway.add_user(name) for name in ROLES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", gateway.endpoint)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")

        def connect(name: str) -> S3Store:
            patch.setenv("AWS_ACCESS_KEY_ID", users[name][0])
            patch.setenv("AWS_SECRET_ACCESS_KEY", users[name][1])
            return S3Store("shelf", "mos")

        connect("root")
        client = boto3.session.Session().client("s3")
        client.create_bucket(Bucket="shelf")
        owners = {name: f"arn:aws:iam:::user/{name}" for name in ("alice", "bob")}
        names = {"administrator": "root", "indexer": "indexer"}
        roles = {role: f"arn:aws:iam:::user/{name}" for role, name in names.items()}
        policy = bucket_policy(URL, owners, **roles, readers=["arn:aws:iam:::user/reader"])
        client.put_bucket_policy(Bucket="shelf", Policy=json.dumps(policy))
        yield connect


@pytest.fixture(scope="module")
def homes(as_user: As, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Home]:
    """A registry founded by root, the indexer's key moved to the indexer, alice and bob enrolled."""
    folder = tmp_path_factory.mktemp("homes")
    homes = {name: Home(folder / name) for name in ROLES}
    registry = Registry.over(as_user("root"), create=True, home=homes["root"])
    registry_id = registry.record.registry_id
    homes["root"].registry_key(registry_id, "indexer").save(homes["indexer"].registry_key_path(registry_id, "indexer"))
    for owner in ("alice", "bob"):
        key = OwnerKey.create(owner, homes[owner].owner_key_path(owner))
        registry.enrol(owner, key.public)
    return homes


def _publish(store: S3Store, home: Home, ref: ConceptRef, run_id: str, content: bytes) -> ConceptRef:
    registry = Registry.over(store, home=home)
    package = make_package(ref.name, content=content)
    return registry.publish_package(package, ref, home.owner_key(ref.owner), run_id, LICENCE, Details()).ref


def test_each_role_does_its_part_with_its_own_credentials(as_user: As, homes: dict[str, Home]):
    for owner in ("alice", "bob"):
        ref = ConceptRef(owner, "robot")
        assert _publish(as_user(owner), homes[owner], ref, "run-1", owner.encode()) == ref.at(1)
    indexing = Registry.over(as_user("indexer"), home=homes["indexer"])
    key = homes["indexer"].registry_key(indexing.record.registry_id, "indexer")
    assert Indexer(indexing.shelf, key, any_weights).run().states == {"listed": 2}
    reading = Registry.over(as_user("reader"), home=homes["reader"])
    assert [str(row.ref) for row in reading.search(Query())] == ["alice/robot@1", "bob/robot@1"]
    assert reading.pull("alice/robot").read_bytes() == b"alice"


def test_an_owner_can_neither_write_nor_delete_under_anothers_prefix(as_user: As, homes: dict[str, Home]):
    ref = ConceptRef("alice", "kept")
    _publish(as_user("alice"), homes["alice"], ref, "run-1", b"kept")
    alice_file = next(iter(as_user("root").list("users/alice/blobs/"))).key
    forbidden = {
        "bob": ["users/alice/blobs/x", "users/alice/m/kept/000002.json", "inbox/alice/x", "owners/bob.json"],
        "reader": ["users/alice/x", "catalog/log/x", "registry.json"],
        "indexer": ["users/alice/x", "owners/alice.json"],
        "alice": ["catalog/log/x", "catalog/data/x", "registry.json", "owners/alice.json", "runs/r/x"],
    }
    for role, keys in forbidden.items():
        store = as_user(role)
        for key in keys:
            with pytest.raises(NotAllowedError):
                store.put(key, b"forged")
            with pytest.raises(NotAllowedError):
                store.create(key, b"forged")
    for role in ("bob", "reader", "indexer"):
        store = as_user(role)
        for key in (manifest_key(ref.at(1)), alice_file):
            with pytest.raises(NotAllowedError):
                store.delete(key)
    with pytest.raises(NotAllowedError):
        as_user("alice").delete(manifest_key(ref.at(1)))
    assert as_user("root").head(manifest_key(ref.at(1))) is not None


def test_the_private_runs_of_others_are_not_readable(as_user: As):
    as_user("root").put("runs/run-1/checkpoint", b"private")
    for role in ("alice", "reader"):
        with pytest.raises(NotAllowedError):
            as_user(role).get("runs/run-1/checkpoint")


def test_32_racing_creates_have_one_winner(as_user: As):
    store = as_user("alice")
    store.check_conditional_writes("users/alice/selftest/")

    def attempt(number: int, race: int) -> bool:
        try:
            store.create(f"users/alice/race-{race}", b"%d" % number * 1000)
        except ObjectExistsError:
            return False
        return True

    for race in range(4):
        with ThreadPoolExecutor(32) as pool:
            assert list(pool.map(lambda n, race=race: attempt(n, race), range(32))).count(True) == 1


def test_32_publishers_on_one_concept_lose_nothing(as_user: As, homes: dict[str, Home]):
    store, ref = as_user("alice"), ConceptRef("alice", "crowd")
    with ThreadPoolExecutor(32) as pool:
        made = list(pool.map(lambda n: _publish(store, homes["alice"], ref, f"run-{n}", b"%d" % n), range(32)))
    assert sorted(one.version or 0 for one in made) == list(range(1, 33))


def test_what_an_owner_may_not_delete_of_a_run_goes_with_the_administrators_sweep(as_user: As, homes: dict[str, Home]):
    root, alice, ref = as_user("root"), as_user("alice"), ConceptRef("alice", "ann")
    root.put("runs/run-ann/staged/ann.safetensors", b"ann")
    _publish(alice, homes["alice"], ref, "run-ann", b"ann")
    registry = Registry.over(alice, home=homes["alice"])
    registry.withdraw(ref, "delete", homes["alice"].owner_key("alice"), "consent withdrawn")
    blobs = f"users/alice/blobs/sha256/{sha256_hex(b'ann')}"
    assert root.head(blobs) is None
    assert root.head("runs/run-ann/staged/ann.safetensors") is not None
    swept = sweep(Registry.over(root, home=homes["root"]).shelf)
    assert swept.keys == ["runs/run-ann/staged/ann.safetensors"]
    assert root.head("runs/run-ann/staged/ann.safetensors") is None
