"""Who may write where on S3, as the IAM and bucket policies `mos registry init --policy` prints."""

from collections.abc import Mapping, Sequence

from mos.concept import check_name
from mos.errors import UsageError
from registry.documents import Json
from registry.layout import INBOX, OWNERS, REGISTRY, RUNS, user_prefix

_PUBLIC = (REGISTRY, f"{OWNERS}*", "users/*", "catalog/*", "evaluations/*")
_APPEND_ONLY = ("users/*/m/*", "users/*/ev/*", "catalog/log/*")
"""Named by a number, and so never replaced; what is named by its digest may be written again."""


def split_url(url: str) -> tuple[str, str]:
    """Bucket and prefix (with its closing slash, or empty) of `s3://bucket/prefix`.

    Raises:
        UsageError: If the URL names no bucket; a directory is guarded by its file permissions.
    """
    if not url.startswith("s3://"):
        raise UsageError(f"{url}: policies are for s3://bucket/prefix; a directory has its file permissions")
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else ""


def identity_policies(url: str, owners: Sequence[str]) -> dict[str, Json]:
    """IAM policies to attach to the identities of each role, by role; each owner has one of their own.

    They include the rule, known to AWS alone, that manifests, events and snapshots are only ever
    created (`s3:if-none-match`), never replaced.
    """
    bucket, prefix = split_url(url)
    policies = {
        "reader": _read(bucket, prefix),
        "administrator": [_list(bucket, prefix), _allow("All", ["s3:*"], bucket, prefix, ("*",))],
        "indexer": [*_read(bucket, prefix), *_indexer(bucket, prefix), _create_only(bucket, prefix)],
        "cluster": [_list(bucket, prefix), _read_all(bucket, prefix), *_cluster(bucket, prefix)],
    }
    for owner in owners:
        policies[f"owner-{owner}"] = [
            *_read(bucket, prefix), *_owner(bucket, prefix, owner), _create_only(bucket, prefix),
        ]  # fmt: skip
    return {role: _document(statements) for role, statements in policies.items()}


def bucket_policy(
    url: str, owners: Mapping[str, str], *, administrator: str, indexer: str, readers: Sequence[str] = ("*",)
) -> Json:
    """One bucket policy for servers without IAM (Ceph radosgw, MinIO).

    Args:
        url: The registry.
        owners: Owner -> principal, such as `arn:aws:iam:::user/alice`.
        administrator: The administrator's principal; objects belong to who wrote them, so even the bucket's
            owner needs to be named.
        indexer: The indexer's principal.
        readers: Principals that may read the shelf; `*` is everyone.
    """
    bucket, prefix = split_url(url)
    everyone = {"AWS": [*dict.fromkeys([*readers, indexer, *owners.values()])]}
    statements: list[Json] = [{**item, "Principal": everyone} for item in _read(bucket, prefix)]
    everything = _allow("Administer", ["s3:*"], bucket, prefix, ("*",))
    statements.append({**everything, "Principal": {"AWS": [administrator]}})
    for owner, principal in sorted(owners.items()):
        statements += [{**item, "Principal": {"AWS": [principal]}} for item in _owner(bucket, prefix, owner)]
    statements += [{**item, "Principal": {"AWS": [indexer]}} for item in _indexer(bucket, prefix)]
    return _document(statements)


def _owner(bucket: str, prefix: str, owner: str) -> list[Json]:
    """What an owner may do: write under the own prefix and inbox, delete own files, never a manifest or event."""
    own, inbox = user_prefix(owner), f"{INBOX}{check_name(owner, 'owner')}/"
    name = "".join(part.capitalize() for part in owner.split("-"))
    return [
        _allow(f"Write{name}", ["s3:PutObject"], bucket, prefix, (f"{own}*", f"{inbox}*")),
        _allow(f"Delete{name}", ["s3:DeleteObject"], bucket, prefix, (f"{own}blobs/*", f"{own}selftest/*")),
    ]


def _indexer(bucket: str, prefix: str) -> list[Json]:
    return [
        _allow("WriteCatalogue", ["s3:PutObject"], bucket, prefix, ("catalog/*",)),
        _allow("SeeInbox", ["s3:GetObject"], bucket, prefix, (f"{INBOX}*",)),
        _allow("ClearInbox", ["s3:DeleteObject"], bucket, prefix, (f"{INBOX}*", "catalog/*")),
    ]


def _cluster(bucket: str, prefix: str) -> list[Json]:
    return [_allow("Runs", ["s3:PutObject", "s3:DeleteObject"], bucket, prefix, (f"{RUNS}*", "evaluations/*"))]


def _read(bucket: str, prefix: str) -> list[Json]:
    return [_list(bucket, prefix), _allow("Read", ["s3:GetObject"], bucket, prefix, _PUBLIC)]


def _read_all(bucket: str, prefix: str) -> Json:
    return _allow("ReadAll", ["s3:GetObject"], bucket, prefix, ("*",))


def _list(bucket: str, prefix: str) -> Json:
    statement: Json = {
        "Sid": "List",
        "Effect": "Allow",
        "Action": ["s3:ListBucket"],
        "Resource": [f"arn:aws:s3:::{bucket}"],
    }
    if prefix:
        # IfExists: asking for one absent object names no prefix, and must say 404, not 403.
        statement["Condition"] = {"StringLikeIfExists": {"s3:prefix": [f"{prefix}*"]}}
    return statement


def _create_only(bucket: str, prefix: str) -> Json:
    return {
        "Sid": "CreateOnly",
        "Effect": "Deny",
        "Action": ["s3:PutObject"],
        "Resource": [f"arn:aws:s3:::{bucket}/{prefix}{pattern}" for pattern in _APPEND_ONLY],
        "Condition": {"Null": {"s3:if-none-match": "true"}},
    }


def _allow(sid: str, actions: Sequence[str], bucket: str, prefix: str, patterns: Sequence[str]) -> Json:
    return {
        "Sid": sid,
        "Effect": "Allow",
        "Action": list(actions),
        "Resource": [f"arn:aws:s3:::{bucket}/{prefix}{pattern}" for pattern in patterns],
    }


def _document(statements: Sequence[Json]) -> Json:
    return {"Version": "2012-10-17", "Statement": list(statements)}
