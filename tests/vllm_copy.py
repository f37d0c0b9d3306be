"""A function in a copy of a process that has imported vLLM, with its own standard output, errors and environment.

For tests of what a command says and ends with: importing vLLM anew is most of what such a command takes. The process
that is copied is multiprocessing's fork server (see `tests.plugin.engine`); it has imported none of our modules.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.plugin.engine import copies

SECONDS = 120


def in_a_copy(
    function: Callable[..., int | None], *arguments: object, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Its status, and what it printed; the function is one of a module."""
    with TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdout", "stderr")]
        surroundings = dict(os.environ if environment is None else environment)
        process = copies().Process(target=_run, args=(files, surroundings, function, arguments))
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
        return subprocess.CompletedProcess(function.__name__, process.exitcode, *(file.read_text() for file in files))


def passes_in_a_copy(function: Callable[..., None], *arguments: object) -> None:
    """For tests that change their process, as one does that registers a device: their assertions hold in a copy."""
    run = in_a_copy(function, *arguments)
    assert run.returncode == 0, run.stderr


def _run(files: list[Path], environment: dict[str, str], function: Callable[..., int | None], arguments: tuple) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.exit(function(*arguments))


def command(*words: str) -> int:
    """`qwen-vqa WORDS`."""
    from qwen_vqa.serving.cli import main

    return main(list(words))


def server(*arguments: str) -> int:
    """The process that `qwen-vqa serve ARGUMENTS` starts for the server, with a supervisor that says nothing."""
    from qwen_vqa.serving.server_process import main

    listening, (supervisors, servers) = socket.socket(), socket.socketpair()
    supervisors.detach()  # stays open: the server ends itself when the supervisor is gone
    return main([str(listening.detach()), str(servers.detach()), *arguments])
