"""What fusion refuses."""

from mos.errors import CheckFailedError, NotAllowedError


class FusionError(CheckFailedError):
    """Raised when statistics, weights or solutions of a fusion are not finite, absurd or do not fit together."""


class BaseMismatchError(NotAllowedError):
    """Raised when a concept was trained on another base model than the one it is to be fused on."""
