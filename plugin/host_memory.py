"""Memory that this process no longer uses, given back to the system."""

import ctypes
import gc
from threading import Lock


def release_free_memory() -> None:
    """What loading has left in the C library's heap, a gigabyte beside a 3B model."""
    gc.collect()
    trim_heap()


def trim_heap() -> None:
    """Freed memory that the C library keeps, where the library can give it back (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class HeapTrimmer:
    """Trims the heap each time that much has been freed: several threads would let it grow to gigabytes.

    Args:
        freed_bytes: between two trims.
    """

    def __init__(self, freed_bytes: int) -> None:
        self._most = freed_bytes
        self._freed = 0
        self._lock = Lock()

    def freed(self, size: int) -> None:
        """So many bytes are free now."""
        with self._lock:
            self._freed += size
            if self._freed < self._most:
                return
            self._freed = 0
        trim_heap()
