"""Shared memory that Python names, named after the server, so that the next start can remove what a killed one left.

vLLM's message queues between an engine and its workers (vllm/distributed/device_communicators/shm_broadcast.py, seen in
0.32) leave their memory's name to Python, which draws one by chance. A process that is killed cannot remove it, and
nobody can tell whose it was. Python draws names in one private function (multiprocessing/shared_memory.py, seen in 3.11
to 3.13).
"""

import os
import secrets
from multiprocessing import shared_memory

SERVER_NAME = "QWEN_VQA_SERVER_NAME"  # in the environment of a server's processes


def queue_prefix(server: str) -> str:
    """What the names in /dev/shm begin with."""
    return f"psm_{server}_"


def name_shared_memory() -> None:
    """From here on, in a process of a server; elsewhere nothing changes."""
    if server := os.environ.get(SERVER_NAME):
        setattr(shared_memory, "_make_filename", lambda: f"/{queue_prefix(server)}{secrets.token_hex(4)}")  # noqa: B010 - private, and so unknown to mypy
