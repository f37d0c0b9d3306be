"""Tokens per second, memory, load time and answers of checkpoints, each behind `qwen-vqa serve`, in one run.

All servers stand at the same time and are asked in turns by the load generator (`qwen-vqa load`), so that what else the
machine does falls on all of them. Where they do not fit into memory together, one is measured after the other.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import AutoConfig

from qwen_vqa.benchmarks.load_generator.arrivals import Arrivals
from qwen_vqa.benchmarks.load_generator.measurement_points import Plan, run_cells
from qwen_vqa.benchmarks.load_generator.server_probe import probe
from qwen_vqa.benchmarks.load_generator.streaming_client import Target
from qwen_vqa.benchmarks.load_generator.workload import WorkloadSpec
from qwen_vqa.benchmarks.quantisation.server_memory import served_dtype, server_bytes
from qwen_vqa.plugin.checkpoint_memory import GIB
from qwen_vqa.plugin.command.host_memory import available_memory
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.registration import register_for_transformers
from qwen_vqa.train.evaluation.questions import Prompt
from qwen_vqa.train.evaluation.replies import Reply
from qwen_vqa.train.evaluation.server_model import ask_server
from qwen_vqa.train.verify.local_server import started_server

MAX_MODEL_LEN = 2048
# Sixteen prompts of 900 tokens of a 3B model; the same on all sides, so that it falls out of the comparison.
KV_CACHE_BYTES = 2**29
MODEL = "measured"
REQUEST_SECONDS = 1800.0
WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Side:
    """A checkpoint, the dtype of what in it is not quantised, and more flags of `qwen-vqa serve`."""

    folder: Path
    dtype: str = "auto"
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For progress."""
        return f"{self.folder.name} {self.dtype}"


@dataclass(frozen=True)
class Load:
    """What is asked: rounds of so many users at once, each with one question about a new picture.

    Without rounds, memory and load time alone are measured.
    """

    users: tuple[int, ...] = (1, 16)
    tokens: int = 64
    rounds: int = 2
    seed: int = 0


@dataclass
class MeasuredServer:
    """One side. Speeds are tokens per second for all users together, a number a round; times in milliseconds.

    `ready_bytes` is the server's memory before its first question, `resident_bytes` after the last. `side_by_side`:
    whether the other servers stood at the same time.
    """

    dtype: str
    load_seconds: float
    ready_bytes: int
    side_by_side: bool
    resident_bytes: int = 0
    replies: list[Reply] = field(default_factory=list)
    decode: dict[int, list[float]] = field(default_factory=dict)
    prefill: dict[int, list[float]] = field(default_factory=dict)
    ttft: dict[int, list[float]] = field(default_factory=dict)
    tpot: dict[int, list[float]] = field(default_factory=dict)

    def add(self, users: int, summary: dict[str, Any]) -> None:
        """A round, by the load generator's summary.

        Raises:
            UserError: a request failed, or answers are so short that never all users decode.
        """
        if summary["failed"]:
            raise UserError(f"{summary['failed']} of {users} requests failed: {summary['error_examples']}")
        if summary["decode_tokens_per_second"] is None:
            raise UserError(f"the {users} users never all decode at once: pass --tokens with a larger number.")
        self.decode.setdefault(users, []).append(summary["decode_tokens_per_second"])
        # All start at once: until the last of them has its first token, prompts are read and hardly anything else.
        self.prefill.setdefault(users, []).append(1000 * summary["prompt_tokens"] / summary["ttft"]["max"])
        self.ttft.setdefault(users, []).append(summary["ttft"]["mean"])
        self.tpot.setdefault(users, []).append(summary["tpot"]["mean"])

    def summary(self) -> dict[str, Any]:
        """Means over rounds, and the rounds, for JSON."""
        rounds = {"decode": self.decode, "prefill": self.prefill, "ttft": self.ttft, "tpot": self.tpot}
        means = {name: {str(users): float(np.mean(each)) for users, each in of.items()} for name, of in rounds.items()}
        return {
            "dtype": self.dtype,
            "side_by_side": self.side_by_side,
            "load_seconds": self.load_seconds,
            "ready_bytes": self.ready_bytes,
            "resident_bytes": self.resident_bytes,
            "decode_tokens_per_second": means["decode"],
            "prefill_tokens_per_second": means["prefill"],
            "ttft_ms": means["ttft"],
            "tpot_ms": means["tpot"],
            "rounds": rounds,
        }


def measure(sides: list[Side], load: Load, asked: Sequence[Prompt] = ()) -> list[MeasuredServer]:
    """Measure checkpoints side by side, or, where memory has room for one server alone, one after the other.

    Args:
        asked: questions that each server answers behind the rounds, into `MeasuredServer.replies`.

    Raises:
        UserError: a server does not fit into memory or does not start, or a request of a round fails.
    """
    sides, together = servable(sides)
    sets = [sides] if together else [[side] for side in sides]
    return [one for some in sets for one in _measure(some, load, asked, together)]


def servable(sides: list[Side]) -> tuple[list[Side], bool]:
    """The sides with the float type that each is served in, and whether they can be served at the same time.

    Raises:
        UserError: one does not fit into memory by itself.
    """
    if torch.cuda.is_available():  # of whose memory each server claims most
        if len(sides) > 1:
            print("servers are measured one after the other: each claims the GPU", flush=True)
        return sides, len(sides) == 1
    free = available_memory()
    sides = [replace(side, dtype=served_dtype(side.folder, side.dtype, KV_CACHE_BYTES)) for side in sides]
    needed = [server_bytes(side.folder, side.dtype, KV_CACHE_BYTES) for side in sides]
    for side, size in zip(sides, needed, strict=True):
        if size > free:
            raise UserError(
                f"not enough memory to serve {side.folder}: about {size / GIB:.1f} GiB are needed, and "
                f"{free / GIB:.1f} are free. Free some, pass --dtype bfloat16, or leave it out (--no-speed)."
            )
    if sum(needed) > free:
        print(
            f"servers are measured one after the other: together they need about {sum(needed) / GIB:.1f} GiB, and "
            f"{free / GIB:.1f} are free",
            flush=True,
        )
    return sides, sum(needed) <= free


def _measure(sides: list[Side], load: Load, asked: Sequence[Prompt], together: bool) -> list[MeasuredServer]:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(_server(side)) for side in sides]
        found = [MeasuredServer(one.side.dtype, one.load_seconds, one.ready_bytes, together) for one in servers]
        for server in servers if load.rounds else ():  # the first requests fill caches and compile
            server.ask(2, WARM_UP_TOKENS, load.seed)
        for number in range(load.rounds):
            for users in load.users:
                for server, one in zip(servers, found, strict=True):
                    one.add(users, server.ask(users, load.tokens, load.seed + 1000 * (number + 1) + users))
                    print(
                        f"  {server.side.name}: {users} users, round {number + 1} of {load.rounds}: decode "
                        f"{one.decode[users][-1]:.1f}, prefill {one.prefill[users][-1]:.0f} tokens/s",
                        flush=True,
                    )
        for server, one in zip(servers, found, strict=True):
            one.replies = ask_server(server.url, MODEL, asked, server.side.name) if asked else []
            one.resident_bytes = resident_bytes(server.process)
        return found


@dataclass(frozen=True)
class _Server:
    side: Side
    url: str
    process: subprocess.Popen
    load_seconds: float
    ready_bytes: int

    @cached_property
    def target(self) -> Target:
        """For the load generator; finding out what the server can do asks it a question."""
        return probe(Target(self.url, None, REQUEST_SECONDS), MODEL).target

    def ask(self, users: int, tokens: int, seed: int) -> dict[str, Any]:
        """One question of each user, all at once; the load generator's summary."""
        spec = WorkloadSpec(models=((MODEL, 1.0),), output_tokens=(tokens, tokens))
        plan = Plan(spec, (Arrivals("closed", concurrency=users),), users, seed, warm_up=0, processes=1)
        [cell] = run_cells(plan, self.target, lambda *_: None)
        if cell["interrupted"]:
            raise KeyboardInterrupt
        return cell["summary"]


def resident_bytes(server: subprocess.Popen) -> int:
    """Of all its processes; what they share counts once."""
    root = psutil.Process(server.pid)
    return sum(process.memory_full_info().pss for process in (root, *root.children(recursive=True)))


@contextlib.contextmanager
def _server(side: Side) -> Iterator[_Server]:
    register_for_transformers()
    longest = min(MAX_MODEL_LEN, AutoConfig.from_pretrained(side.folder).text_config.max_position_embeddings)
    arguments = [str(side.folder), "--served-model-name", MODEL, "--max-model-len", str(longest)]
    arguments += ["--dtype", side.dtype, "--kv-cache-memory-bytes", str(KV_CACHE_BYTES), *side.flags]
    print(f"starting a server: qwen-vqa serve {' '.join(arguments)}", flush=True)
    started = time.monotonic()
    with started_server(arguments, stdout=subprocess.DEVNULL, environment=dict(os.environ)) as (address, process):
        seconds = time.monotonic() - started
        yield _Server(side, f"{address}/v1", process, seconds, resident_bytes(process))
