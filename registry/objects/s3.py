"""A registry in an S3 bucket: boto3, conditional writes, errors in the registry's own words.

Credentials and endpoint come through the standard AWS chain only (environment, shared config, roles;
`AWS_ENDPOINT_URL_S3` names a server other than AWS).
"""

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ResponseStreamingError,
)

from mos.errors import NotAllowedError, NotFoundError
from registry.errors import ObjectExistsError, ObjectMissingError, StoreBusyError
from registry.layout import Stored, check_key
from registry.objects import selftest

_FORBIDDEN = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled", "403"}
_CONFLICT = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}


class S3Store:
    """Objects of one bucket below one prefix; implements `ObjectStore`. Safe to share between threads."""

    def __init__(
        self, bucket: str, prefix: str, *, max_attempts: int = 5, timeout_s: float = 30.0, page_size: int = 1000
    ) -> None:
        """Connect; nothing is asked of the server yet.

        Args:
            bucket: Name of a bucket that exists.
            prefix: Where the registry begins in it, without slashes at the ends; may be empty.
            max_attempts: How often one request is tried.
            page_size: How many objects one page of a listing asks for.
            timeout_s: How long one try waits for a connection and for each answer, in seconds.
        """
        self._bucket = bucket
        self._page_size = page_size
        self._prefix = f"{check_key(prefix)}/" if prefix else ""
        config = Config(
            signature_version="s3v4",
            retries={"total_max_attempts": max_attempts, "mode": "standard"},
            connect_timeout=timeout_s,
            read_timeout=timeout_s,
            max_pool_connections=64,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"} if _endpoint_is_named() else {},
        )
        with self._translated("connecting"):
            self._client: Any = boto3.session.Session().client("s3", config=config)

    @property
    def url(self) -> str:
        """The store as `s3://bucket/prefix`."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def create(self, key: str, data: bytes) -> None:
        """Write a new object with `If-None-Match: *`; see `ObjectStore.create`."""
        with self._translated(key):
            self._client.put_object(Bucket=self._bucket, Key=self._full(key), Body=data, IfNoneMatch="*")

    def put(self, key: str, data: bytes) -> None:
        """Write or replace an object."""
        with self._translated(key):
            self._client.put_object(Bucket=self._bucket, Key=self._full(key), Body=data)

    def put_all(self, objects: Mapping[str, bytes], *, present: Collection[str] = ()) -> None:  # noqa: ARG002
        """Write or replace several objects, one after another; what a server has acknowledged stays."""
        for key, data in objects.items():
            self.put(key, data)

    def get(self, key: str, *, at_most: int | None = None) -> bytes:
        """The object or its beginning; a body cut short is asked for again, then an error."""
        for attempt in range(3):
            try:
                with self._translated(key):
                    answer = self._client.get_object(Bucket=self._bucket, Key=self._full(key))
                    length: int = answer["ContentLength"]
                    is_long = at_most is not None and length > at_most
                    body: bytes = answer["Body"].read(at_most if is_long else None)
                    if is_long:
                        answer["Body"].close()  # the rest stays unread, and the connection with it
                    if len(body) == (at_most if is_long else length):
                        return body
            except StoreBusyError:
                if attempt == 2:
                    raise
        raise StoreBusyError(f"{self.url}/{key}: the server sends less than it promises; try again")

    def head(self, key: str) -> Stored | None:
        """Size and time of an object, or None."""
        try:
            with self._translated(key):
                answer = self._client.head_object(Bucket=self._bucket, Key=self._full(key))
        except ObjectMissingError:
            return None
        return Stored(key, answer["ContentLength"], answer["LastModified"].timestamp())

    def list(self, prefix: str, after: str = "") -> Iterator[Stored]:
        """Objects below `prefix` after `after`, by key, a page at a time."""
        arguments: dict[str, Any] = {
            "Bucket": self._bucket,
            "Prefix": self._prefix + prefix,
            "MaxKeys": self._page_size,
        }
        if after:
            arguments["StartAfter"] = self._prefix + after
        while True:
            with self._translated(prefix):
                page = self._client.list_objects_v2(**arguments)
            for entry in page.get("Contents", ()):
                key = entry["Key"].removeprefix(self._prefix)
                yield Stored(key, entry["Size"], entry["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]
            arguments.pop("StartAfter", None)

    def delete(self, key: str) -> None:
        """Remove an object; none there is not an error."""
        with self._translated(key), contextlib.suppress(ObjectMissingError):
            self._client.delete_object(Bucket=self._bucket, Key=self._full(key))

    def check_conditional_writes(self, prefix: str) -> None:
        """Try the server; see `ObjectStore.check_conditional_writes`."""
        selftest.check_conditional_writes(self, prefix)

    def _full(self, key: str) -> str:
        return self._prefix + check_key(key)

    @contextlib.contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        """Turn botocore's errors into ours, each with the object it happened to."""
        where = f"{self.url}/{key}"
        try:
            yield
        except (NoCredentialsError, PartialCredentialsError, NoRegionError) as error:
            raise NotAllowedError(f"{self.url}: {error}; see aws configure") from error
        except ClientError as error:
            raise _client_error(error, where, self.url) from error
        except (ResponseStreamingError, HTTPClientError) as error:
            raise StoreBusyError(f"{where}: no whole answer from the server ({error}); try again") from error
        except BotoCoreError as error:
            raise StoreBusyError(f"{where}: {error}") from error


def _client_error(error: ClientError, where: str, url: str) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "NoSuchBucket":
        return NotFoundError(f"{url}: no such bucket; make it with aws s3 mb")
    if status in (412, 409) or code in _CONFLICT:
        return ObjectExistsError(f"{where}: already there")
    if status == 404:
        return ObjectMissingError(f"{where}: no such object")
    if status == 403 or code in _FORBIDDEN:
        return NotAllowedError(f"{where}: the server refuses ({code}); check whose credentials these are")
    if status == 507 or code in ("QuotaExceeded", "EntityTooLarge"):
        return StoreBusyError(f"{where}: the store is full ({code}); make room and run it again")
    return StoreBusyError(f"{where}: the server answers {status} {code}; try again")


def _endpoint_is_named() -> bool:
    return bool(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))
