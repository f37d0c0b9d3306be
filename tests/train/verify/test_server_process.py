"""A command that is told to stop takes its server with it."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from qwen_vqa.plugin.command.sigterm import ended_by_sigterm

COMMAND = """
import sys
from qwen_vqa.train.verify.local_server import started_server
with started_server(sys.argv[1:]):
    pass
"""


def test_sigterm_stops_the_server_that_was_started_and_is_the_status(tiny_checkpoint: Path) -> None:
    command = subprocess.Popen([sys.executable, "-c", COMMAND, str(tiny_checkpoint)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (children := psutil.Process(command.pid).children(recursive=True)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "checking the checkpoint" in command.stderr.readline()  # its server's own child is there
    children = psutil.Process(command.pid).children(recursive=True)
    assert len(children) >= 2
    command.terminate()
    assert command.wait(60) == 128 + signal.SIGTERM
    gone, alive = psutil.wait_procs(children, 10)
    assert gone and not alive


def test_a_handler_that_is_there_stands_and_a_thread_has_none() -> None:
    def theirs(*_: object) -> None: ...

    def in_a_thread() -> None:
        with ended_by_sigterm():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen: list = []
    before = signal.signal(signal.SIGTERM, theirs)
    try:
        with ended_by_sigterm():
            assert signal.getsignal(signal.SIGTERM) is theirs
        thread = threading.Thread(target=in_a_thread)
        thread.start()
        thread.join()
        assert seen == [theirs]
    finally:
        signal.signal(signal.SIGTERM, before)
