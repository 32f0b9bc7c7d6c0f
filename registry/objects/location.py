"""From a URL to a store: a path, `file://path` or `s3://bucket/prefix`."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mos.errors import BadInputError
from registry.objects.directory import DirectoryStore
from registry.objects.protocol import ObjectStore

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def open_store(url: str | Path, *, create: bool = False) -> ObjectStore:
    """Open the store at `url`.

    Args:
        url: A directory, `file:///directory` or `s3://bucket/prefix`.
        create: Make the directory if it is not there (a bucket is never made).

    Raises:
        BadInputError: If the URL is of no known kind.
        NotFoundError: If there is no such directory or bucket.
    """
    text = str(url)
    scheme = text.partition("://")[0] if "://" in text else ""
    if scheme == "":
        return DirectoryStore(Path(text).expanduser(), create=create)
    if scheme == "file":
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise BadInputError(f"{text}: expected file:///absolute/path")
        return DirectoryStore(Path(unquote(parts.path)), create=create)
    if scheme == "s3":
        bucket, _, prefix = text.removeprefix("s3://").partition("/")
        if not _BUCKET.fullmatch(bucket):
            raise BadInputError(f"{text}: expected s3://bucket/prefix")
        from registry.objects.s3 import S3Store  # boto3 takes a second to import

        return S3Store(bucket, prefix.strip("/"))
    raise BadInputError(f"{text}: expected a directory, file:///path or s3://bucket/prefix")
