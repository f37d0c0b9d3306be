"""Tokens per second, memory and load time of two checkpoints, each behind `qwen-vqa serve`, in one run.

Both servers stand at the same time and are asked in turns, so that what else the machine does falls on both.
"""

import asyncio
import base64
import contextlib
import io
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from openai import AsyncOpenAI
from PIL import Image
from transformers import AutoConfig

from qwen_vqa.train.server_process import started_server

MAX_MODEL_LEN = 2048
# Sixteen prompts of 900 tokens of a 3B model; the same on both sides, so that it falls out of the comparison.
KV_CACHE_BYTES = 2**29
PICTURE_SIDE = 384
PREFILL_WORDS = 120


@dataclass(frozen=True)
class Load:
    """What is asked: rounds of so many users at once, each with an answer of so many tokens."""

    users: tuple[int, ...] = (1, 16)
    tokens: int = 64
    rounds: int = 2
    seed: int = 0


@dataclass
class Measured:
    """One side. Speeds are tokens per second for all users together, a number a round."""

    load_seconds: float
    resident_bytes: int = 0
    decode: dict[int, list[float]] = field(default_factory=dict)
    prefill: dict[int, list[float]] = field(default_factory=dict)
    threads_bind: str = ""

    def summary(self) -> dict[str, Any]:
        """Means over rounds, for JSON."""
        return {
            "load_seconds": self.load_seconds,
            "resident_bytes": self.resident_bytes,
            "threads_bind": self.threads_bind,
            "decode_tokens_per_second": {str(users): float(np.mean(each)) for users, each in self.decode.items()},
            "prefill_tokens_per_second": {str(users): float(np.mean(each)) for users, each in self.prefill.items()},
            "rounds": {"decode": self.decode, "prefill": self.prefill},
        }


def measure(folders: list[Path], load: Load, threads_bind: list[str], dtype: str = "auto") -> list[Measured]:
    """Measure checkpoints side by side, each with the setting of `threads_bind` that decodes fastest.

    Args:
        threads_bind: values of VLLM_CPU_OMP_THREADS_BIND to try; "" leaves it to vLLM.
        dtype: of what is not quantised.
    """
    best: list[Measured] = []
    for bind in threads_bind:
        found = _measure_with(folders, load, bind, dtype)
        if not best:
            best = found
        best = [
            max(pair, key=lambda side: np.mean(side.decode[load.users[-1]])) for pair in zip(best, found, strict=True)
        ]
    return best


def _measure_with(folders: list[Path], load: Load, bind: str, dtype: str) -> list[Measured]:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(_server(folder, bind, dtype)) for folder in folders]
        sides = [Measured(server.load_seconds, threads_bind=bind) for server in servers]
        for server in servers:  # the first requests compile and fill caches
            asyncio.run(_answers(server.url, 2, 8, 0, words=PREFILL_WORDS))
        for number in range(load.rounds):
            for server, side in zip(servers, sides, strict=True):
                for users in load.users:
                    seed = load.seed + 1000 * (number + 1) + users
                    side.prefill.setdefault(users, []).append(_prefill_speed(server.url, users, seed))
                    side.decode.setdefault(users, []).append(_decode_speed(server.url, users, load.tokens, seed))
                    print(
                        f"  {server.folder.name}: {users} users, round {number + 1} of {load.rounds}: decode "
                        f"{side.decode[users][-1]:.1f}, prefill {side.prefill[users][-1]:.0f} tokens/s",
                        flush=True,
                    )
        for server, side in zip(servers, sides, strict=True):
            side.resident_bytes = server.resident_bytes()
        return sides


@dataclass(frozen=True)
class _Server:
    folder: Path
    url: str
    process: subprocess.Popen
    load_seconds: float

    def resident_bytes(self) -> int:
        """Of all its processes; what they share counts once."""
        root = psutil.Process(self.process.pid)
        return sum(process.memory_full_info().pss for process in (root, *root.children(recursive=True)))


@contextlib.contextmanager
def _server(folder: Path, bind: str, dtype: str) -> Iterator[_Server]:
    longest = min(MAX_MODEL_LEN, AutoConfig.from_pretrained(folder).text_config.max_position_embeddings)
    arguments = [str(folder), "--served-model-name", "measured", "--max-model-len", str(longest), "--dtype", dtype]
    arguments += ["--kv-cache-memory-bytes", str(KV_CACHE_BYTES)]
    environment = {**os.environ, **({"VLLM_CPU_OMP_THREADS_BIND": bind} if bind else {})}
    print(f"starting a server: qwen-vqa serve {' '.join(arguments)}", flush=True)
    started = time.monotonic()
    with started_server(arguments, stdout=subprocess.DEVNULL, environment=environment) as (address, process):
        yield _Server(folder, f"{address}/v1", process, time.monotonic() - started)


@dataclass(frozen=True)
class _Timed:
    first: float
    last: float
    prompt_tokens: int
    tokens: int


def _decode_speed(url: str, users: int, tokens: int, seed: int) -> float:
    """Tokens after each answer's first, over the time from the last user's first token to the first user's last.

    Users start together, so that the time before is prefill; with it over, all decode at once.
    """
    answers = asyncio.run(_answers(url, users, tokens, seed, words=1))
    begin, end = max(answer.first for answer in answers), max(answer.last for answer in answers)
    # A user's tokens before the slowest prefill was over do not count: assume an even pace.
    counted = sum(
        (answer.tokens - 1) * (answer.last - max(begin, answer.first)) / max(answer.last - answer.first, 1e-9)
        for answer in answers
    )
    return counted / max(end - begin, 1e-9)


def _prefill_speed(url: str, users: int, seed: int) -> float:
    started = time.monotonic()
    answers = asyncio.run(_answers(url, users, 1, seed + 500, words=PREFILL_WORDS))
    return sum(answer.prompt_tokens for answer in answers) / (max(answer.last for answer in answers) - started)


async def _answers(url: str, users: int, tokens: int, seed: int, words: int) -> list[_Timed]:
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=1800) as client:
        return await asyncio.gather(*(_answer(client, tokens, 100 * seed + user, words) for user in range(users)))


async def _answer(client: AsyncOpenAI, tokens: int, seed: int, words: int) -> _Timed:
    """One streamed answer about a picture that nobody has asked about, so that no cache helps."""
    content: Any = [
        {"type": "image_url", "image_url": {"url": _picture(seed)}},
        {"type": "text", "text": "what is this " * words},
    ]
    first = last = 0.0
    usage: Any = None
    stream = await client.chat.completions.create(
        model="measured",
        messages=[{"role": "user", "content": content}],
        max_tokens=tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True, "min_tokens": tokens},
    )
    async for chunk in stream:
        usage = chunk.usage or usage
        if chunk.choices:
            last = time.monotonic()
            first = first or last
    return _Timed(first, last, usage.prompt_tokens, usage.completion_tokens)


def _picture(seed: int) -> str:
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks).resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.NEAREST).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
