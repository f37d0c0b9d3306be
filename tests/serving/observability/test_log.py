"""The server's lines stay whole when several threads write at once, however Python buffers."""

import json
import subprocess
import sys

import pytest

LINES = 2000
WRITERS = f"""
import sys, threading
from qwen_vqa.serving.observability.log import say, set_format, write_request

set_format(sys.argv[1])
sys.setswitchinterval(1e-6)
request = dict(method="GET", route="/ready", status=200, seconds=0.001, key="x" * 300)

def requests():
    for _ in range({LINES}):
        write_request(request)

def says():
    for _ in range({LINES}):
        say("ready after 15 s")

threads = [threading.Thread(target=write) for write in (requests, says)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


LISTENERS = "import sys\nfrom qwen_vqa.serving.observability.log import say, show\n"
LISTENERS += "for number in range(3):\n    show('x' * 100_000)\n    say('still here')\n"
LISTENERS += "print('and here')\nsys.exit(7)"


def test_who_stops_reading_stops_nothing():
    """As `serve | head -1` does; without it, Python ends with a traceback and 120."""
    command = [sys.executable, "-c", LISTENERS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == "qwen-vqa: still here\n" * 3
    assert process.returncode == 7


@pytest.mark.parametrize("buffering", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_lines_of_several_threads_are_whole(tmp_path, monkeypatch, log_format: str, buffering: dict[str, str]):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    for name, value in buffering.items():
        monkeypatch.setenv(name, value)
    log = tmp_path / "log"
    with log.open("wb") as out:
        subprocess.run([sys.executable, "-c", WRITERS, log_format], stdout=out, stderr=out, check=True)
    lines = log.read_text().splitlines()
    assert len(lines) == 2 * LINES
    if log_format == "json":
        assert sorted(json.loads(line)["kind"] for line in lines) == ["request"] * LINES + ["serve"] * LINES
    else:
        assert lines.count("qwen-vqa: ready after 15 s") == LINES
        assert sum(line.endswith(f"key={'x' * 300}") for line in lines) == LINES
