"""The processes of a run (torchrun, accelerate launch): what they share, in work and in news.

Work is cut into pieces after which all meet, so that nobody waits in a collective for as long as a data set takes to be
read: torch gives up after 30 minutes.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def rank() -> int:
    """This process's number; 0 in a run of one process."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many there are, on all machines."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gathered(value: Any) -> list[Any]:
    """Every process's value, in the order of their ranks; all processes have to call it."""
    if processes() == 1:
        return [value]
    values: list[Any] = [None] * processes()
    dist.all_gather_object(values, value)
    return values


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether it is true in any process; cheaper than `gathered`, for every step of a run."""
    if processes() == 1:
        return flag
    shared = torch.tensor(flag, dtype=torch.int32, device=device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return bool(shared)


def shared_work(pieces: Sequence[Piece], act: Callable[[list[Piece]], Sequence[Result]]) -> list[Result]:
    """`act` on all pieces, each process on its share of them; every process gets all results, in order."""
    number = processes()
    parts = gathered(list(act(list(pieces[rank() :: number]))))
    return [parts[place % number][place // number] for place in range(len(pieces))]


def cores() -> int:
    """CPU cores for this process: those that it may use, shared with the run's others on this machine."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allowed // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
