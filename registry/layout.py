"""Where everything lies in a registry: the keys of its objects, the same in a directory and on S3.

Keys are built from checked parts only and every store checks them again, so that no name can climb out of
its prefix. docs/registry.md draws the layout.
"""

import re
from dataclasses import dataclass

from mos.concept import ConceptRef, check_name
from mos.errors import BadInputError

REGISTRY = "registry.json"
OWNERS = "owners/"
USERS = "users/"
INBOX = "inbox/"
CATALOGUE = "catalog/"
LOG = "catalog/log/"
DATA = "catalog/data/"
EMBEDDINGS = "catalog/emb/"
RUNS = "runs/"
SELFTEST = "selftest/"

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}(?:/[A-Za-z0-9_][A-Za-z0-9._-]{0,199}){0,9}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MANIFEST = re.compile(r"users/([^/]+)/m/([^/]+)/([0-9]{6})\.json")
_HINT = re.compile(r"inbox/([^/]+)/[0-9A-HJKMNP-TV-Z]{26}(?:\.([a-z0-9-]+))?")
_SNAPSHOT = re.compile(r"catalog/log/([0-9]{20})\.json")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


def check_key(key: str) -> str:
    """Return `key` if every segment is plain and none starts with a dot.

    Raises:
        BadInputError: If not; no store ever sees such a key.
    """
    if not _KEY.fullmatch(key):
        raise BadInputError(f"object key {key!r}: expected plain segments of letters, digits, '.', '_' and '-'")
    return key


def check_sha256(digest: str) -> str:
    """Return `digest` if it is 64 lower-case hex digits; raises BadInputError if not."""
    if not _SHA256.fullmatch(digest):
        raise BadInputError(f"sha256 {digest!r}: expected 64 lower-case hex digits")
    return digest


def check_run_id(run_id: str) -> str:
    """Return `run_id` if it may name a run; raises BadInputError if not."""
    if not _RUN_ID.fullmatch(run_id):
        raise BadInputError(f"run id {run_id!r}: expected 1 to 100 letters, digits, '_' and '-'")
    return run_id


def owner_key(owner: str) -> str:
    """The owner's record: public keys, quota, standing."""
    return f"{OWNERS}{check_name(owner, 'owner')}.json"


def user_prefix(owner: str) -> str:
    """Everything an owner may write, but for the inbox."""
    return f"{USERS}{check_name(owner, 'owner')}/"


def blob_key(owner: str, sha256: str) -> str:
    """A file of an owner, by its content."""
    return f"{user_prefix(owner)}blobs/sha256/{check_sha256(sha256)}"


def manifests_prefix(owner: str, name: str | None = None) -> str:
    """The manifests of one concept, or of all concepts of an owner."""
    return f"{user_prefix(owner)}m/" + ("" if name is None else f"{check_name(name, 'concept')}/")


def manifest_key(ref: ConceptRef) -> str:
    """The manifest of one version: creating it is the moment of publication."""
    if ref.version is None:
        raise BadInputError(f"{ref}: a manifest belongs to one version; name it as {ref}@1")
    return f"{manifests_prefix(ref.owner, ref.name)}{ref.version:06d}.json"


def parse_manifest_key(key: str) -> ConceptRef | None:
    """The version a key holds the manifest of, or None for any other key."""
    match = _MANIFEST.fullmatch(key)
    return _reference(match.group(1), match.group(2), match.group(3)) if match else None


def events_prefix(ref: ConceptRef) -> str:
    """The events of one version, or of all versions of a concept."""
    concept = f"{user_prefix(ref.owner)}ev/{ref.name}/"
    return concept if ref.version is None else f"{concept}{ref.version:06d}/"


def event_key(ref: ConceptRef, number: int) -> str:
    """Event `number` (from 1) of a version: yank, unyank, delete, approve."""
    if ref.version is None or not 1 <= number <= 9999:
        raise BadInputError(f"{ref}: event {number} has no place; a version has at most 9999 events")
    return f"{events_prefix(ref)}{number:04d}.json"


def hint_key(owner: str, name: str | None, ulid: str) -> str:
    """An empty object that tells the indexer to look at a concept, or at all of an owner; never believed."""
    return f"{INBOX}{check_name(owner, 'owner')}/{ulid}" + ("" if name is None else f".{check_name(name, 'concept')}")


def parse_hint_key(key: str) -> tuple[str, str | None] | None:
    """The owner and the concept (None for all of them) a hint points at, or None if the key is no hint."""
    match = _HINT.fullmatch(key)
    if match is None or _reference(match.group(1), match.group(2) or "any", None) is None:
        return None
    return match.group(1), match.group(2)


def snapshot_key(number: int) -> str:
    """Snapshot `number` of the catalogue, signed by the indexer."""
    return f"{LOG}{number:020d}.json"


def parse_snapshot_key(key: str) -> int | None:
    """The number of a snapshot's key, or None for any other key."""
    match = _SNAPSHOT.fullmatch(key)
    return int(match.group(1)) if match else None


def run_prefix(run_id: str) -> str:
    """The private objects of a run: checkpoints and staged artifacts."""
    return f"{RUNS}{check_run_id(run_id)}/"


@dataclass(frozen=True)
class Stored:
    """One line of a listing: key, size in bytes, and when the store says it was written (Unix seconds)."""

    key: str
    size_bytes: int
    modified_s: float


def _reference(owner: str, name: str, version: str | None) -> ConceptRef | None:
    try:
        return ConceptRef(owner, name, None if version is None else int(version))
    except BadInputError:
        return None
