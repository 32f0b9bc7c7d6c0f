"""Strict JSON and signed envelopes: what every document of the registry is read and written with.

An envelope follows DSSE (github.com/secure-systems-lab/dsse, protocol.md): the signature covers the exact
bytes of the payload together with its type, so nothing is ever re-serialised before it is verified.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from registry.errors import FormatError, SignatureError
from registry.keys import PublicKey, SigningKey

MAX_DOCUMENT_BYTES = 1 << 20
"""No signed document of the registry is larger; a larger one is refused before it is parsed."""

Json = dict[str, Any]

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_hex(data: bytes) -> str:
    """The sha256 of `data` in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def dump_json(document: Mapping[str, Any]) -> bytes:
    """Write a document: sorted keys, no spaces, UTF-8; the same document gives the same bytes."""
    return _ENCODER.encode(document).encode()


def parse_json(data: bytes, what: str) -> Json:
    """Read one JSON object, refusing duplicate keys, NaN, and anything over `MAX_DOCUMENT_BYTES`.

    Raises:
        FormatError: If it is not such an object; names `what`.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise FormatError(f"{what}: {len(data)} bytes, expected at most {MAX_DOCUMENT_BYTES}")
    try:
        document = json.loads(data, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what}: not a JSON document ({error})") from error
    if not isinstance(document, dict):
        raise FormatError(f"{what}: expected a JSON object, found {type(document).__name__}")
    return document


def check_format(document: Json, newest: int, what: str) -> None:
    """Refuse a document whose format number is newer than this program knows.

    Raises:
        FormatError: If the number is missing or newer.
    """
    number = document.get("format")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise FormatError(f"{what}: no format number")
    if number > newest:
        raise FormatError(
            f"{what}: format {number} is newer than format {newest} of this program; pip install --upgrade mos"
        )


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """Exact payload bytes, their type, and one signature over both."""

    payload_type: str
    payload: bytes
    key_id: str
    signature: bytes

    @classmethod
    def seal(cls, document: Mapping[str, Any], payload_type: str, key: SigningKey) -> Self:
        """Sign a document."""
        payload = dump_json(document)
        signature = key.sign(_signed_bytes(payload_type, payload))
        return cls(payload_type=payload_type, payload=payload, key_id=key.public.key_id, signature=signature)

    @classmethod
    def from_bytes(cls, data: bytes, payload_type: str, what: str) -> Self:
        """Parse an envelope of the expected type; the signature is not checked here.

        Raises:
            FormatError: If it is malformed or of another type.
        """
        document = parse_json(data, what)
        if set(document) != {"payload", "payload_type", "key_id", "signature"}:
            raise FormatError(f"{what}: not a signed envelope")
        if not all(isinstance(value, str) for value in document.values()):
            raise FormatError(f"{what}: every field of a signed envelope is a string")
        if document["payload_type"] != payload_type:
            raise FormatError(f"{what}: type {document['payload_type']!r}, expected {payload_type!r}")
        try:
            payload = base64.b64decode(document["payload"], validate=True)
            signature = base64.b64decode(document["signature"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise FormatError(f"{what}: broken base64") from error
        return cls(payload_type=payload_type, payload=payload, key_id=document["key_id"], signature=signature)

    def to_bytes(self) -> bytes:
        """The envelope as stored."""
        return dump_json(
            {
                "payload": base64.b64encode(self.payload).decode(),
                "payload_type": self.payload_type,
                "key_id": self.key_id,
                "signature": base64.b64encode(self.signature).decode(),
            }
        )

    def verify(self, key: PublicKey, what: str) -> None:
        """Check the signature.

        Raises:
            SignatureError: If the envelope was signed by another key or changed since.
        """
        if self.key_id != key.key_id:
            raise SignatureError(f"{what}: signed by key {self.key_id}, expected key {key.key_id}")
        try:
            key.verify(self.signature, _signed_bytes(self.payload_type, self.payload))
        except SignatureError as error:
            raise SignatureError(f"{what}: {error}") from error

    def document(self, what: str) -> Json:
        """The payload, parsed strictly."""
        return parse_json(self.payload, what)


def _signed_bytes(payload_type: str, payload: bytes) -> bytes:
    """The pre-authentication encoding of DSSE version 1."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> Json:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key occurs twice")
    return document


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
