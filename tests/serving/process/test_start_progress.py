"""What is said of a start that takes its time: a rewritten line on a terminal, elsewhere lines now and then."""

import asyncio
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import httpx
import pytest

from qwen_vqa.serving.process import start_progress
from qwen_vqa.serving.process.start_progress import StartProgress
from tests.server import free_port
from tests.serving.process.test_supervisor import until
from tests.serving.stub_server import SLOW_SECONDS

CLEARED = "\r\x1b[K\r"


def read_terminal(terminal: int, seconds: float) -> str:
    """What was written to it until its line was cleared, or in so many seconds."""
    text, deadline = b"", time.monotonic() + seconds
    while not text.endswith(CLEARED.encode()) and (left := deadline - time.monotonic()) > 0:
        if select.select([terminal], [], [], left)[0]:
            try:
                text += os.read(terminal, 65536)
            except OSError:  # nobody writes any more
                break
    return text.decode()


def test_a_terminals_line_is_rewritten_and_cleared_before_the_server_answers():
    ours, theirs = pty.openpty()
    port = free_port()
    words = [sys.executable, "-m", "tests.serving.supervised", "slow", "--port", str(port)]
    process = subprocess.Popen(words, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    try:
        said = read_terminal(ours, SLOW_SECONDS + 20)
        until(lambda: httpx.get(f"http://127.0.0.1:{port}").status_code == 200)
        assert read_terminal(ours, 2) == ""
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
    seconds = [int(one) for one in re.findall(r"\r\x1b\[Kqwen-vqa: loading, (\d+) s\r", said)]
    assert seconds == sorted(set(seconds)) and len(seconds) >= 4
    assert "\n" not in said  # it stays one line
    assert said.endswith(CLEARED)  # and is empty when the server answers
    assert max(seconds) <= SLOW_SECONDS + 3


def test_nothing_is_shown_once_the_server_has_said_what_is_wrong():
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "tests.serving.supervised", "gives up", "--port", str(free_port())]
    process = subprocess.Popen(words, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    try:
        assert "loading, " in read_terminal(ours, 30)
        assert read_terminal(ours, 2.5) == ""  # it is still ending
        assert process.poll() is None
        assert process.wait(20) == 2
    finally:
        process.kill()
        process.wait()


def test_a_log_has_lines_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(start_progress, "PLAIN_PAUSE", 0.05)
    monkeypatch.setattr(start_progress, "LONG_PAUSE", 0.4)
    monkeypatch.setattr(start_progress, "LONG_AFTER", 0.3)

    async def start() -> None:
        progress = StartProgress(expected=25.2)
        progress.start()
        progress.loading()
        await asyncio.sleep(1.0)
        progress.stop()
        said.extend(capsys.readouterr().err.splitlines())
        await asyncio.sleep(0.5)

    said: list[str] = []
    asyncio.run(start())
    assert capsys.readouterr().err == ""  # nothing after the stop
    assert 2 <= len(said) <= 9  # six in the first part, and one or two in the rest
    assert all(re.fullmatch(r"qwen-vqa: loading, [01] s of about 25 s", line) for line in said)


def test_lines_of_a_log_are_ten_seconds_apart_at_least():
    assert start_progress.PLAIN_PAUSE >= 10
    assert start_progress.LONG_PAUSE >= start_progress.PLAIN_PAUSE
