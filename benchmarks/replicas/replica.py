"""Replicas on this machine, started again whenever they end, as systemd does; and the ways in which they fail."""

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from qwen_vqa.plugin.command.installed_command import installed_command
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.verify.local_server import free_port

ENGINE, SERVER = "VLLM::EngineCore", "qwen_vqa.serving.server_process"
LOOK_SECONDS = 0.2
RESTART_SECONDS = 1.0  # between an end and the next start
START_SECONDS, STOP_SECONDS = 300, 120
NOTICED_SECONDS = 20.0
SHARED_MEMORY = Path("/dev/shm")
_IN_SHARED_MEMORY = re.compile(r" /dev/shm/(\S+)$", re.MULTILINE)
MARK = "QWEN_VQA_FAILOVER"  # in the environment of all that is started here


@dataclass
class Replica:
    """`qwen-vqa serve` on a port of its own. `keep` has to be called again and again."""

    name: str
    arguments: Sequence[str]
    log: Path
    mark: str
    port: int = field(default_factory=free_port)
    starts: int = 0
    process: subprocess.Popen | None = None
    shared_memory: set[str] = field(default_factory=set)  # what its processes had, whenever they were told to end

    def start(self) -> None:
        """Start it; its log goes on."""
        command = installed_command("serve", *self.arguments, "--port", str(self.port))
        environment = {"OMP_NUM_THREADS": "1", **os.environ, MARK: self.mark}
        with self.log.open("a") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        self.starts += 1

    def keep(self) -> None:
        """Start it again where it has ended."""
        if self.process is not None and self.process.poll() is not None:
            time.sleep(RESTART_SECONDS)
            self.start()

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def processes(self) -> list[psutil.Process]:
        """All that it consists of, the one that was started first."""
        assert self.process is not None
        try:
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill(self, what: str) -> None:
        """Send SIGKILL to its "engine", its "server" (the API's process), or to "everything".

        Returns when it says that it is not ready: an engine's end is noticed a moment later.

        Raises:
            UserError: there was nothing to kill, or nobody noticed.
        """
        self._note_shared_memory()
        found = [process for process in self.processes() if what == "everything" or _is(process, what)]
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended with another
                process.kill()
        deadline = time.monotonic() + NOTICED_SECONDS
        while self.ready:
            if not found or time.monotonic() > deadline:
                raise UserError(f"{self.name}: its {what} was to be killed, and it is still ready; see {self.log}.")
            time.sleep(LOOK_SECONDS / 4)

    def drain(self) -> None:
        """Tell it to stop, as for an update; what runs is answered first, and `keep` starts it again."""
        assert self.process is not None
        self._note_shared_memory()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(STOP_SECONDS)

    def stop(self) -> None:
        """End it, and everything of it."""
        if self.process is None or self.process.poll() is not None:
            return
        self._note_shared_memory()
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            for process in self.processes():
                with contextlib.suppress(psutil.NoSuchProcess):  # it ended with another
                    process.kill()
            self.process.wait()

    def _note_shared_memory(self) -> None:
        for process in self.processes():
            with contextlib.suppress(OSError):  # it ends just now
                maps = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8")
                self.shared_memory.update(_IN_SHARED_MEMORY.findall(maps))


def _is(process: psutil.Process, what: str) -> bool:
    try:
        title = " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
    return {"engine": ENGINE, "server": SERVER}[what] in title


def wait_until_ready(replicas: Sequence[Replica], ended: threading.Event | None = None) -> float:
    """Seconds until all are.

    Args:
        ended: when set, nobody waits any longer.

    Raises:
        UserError: one was not in time; its log is named.
    """
    started = time.monotonic()
    while not all(replica.ready for replica in replicas):
        if ended is not None and ended.is_set():
            break
        if time.monotonic() - started > START_SECONDS:
            raise UserError(f"a replica was not ready after {START_SECONDS} s; see {replicas[0].log.parent}.")
        time.sleep(LOOK_SECONDS)
    return time.monotonic() - started


@contextlib.contextmanager
def kept(replicas: Sequence[Replica]) -> Iterator[None]:
    """Started, and started again whenever they end; stopped at the end."""
    over = threading.Event()

    def keep() -> None:
        while not over.wait(LOOK_SECONDS):
            for replica in replicas:
                replica.keep()

    keeper = threading.Thread(target=keep)
    for replica in replicas:
        replica.start()
    keeper.start()
    try:
        yield
    finally:
        over.set()
        keeper.join()
        for replica in replicas:
            replica.stop()


@dataclass(frozen=True)
class Footprint:
    """What the replicas take: MiB of memory (proportional: shared pages once), open files, processes."""

    memory_mib: int
    files: int
    processes: int

    @classmethod
    def of(cls, replicas: Sequence[Replica]) -> "Footprint":
        """Now."""
        found = [process for replica in replicas for process in replica.processes()]
        memory = sum(process.memory_full_info().pss for process in found)
        return cls(memory // 2**20, sum(process.num_fds() for process in found), len(found))


def left_behind(mark: str) -> list[str]:
    """Processes that were started here and are still there."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(f"{process.pid} {' '.join(process.cmdline())[:80]}")
        except psutil.Error:  # another user's, or gone
            continue
    return found


def shared_memory_left(replicas: Sequence[Replica]) -> list[str]:
    """Names in /dev/shm that were the replicas', and are still there."""
    return sorted(name for replica in replicas for name in replica.shared_memory if (SHARED_MEMORY / name).exists())
