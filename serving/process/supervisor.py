"""The process that `qwen-vqa serve` is: it owns the port, runs the server as its child, and starts it again.

It imports neither torch nor vLLM. While the server loads, and between one that died and the next, a stand-in answers
503 on the same socket. The child says over a socket pair when it serves and when it no longer does.

    SIGTERM, SIGINT, SIGHUP   the child drains: what runs may finish within --drain-seconds, new requests get 503
    a second one              everything ends at once, with status 128 + the signal's number

Ends with 0 after a drain, with the child's status when the first start fails, and with 1 when the engine dies and
--no-restart is set.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence

import psutil

from qwen_vqa.plugin.command.installed_command import typed_command
from qwen_vqa.serving.http.connections import check_file_limit, raise_file_limit
from qwen_vqa.serving.observability.log import say, set_format
from qwen_vqa.serving.process.leftovers import own_name
from qwen_vqa.serving.process.listener import listen_flags, listening
from qwen_vqa.serving.process.maintenance_responder import LOADING, StandIn
from qwen_vqa.serving.process.process_tree import reap_orphans
from qwen_vqa.serving.process.start_progress import StartProgress

FIRST_DELAY = 1.0
LONGEST_DELAY = 60.0
# After serving for so long, the next failure counts as the first again.
HEALTHY_SECONDS = 300.0
# Beyond --drain-seconds, for the engine's own end.
END_SECONDS = 20.0
SERVER = (sys.executable, "-m", "qwen_vqa.serving.server_process")
RESTARTS = "QWEN_VQA_RESTARTS"


def supervise(argv: Sequence[str]) -> int:
    """Serve until told to stop; returns the exit status.

    Args:
        argv: the command line of `qwen-vqa serve`.

    Raises:
        UserError: the port cannot be had.
    """
    flags = listen_flags(argv)
    set_format(flags.log_format)
    raise_file_limit()
    check_file_limit(flags)
    with listening(flags) as sock, own_name(os.environ):
        return asyncio.run(Supervisor(SERVER, argv, flags, sock).run())


class Backoff:
    """Seconds to wait before the next start: 1, 2, 4, up to 60; from 1 again after five healthy minutes."""

    def __init__(self) -> None:
        self._delay = FIRST_DELAY

    def after(self, served_seconds: float) -> float:
        """The delay after a server that served for so long."""
        if served_seconds >= HEALTHY_SECONDS:
            self._delay = FIRST_DELAY
        delay, self._delay = self._delay, min(2 * self._delay, LONGEST_DELAY)
        return delay


class Supervisor:
    """One socket, one child at a time.

    Args:
        command: of the child; the two descriptors come after it, and then its arguments.
        argv: the child's arguments.
        flags: as `listen_flags` has them.
        sock: bound and listening.
    """

    def __init__(self, command: Sequence[str], argv: Sequence[str], flags: Namespace, sock: socket.socket):
        self._command = command
        self._argv = argv
        self._flags = flags
        self._sock = sock
        self._stand_in = StandIn(sock, flags)
        self._backoff = Backoff()
        self._restarts = 0
        self._ready_at: float | None = None
        self._start_seconds: float | None = None  # of the last start that succeeded
        self._started_at = 0.0
        self._progress = StartProgress()
        self._child: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._signal: signal.Signals | None = None  # the second one, which ends everything
        self._overdue: asyncio.TimerHandle | None = None

    async def run(self) -> int:
        """Until a signal, or what cannot be mended."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        await self._stand_in.start(LOADING)
        while True:
            status = await self._run_child()
            if self._stopping.is_set():
                say("stopped")
                return 128 + self._signal if self._signal else 0
            if self._ready_at is None and not self._restarts:
                return self._gave_up(status)
            if self._flags.no_restart:
                say(f"the server ended with status {status}; --no-restart: not started again")
                return 1
            delay = self._backoff.after(time.monotonic() - self._ready_at if self._ready_at else 0)
            self._restarts += 1
            say(f"the server ended with status {status}; start {self._restarts + 1} in {delay:g} s")
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
                return 0

    async def _run_child(self) -> int:
        self._ready_at = None
        self._started_at = time.monotonic()
        self._stand_in.expect(self._start_seconds)
        ours, theirs = socket.socketpair()
        fds = (self._sock.fileno(), theirs.fileno())
        self._child = await asyncio.create_subprocess_exec(
            *self._command,
            *map(str, fds),
            *self._argv,
            pass_fds=fds,
            env={**os.environ, RESTARTS: str(self._restarts)},
            start_new_session=True,  # so that Ctrl-C reaches this process alone, and all of the child's can be ended
        )
        theirs.close()
        try:
            await self._attend(ours)
            status = await self._child.wait()
        finally:
            end_group(self._child.pid)
            self._reap()
            if self._overdue is not None:
                self._overdue.cancel()
        return status

    async def _attend(self, ours: socket.socket) -> None:
        """Hand the port to the child when it serves, and take it back when it does not."""
        reader, writer = await asyncio.open_connection(sock=ours)
        self._progress = StartProgress(self._start_seconds)
        self._progress.start()
        while line := await reader.readline():
            if line == b"loading\n":
                self._progress.loading()
            elif line == b"ready\n":
                self._progress.stop()
                self._ready_at = time.monotonic()
                self._start_seconds = self._ready_at - self._started_at
                await self._stand_in.stop()
                writer.write(b"go\n")
            elif line == b"closed\n":
                break
        self._progress.stop()
        stopping = self._stopping.is_set()
        reason = "The server is shutting down." if stopping else "The engine stopped and is being started again."
        self._stand_in.expect(None if stopping else self._start_seconds)
        await self._stand_in.start(reason)
        await reader.read()
        writer.close()

    def _stop(self, number: signal.Signals) -> None:
        if self._stopping.is_set():
            self._signal = number
            self._end_child()
            return
        self._stopping.set()
        self._progress.stop()
        loading = self._ready_at is None
        seconds = 0 if loading else self._flags.drain_seconds
        say(
            "stopping" if loading else f"stopping; what runs has {seconds} s to finish, a second signal ends it at once"
        )
        self._overdue = asyncio.get_running_loop().call_later(seconds + END_SECONDS, self._end_child)
        if self._child is not None and self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._child.send_signal(signal.SIGTERM)

    def _reap(self) -> None:
        reap_orphans(None if self._child is None else self._child.pid)

    def _end_child(self) -> None:
        if self._child is not None:
            end_group(self._child.pid)

    def _gave_up(self, status: int) -> int:
        if status == 2:  # the child has said what is wrong with the command line or the checkpoint
            return status
        say(f"the server could not start (status {status}): not tried again. What it said is above;")
        say(f"VLLM_LOGGING_LEVEL=INFO shows more, `{typed_command()} doctor` the installation.")
        return status if 0 < status < 128 else 1


def end_group(leader: int) -> None:
    """Kill what is left of a process group, but for multiprocessing's resource tracker.

    The tracker ends by itself when the others are gone, and then frees the shared memory that they left.
    """
    for process in _group(leader):
        with contextlib.suppress(psutil.Error):
            if not any("resource_tracker" in argument for argument in process.cmdline()):
                process.kill()


def _group(leader: int) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            if os.getpgid(process.pid) == leader:
                yield process
