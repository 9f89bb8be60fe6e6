"""Does a call pay the system for fresh pages? Not here: freed memory stays with the process.

glibc hands every tensor above 32 MiB back to the system when it is freed, and the next one then costs a page fault for
each 4 KiB, several times what an operator takes to fill it. That is the allocator's price, whoever computes.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_HIGHEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep and reuse what it frees, for good. False where the C library cannot be told."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _HIGHEST))
