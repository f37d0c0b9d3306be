"""Memory of this machine: what is free, and what this process no longer uses, given back."""

import ctypes
import gc
from importlib.util import find_spec

import psutil


def release_free_memory() -> None:
    """What loading has left in the C library's heap, a gigabyte beside a 3B model."""
    gc.collect()
    trim_heap()


def trim_heap() -> None:
    """Freed memory that the C library keeps, where the library can give it back (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def available_memory() -> int:
    """Free bytes of this machine, or what its container may use at most, which vLLM knows where it is installed."""
    available = psutil.virtual_memory().available
    if find_spec("vllm") is None:
        return available
    from vllm.utils.cpu_resource_utils import get_cgroup_memory_limit

    return min(available, get_cgroup_memory_limit() or available)
