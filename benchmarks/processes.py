"""A cell run by several client processes, whose records come back as requests end."""

import asyncio
import multiprocessing
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from qwen_vqa.benchmarks.client import Target
from qwen_vqa.benchmarks.records import Record
from qwen_vqa.benchmarks.share import Prepared, Share, prepare, run
from qwen_vqa.benchmarks.workload import Conversation

# Between "all are ready" and the first request, so that every process is awake.
HEAD_START_SECONDS = 0.1
TICK_SECONDS = 0.25
STOP_SECONDS = 5.0


@dataclass
class Outcome:
    """A cell's records, how long it took (to the last ended request), and each process's CPU seconds."""

    records: list[Record]
    seconds: float
    cpu_seconds: list[float]
    interrupted: bool


def shares(
    target: Target, conversations: list[Conversation], times: list[float] | None, users: int, processes: int
) -> list[Share]:
    """Deal conversations and users out; with fewer users than processes, some processes are not needed."""
    if times is None:
        processes = min(processes, users)
    dealt = []
    for number in range(processes):
        mine = tuple(conversations[number::processes])
        share_times = tuple(times[number::processes]) if times is not None else None
        dealt.append(Share(target, mine, share_times, users // processes + (number < users % processes)))
    return dealt


def run_shares(dealt: list[Share], tick: Callable[[list[Record]], None], ready: Callable[[], None]) -> Outcome:
    """Run each share in a process of its own. `ready` is called right before the start, `tick` now and then.

    Ctrl-C stops the processes and returns what has ended, marked as interrupted.
    """
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes = []
    try:
        for share in dealt:
            ours, theirs = context.Pipe()
            process = context.Process(target=_child, args=(theirs, share), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        return _collect(pipes, tick, ready)
    finally:
        for process in processes:
            process.join(STOP_SECONDS)
            if process.is_alive():
                process.kill()


def _collect(pipes: list[Connection], tick: Callable[[list[Record]], None], ready: Callable[[], None]) -> Outcome:
    outcome = Outcome([], 0.0, [], False)
    try:
        for pipe in pipes:
            pipe.recv()
        ready()
        start = time.monotonic() + HEAD_START_SECONDS
        for pipe in pipes:
            pipe.send(start)
        _receive(pipes, outcome, tick, None)
    except KeyboardInterrupt:
        outcome.interrupted = True
        for pipe in pipes:
            pipe.send(None)
        _receive(pipes, outcome, tick, time.monotonic() + STOP_SECONDS)
    # What the interrupt cut off is neither an answer nor a failure of the server's.
    outcome.records = sorted((r for r in outcome.records if r.error != "interrupted"), key=lambda r: r.index)
    outcome.seconds = max((record.end for record in outcome.records), default=0.0)
    return outcome


def _receive(
    pipes: list[Connection], outcome: Outcome, tick: Callable[[list[Record]], None], until: float | None
) -> None:
    """Take records until each process has sent its CPU seconds, which is the last that it sends."""
    running = list(pipes)
    while running and (until is None or time.monotonic() < until):
        for pipe in wait(running, TICK_SECONDS):
            assert isinstance(pipe, Connection)
            try:
                message = pipe.recv()
            except EOFError:
                if until is None:
                    raise RuntimeError("a client process died; its traceback is above") from None
                running.remove(pipe)
                continue
            if isinstance(message, Record):
                outcome.records.append(message)
            elif isinstance(message, float):
                outcome.cpu_seconds.append(message)
                running.remove(pipe)
        tick(outcome.records)


def _child(pipe: Connection, share: Share) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    prepared = prepare(share)
    pipe.send("ready")
    start = pipe.recv()
    if start is None:
        pipe.send(0.0)
        return
    pipe.send(asyncio.run(_run_until_told(prepared, start, pipe)))


async def _run_until_told(prepared: Prepared, start: float, pipe: Connection) -> float:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(pipe.fileno(), stop.set)
    try:
        return await run(prepared, start, pipe.send, stop)
    finally:
        loop.remove_reader(pipe.fileno())
