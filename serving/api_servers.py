"""Several API processes before one engine, or several (`--api-servers`), with vLLM's own machinery for them.

This process starts the engines and the API processes, and watches both; requests never reach it. Each API process has
a socket pair to here, over which it says what a single server's process says to the supervisor (supervisor_link.py).
This process tells the supervisor the same of all of them together: ready when all are, closed when all are.

    SIGTERM or SIGINT                 goes to the API processes, which drain
    an engine or API process dies     what runs in the others ends with an error event, and the supervisor starts again
"""

import os
import shutil
import signal
import socket
import tempfile
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from qwen_vqa.plugin.command.library_warnings import quiet_libraries
from qwen_vqa.serving.engine import launched_engines
from qwen_vqa.serving.observability.log import say
from qwen_vqa.serving.observability.metrics import FILES
from qwen_vqa.serving.process.supervisor_link import CLOSED, DIED, GO, READY, ToSupervisor
from qwen_vqa.serving.vllm_server_api import APIServerProcessManager

# For the last words of API processes whose engine died, and for the status of one that ended.
END_SECONDS = 10.0

ApiProcess = Callable[[Namespace, socket.socket, ToSupervisor, dict[str, Any]], None]


def run_api_servers(
    args: Namespace, sock: socket.socket, supervisor: ToSupervisor, ready: Callable[[], None], process: ApiProcess
) -> bool:
    """Start all, and watch them to their end; returns whether all lived to it.

    Args:
        sock: listening already; the API processes share it.
        ready: called when all of them answer.
        process: what an API process does; it ends with the process.
    """
    with metrics_folder(), ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(args.api_servers)]
        ours, theirs = zip(*pairs, strict=True)
        with launched_engines(args) as (config, listeners, engines):
            manager = APIServerProcessManager(
                listen_address="",
                sock=sock,
                args=args,
                num_servers=args.api_servers,
                input_listeners=listeners.inputs,
                output_listeners=listeners.outputs,
                target_server_fn=partial(_api_process, process, theirs),
                stats_update_address=engines.coordinator.get_stats_publish_address() if engines.coordinator else None,
                tensor_queue=engines.tensor_queue,
            )
            # Who of them dies while the engines load ends the start.
            engines.watched_frontend_processes = manager.processes
        for end in theirs:
            end.close()
        stack.callback(_end, engines, config.shutdown_timeout)
        return _Watch(manager.processes, _engine_processes(engines), ours, supervisor, ready).to_the_end()


@contextmanager
def metrics_folder() -> Iterator[None]:
    """Where the API processes that are started meanwhile keep their counters; another for each start."""
    folder = tempfile.mkdtemp(prefix="metrics-")
    os.environ[FILES] = folder  # prometheus_client reads it when it is imported
    try:
        yield
    finally:
        del os.environ[FILES]
        shutil.rmtree(folder, ignore_errors=True)


def _engine_processes(engines: Any) -> list[BaseProcess]:
    """The engines' on this machine, and that of vLLM's coordinator where there is one."""
    coordinator = [engines.coordinator.proc] if engines.coordinator else []
    return [*getattr(engines.engine_manager, "processes", ()), *coordinator]


def _end(engines: Any, timeout: float) -> None:
    for part in (engines.engine_manager, engines.coordinator):
        if part is not None:
            part.shutdown(timeout=timeout)


class _Watch:
    """The processes once they are started, what they say, and what they are told.

    Args:
        channels: this process' ends of the API processes' socket pairs.
    """

    def __init__(
        self,
        servers: list[BaseProcess],
        engines: list[BaseProcess],
        channels: tuple[socket.socket, ...],
        supervisor: ToSupervisor,
        ready: Callable[[], None],
    ):
        self._api_processes = servers
        self._servers = {server.sentinel: server for server in servers}
        self._engines = {engine.sentinel: engine for engine in engines}
        self._channels = channels
        self._supervisor = supervisor
        self._when_all_say = {READY: ready, CLOSED: supervisor.closed}
        self._said = dict.fromkeys(self._when_all_say, 0)
        self._stopping = False
        self._died = False

    def to_the_end(self) -> bool:
        """Returns whether nothing died before it was told to stop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        threading.Thread(target=self._pass_on_go, daemon=True).start()
        open_channels = set(self._channels)
        while self._servers:
            places: list[Any] = [*self._servers, *self._engines, *open_channels]
            found: list[Any] = connection.wait(places, END_SECONDS if self._died else None)
            if self._died and not found:
                break
            for place in found:
                if isinstance(place, socket.socket):
                    if not self._hear(place):
                        open_channels.discard(place)
                elif place in self._servers:
                    self._ended(self._servers.pop(place))
                else:
                    self._ended(self._engines.pop(place))
        return not self._died

    def _hear(self, channel: socket.socket) -> bool:
        """What an API process says; returns whether it may say more."""
        said = channel.recv(4096)
        for line in said.splitlines(keepends=True):
            self._said[line] += 1
            if self._said[line] == len(self._channels):
                self._when_all_say[line]()
        return bool(said)

    def _ended(self, process: BaseProcess) -> None:
        process.join(END_SECONDS)  # its pipe is closed a moment before its status is there
        if self._died or (self._stopping and process in self._api_processes):
            return
        say(f"the process {process.name} ended with status {process.exitcode}: all are started again")
        self._died = True
        self._tell(DIED)

    def _pass_on_go(self) -> None:
        self._supervisor.port_is_ours.wait()
        self._tell(GO)

    def _tell(self, word: bytes) -> None:
        for channel in self._channels:
            try:
                channel.sendall(word)
            except OSError:
                continue  # that process is gone

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self._stopping = True
        for server in self._servers.values():
            if server.pid is not None:
                os.kill(server.pid, number)


def _api_process(
    process: ApiProcess,
    ends: tuple[socket.socket, ...],
    _address: str,
    sock: socket.socket,
    args: Namespace,
    client_config: dict[str, Any],
) -> None:
    """In an API process: vLLM's manager starts it with these arguments after the first two."""
    quiet_libraries()
    own = client_config["client_index"]
    for index, end in enumerate(ends):
        if index != own:
            end.close()
    process(args, sock, ToSupervisor(ends[own]), client_config)
