"""HAProxy with the file of serving/deploy, in front of replicas of this machine."""

import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

import qwen_vqa.serving
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.verify.local_server import free_port

FILE = Path(qwen_vqa.serving.__file__).parent / "deploy" / "haproxy.cfg"
TLS = "bind :443 ssl crt /etc/haproxy/qwen-vqa.pem"
REPLICAS = ("127.0.0.1:8000", "127.0.0.1:8001")
START_SECONDS, DRAIN_SECONDS = 20, 120


@dataclass
class Router:
    """A running HAProxy, without TLS: it listens on this machine alone.

    Attributes:
        ports: of the replicas, two.
        changes: of the file's text, beside addresses: what it says, and what it shall say.
    """

    folder: Path
    ports: Sequence[int]
    changes: Sequence[tuple[str, str]] = ()
    port: int = field(default_factory=free_port)
    processes: list[subprocess.Popen] = field(default_factory=list)

    def start(self) -> None:
        """Start it.

        Raises:
            UserError: there is no HAProxy, or it does not start.
        """
        self._start()

    def restart(self) -> None:
        """A new process takes over, as `systemctl reload haproxy` has it; what the old one carries goes on there."""
        self._start("-sf", str(self.processes[-1].pid))

    def _start(self, *more: str) -> None:
        program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
        if program is None:
            raise UserError("no haproxy: `apt-get install haproxy` (or your system's package of it).")
        text = FILE.read_text(encoding="utf-8")
        changes = [*self.changes, (TLS, f"bind 127.0.0.1:{self.port}")]
        changes += [(there, f"127.0.0.1:{port}") for there, port in zip(REPLICAS, self.ports, strict=True)]
        for old, new in changes:
            if old not in text:
                raise UserError(f"{FILE} no longer says {old!r}, which this script replaces.")
            text = text.replace(old, new)
        file = self.folder / "haproxy.cfg"
        file.write_text(text, encoding="utf-8")
        with (self.folder / "haproxy.log").open("a") as log:
            process = subprocess.Popen([program, "-db", "-f", str(file), *more], stdout=log, stderr=log)
        self.processes.append(process)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise UserError(f"HAProxy does not answer; see {self.folder / 'haproxy.log'}.")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=5).status_code > 0
        except httpx.HTTPError:
            return False

    @property
    def url(self) -> str:
        """With /v1."""
        return f"http://127.0.0.1:{self.port}/v1"

    def stop(self) -> None:
        """End it, and those that it took over from."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(DRAIN_SECONDS)
