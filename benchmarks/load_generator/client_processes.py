"""A cell run by several client processes, whose records come back as requests end."""

import asyncio
import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from qwen_vqa.benchmarks.load_generator.conversation_runner import Prepared, Share, prepare, run
from qwen_vqa.benchmarks.load_generator.records import Record
from qwen_vqa.benchmarks.load_generator.streaming_client import Target
from qwen_vqa.benchmarks.load_generator.workload import WorkloadConversation
from qwen_vqa.plugin.errors import UserError

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
    target: Target, conversations: list[WorkloadConversation], times: list[float] | None, users: int, processes: int
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

    Raises:
        UserError: a process could not read its pictures, or died.
    """
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes = []
    interrupt = _Interrupt()
    finished = False
    # Where the first process has to start it, it unblocks the SIGINT that is to be hidden from that process.
    resource_tracker.ensure_running()
    try:
        for share in dealt:
            ours, theirs = context.Pipe()
            process = context.Process(target=_child, args=(theirs, share), daemon=True)
            with _hidden_from_children():
                process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        with interrupt:
            outcome = _collect(pipes, tick, ready, interrupt)
        outcome.interrupted |= interrupt.asked  # also where it came after the last record
        finished = not outcome.interrupted
        return outcome
    finally:
        for process in processes:
            if not finished:
                process.terminate()
            process.join(STOP_SECONDS)
            if process.is_alive():
                process.kill()


class _Interrupt:
    """Ctrl-C as a flag, for while pipes are read: an exception inside of a read would lose half a message."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGINT, self._take)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _take(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt  # the second time, at once
        self.asked = True


@contextlib.contextmanager
def _hidden_from_children() -> Iterator[None]:
    """Children inherit a blocked SIGINT: a terminal sends Ctrl-C to them as well, and the parent tells them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _collect(
    pipes: list[Connection], tick: Callable[[list[Record]], None], ready: Callable[[], None], interrupt: _Interrupt
) -> Outcome:
    outcome = Outcome([], 0.0, [], False)
    waiting = list(pipes)
    while waiting:
        if interrupt.asked:
            outcome.interrupted = True
            return outcome
        for pipe in wait(waiting, TICK_SECONDS):
            assert isinstance(pipe, Connection)
            _message(pipe)  # "ready"
            waiting.remove(pipe)
    ready()
    start = time.monotonic() + HEAD_START_SECONDS
    for pipe in pipes:
        _tell(pipe, start)
    running = list(pipes)
    until = float("inf")
    while running and time.monotonic() < until:
        if interrupt.asked and not outcome.interrupted:
            outcome.interrupted = True
            until = time.monotonic() + STOP_SECONDS
            for pipe in running:
                _tell(pipe, None)
        _receive(running, outcome)
        tick(outcome.records)
    # What the interrupt cut off is neither an answer nor a failure of the server's.
    outcome.records = sorted((r for r in outcome.records if r.error != "interrupted"), key=lambda r: r.index)
    outcome.seconds = max((record.end for record in outcome.records), default=0.0)
    return outcome


def _receive(running: list[Connection], outcome: Outcome) -> None:
    """Take what is there. A process's CPU seconds are the last that it sends; it is not `running` any more then."""
    for pipe in wait(running, TICK_SECONDS):
        assert isinstance(pipe, Connection)
        message = _message(pipe)
        if isinstance(message, Record):
            outcome.records.append(message)
        else:
            outcome.cpu_seconds.append(message)
            running.remove(pipe)


def _tell(pipe: Connection, message: float | None) -> None:
    with contextlib.suppress(BrokenPipeError):  # it died, which the next look at its pipe says
        pipe.send(message)


def _message(pipe: Connection) -> Any:
    try:
        message = pipe.recv()
    except (EOFError, ConnectionResetError):
        raise UserError(
            "a client process died, and its cell with it; a traceback above says why, or else the system ended it "
            "(memory?)."
        ) from None
    if isinstance(message, UserError):
        raise message
    return message


def _child(pipe: Connection, share: Share) -> None:
    # Once the parent has let go of the pipe, as after Ctrl-C, there is nobody left to tell. If it has not, it sees the
    # end of the pipe, and says that this process died.
    with contextlib.suppress(OSError, EOFError):
        _answer(pipe, share)


def _answer(pipe: Connection, share: Share) -> None:
    try:
        prepared = prepare(share)
    except UserError as error:
        pipe.send(error)
        return
    pipe.send("ready")
    pipe.send(asyncio.run(_run_until_told(prepared, pipe.recv(), pipe)))


async def _run_until_told(prepared: Prepared, start: float, pipe: Connection) -> float:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(pipe.fileno(), stop.set)

    def emit(record: Record) -> None:
        with contextlib.suppress(OSError):  # of each request that ends after Ctrl-C, in a task of its own
            pipe.send(record)

    try:
        return await run(prepared, start, emit, stop)
    finally:
        loop.remove_reader(pipe.fileno())
