"""A real `qwen-vqa serve` for the tests, and OpenAI's own client to it."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from openai import OpenAI

from qwen_vqa.plugin.command.installed_command import installed_command
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.verify.local_server import free_port, started_server

__all__ = ["SERVE", "Server", "free_port", "serving"]

SERVE = installed_command("serve")
START_SECONDS = 300
# The tests' server leaves the second core to the tests.
ONE_CORE = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Server:
    """A running server: its address with /v1, what it printed, and its process."""

    url: str
    log: Path
    process: subprocess.Popen

    @property
    def client(self) -> OpenAI:
        """OpenAI's SDK, pointed at it, with retries off so that errors are seen."""
        return OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=300)


@contextlib.contextmanager
def serving(log: Path, *arguments: str) -> Iterator[Server]:
    """Start `qwen-vqa serve` with these arguments on a free port; it is stopped at the end."""
    with log.open("w") as output:
        try:
            with started_server(
                arguments,
                stdout=output,
                stderr=subprocess.STDOUT,
                environment={**os.environ, **ONE_CORE},
                start_seconds=START_SECONDS,
            ) as (address, process):
                yield Server(f"{address}/v1", log, process)
        except UserError as error:
            raise RuntimeError(f"{error}\n{log.read_text()[-3000:]}") from error
        assert process.returncode == 0, f"the server ended with {process.returncode}:\n{log.read_text()[-3000:]}"
