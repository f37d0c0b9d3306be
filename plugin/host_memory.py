"""Memory that this process no longer uses, given back to the system."""

import ctypes
import gc


def release_free_memory() -> None:
    """What loading has left in the C library's heap, a gigabyte beside a 3B model."""
    gc.collect()
    trim_heap()


def trim_heap() -> None:
    """Freed memory that the C library keeps, where the library can give it back (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
