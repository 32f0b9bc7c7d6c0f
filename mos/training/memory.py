"""Let a training process keep the memory it frees, on Linux.

A step allocates and frees the same large tensors again and again. By default glibc hands them back to the
kernel and takes them as fresh pages, which cost a seventh of a step on the small base.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 32 << 20
"""glibc takes no larger one (HEAP_MAX_SIZE / 2)."""
_KEPT_BYTES = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Keep up to 2 GiB of freed memory in this process for its next step; changes no result.

    For processes that do nothing but train: the memory is not given back before they end.

    Returns:
        Whether the C library knows these settings (glibc does; elsewhere nothing happens).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(
        mallopt(setting, size) == 1
        for setting, size in ((_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD), (_M_TRIM_THRESHOLD, _KEPT_BYTES))
    )
