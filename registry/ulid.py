"""ULIDs: 26 characters that sort by time and do not collide (github.com/ulid/spec)."""

import os
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_ulid(now_s: float | None = None) -> str:
    """A new identifier: 48 bits of milliseconds, then 80 random bits."""
    milliseconds = int((time.time() if now_s is None else now_s) * 1000)
    number = (milliseconds & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10))
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
