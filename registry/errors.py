"""The registry's own errors, each a leaf of the tree in mos/errors.py and so with an exit code.

ObjectExistsError      ConflictError      a create-if-absent lost
ObjectMissingError     NotFoundError      no object under this key
UnsafeBackendError     NotAllowedError    the store ignores conditional writes
IntegrityError         CheckFailedError   bytes differ from their sha256
SignatureError         CheckFailedError   a signature is wrong or by a key that does not count
RollbackError          CheckFailedError   the catalogue is older than one seen before
FormatError            BadInputError      a registry document is malformed or of a newer format
NotListedError         NotAllowedError    the concept is not listed
LicenceError           NotAllowedError    the licence or a missing consent forbids it
StoreBusyError         TryAgainError      the store failed in a way that may pass
"""

from mos.errors import (
    BadInputError,
    CheckFailedError,
    ConflictError,
    NotAllowedError,
    NotFoundError,
    TryAgainError,
)


class ObjectExistsError(ConflictError):
    """Raised when an object was to be created and its key is taken."""


class ObjectMissingError(NotFoundError):
    """Raised when no object lies under a key."""


class UnsafeBackendError(NotAllowedError):
    """Raised when a store lets two conditional creates of one key both win."""


class IntegrityError(CheckFailedError):
    """Raised when bytes read from the registry differ from the sha256 that was promised."""


class SignatureError(CheckFailedError):
    """Raised when a signature does not verify or its key may not sign this."""


class RollbackError(CheckFailedError):
    """Raised when the newest catalogue offered is older than one this client has seen."""


class FormatError(BadInputError):
    """Raised when a document of the registry is malformed or of a format newer than this program."""


class NotListedError(NotAllowedError):
    """Raised when a concept is asked for whose state is not `listed`."""


class LicenceError(NotAllowedError):
    """Raised when a licence or a missing consent forbids what was asked."""


class StoreBusyError(TryAgainError):
    """Raised when the store did not answer, was full or failed in a way that may pass."""
