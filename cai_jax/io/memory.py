"""The process's memory: what was freed goes back to the system."""

from __future__ import annotations

import ctypes
import functools


def give_back() -> None:
    """Gives what is free in the allocator back to the system. Without it, what one part of the work
    has freed and the next cannot use, because it lies in pieces or belongs to other threads (those
    that write checkpoints, say), counts in the peak. glibc's; nothing elsewhere."""
    _trim()(0)


@functools.lru_cache(maxsize=1)
def _trim():
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return lambda _: 0
