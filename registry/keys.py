"""Ed25519 keys of owners, indexers, administrators and clusters; the private half never leaves its home."""

import base64
import hashlib
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mos.concept import check_name
from mos.errors import BadInputError, ConflictError, NotFoundError
from registry.errors import SignatureError

_HEADER = "mos-ed25519-private-key-1"
_KEY_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


@dataclass(frozen=True)
class PublicKey:
    """The public half of a key, written as 43 characters of URL-safe base64."""

    text: str

    def __post_init__(self) -> None:
        if len(_decode(self.text)) != 32:
            raise BadInputError(f"public key {self.text!r}: expected 32 bytes in URL-safe base64")

    @cached_property
    def key_id(self) -> str:
        """The first 16 hex digits of the sha256 of the raw public key."""
        return hashlib.sha256(_decode(self.text)).hexdigest()[:16]

    def verify(self, signature: bytes, message: bytes) -> None:
        """Check a signature over exact bytes.

        Raises:
            SignatureError: If it is not this key's signature of `message`.
        """
        try:
            Ed25519PublicKey.from_public_bytes(_decode(self.text)).verify(signature, message)
        except (InvalidSignature, ValueError) as error:
            raise SignatureError(f"signature by key {self.key_id} does not verify: the bytes were changed") from error


@dataclass(frozen=True, repr=False)
class SigningKey:
    """A private key with the name of its holder (an owner, `indexer`, `administrator`, a cluster)."""

    name: str
    private: Ed25519PrivateKey

    @classmethod
    def generate(cls, name: str) -> Self:
        """Make a new random key held in memory only."""
        return cls(_check_key_name(name), Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, name: str, seed: bytes) -> Self:
        """The key of 32 secret bytes (RFC 8032), for keys kept in a secret store."""
        return cls(_check_key_name(name), Ed25519PrivateKey.from_private_bytes(seed))

    @cached_property
    def public(self) -> PublicKey:
        """The public half."""
        return PublicKey(_encode(self.private.public_key().public_bytes_raw()))

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature of `message`."""
        return self.private.sign(message)

    def save(self, path: Path) -> None:
        """Write the key to a new file only its user may read (0600).

        Raises:
            ConflictError: If the file is already there.
        """
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = f"{_HEADER}\n{self.name}\n{_encode(self.private.private_bytes_raw())}\n"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise ConflictError(
                f"{path}: a key is already there; use it, or rotate it with mos owner rotate"
            ) from error
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a key file.

        Raises:
            NotFoundError: If there is no such file.
            BadInputError: If it is not a key file of this format.
        """
        try:
            lines = path.read_text(encoding="ascii").splitlines()
        except FileNotFoundError as error:
            raise NotFoundError(f"{path}: no key there; make one with mos owner new NAME") from error
        except UnicodeDecodeError as error:
            raise BadInputError(f"{path}: not a mos key file") from error
        if len(lines) != 3 or lines[0] != _HEADER:
            raise BadInputError(f"{path}: not a mos key file (expected a first line {_HEADER})")
        seed = _decode(lines[2])
        if len(seed) != 32:
            raise BadInputError(f"{path}: the key has {len(seed)} bytes, expected 32; restore it from a backup")
        return cls.from_seed(lines[1], seed)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, {self.public.key_id})"


class OwnerKey(SigningKey):
    """An owner's key; its name is the owner's name."""

    @classmethod
    def create(cls, owner: str, path: Path | None = None) -> Self:
        """Make a new key for `owner`, saved at `path` if one is given.

        Raises:
            BadInputError: If the name cannot be an owner's.
            ConflictError: If a key is already at `path`.
        """
        key = cls.generate(check_name(owner, "owner"))
        if path is not None:
            key.save(path)
        return key

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an owner's key file; errors as `read`."""
        return cls.read(path)


def _check_key_name(name: str) -> str:
    if not _KEY_NAME.fullmatch(name):
        raise BadInputError(f"key name {name!r}: expected lower-case letters, digits and hyphens")
    return name


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _decode(text: str) -> bytes:
    if not re.fullmatch(r"[A-Za-z0-9_-]{43}", text):
        return b""
    return base64.urlsafe_b64decode(text + "=")
