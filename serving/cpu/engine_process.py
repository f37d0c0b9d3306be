"""The engine's process on a CPU: a copy of this one, which has imported all that the engine needs.

vLLM starts it anew there, because OpenMP reads how threads are bound to cores when PyTorch is imported. Where they are
not bound, that is only their number, which can be set at any time, and how they wait, which `serve` sets before the
import. The second import of PyTorch, transformers and vLLM is a third of a start.

A copy would also wake this process's event loop with its signals; that is undone in it, and server_process.py closes
the sockets there.
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch._inductor import config as inductor

from qwen_vqa.serving.cpu.threads import ThreadChoice
from qwen_vqa.serving.process.process_tree import end_with_parent

METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
FORK, SPAWN = "fork", "spawn"


def may_copy(threads: ThreadChoice, environment: Mapping[str, str]) -> bool:
    """Whether the engine can be a copy of this process, and the user wants no other."""
    return threads.unbound is not None and sys.platform == "linux" and environment.get(METHOD) in (None, "", FORK)


def hold_to_one_thread() -> None:
    """To be called before this thread computes: OpenMP's threads are not in the copy, which would wait for them."""
    torch.set_num_threads(1)


@contextlib.contextmanager
def copied(threads: int) -> Iterator[None]:
    """vLLM's processes that are started meanwhile are copies of this one, and compute with so many threads."""
    active = True

    def in_the_copy() -> None:
        if not active:
            return
        end_with_parent()
        signal.set_wakeup_fd(-1)
        torch.set_num_threads(threads)
        _let_mkl_choose()
        # vLLM sets these for processes that import PyTorch afterwards.
        inductor.compile_threads = inductor.decide_compile_threads()
        inductor.cpp.dynamic_threads = os.environ.get("TORCHINDUCTOR_CPP_DYNAMIC_THREADS") == "1"
        os.environ[METHOD] = SPAWN  # for what it starts itself

    os.register_at_fork(after_in_child=in_the_copy)
    before = os.environ.get(METHOD)
    os.environ[METHOD] = FORK
    try:
        yield
    finally:
        active = False
        if before is None:
            del os.environ[METHOD]
        else:
            os.environ[METHOD] = before


def _let_mkl_choose() -> None:
    """MKL computes the smallest products with fewer threads, as it does in a new process: `torch.set_num_threads` has
    it take all of them for each (`mkl_set_dynamic`, https://github.com/pytorch/pytorch/issues/13757)."""
    if torch.backends.mkl.is_available():
        ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).MKL_Set_Dynamic(1)
