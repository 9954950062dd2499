"""The process's memory: what was freed goes back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
from collections.abc import Iterator


def give_back() -> None:
    """Gives what is free in the allocator back to the system (glibc's; nothing elsewhere). Else
    memory that was freed and cannot be used again, because it is fragmented or belongs to other
    threads, such as those that write checkpoints, counts in the peak."""
    _trim()(0)


@functools.lru_cache(maxsize=1)
def _trim():
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return lambda _: 0


@contextlib.contextmanager
def imported_objects_frozen() -> Iterator[None]:
    """In here garbage is looked for among new objects only: those of the imported modules, half a
    million, cost a third of a second every time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
