"""The load generator as users run it: a real process, a real server."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from qwen_vqa.benchmarks.load import read_result
from qwen_vqa.benchmarks.load_generator.client_overhead import null_server
from qwen_vqa.benchmarks.load_generator.sample_images import draw
from qwen_vqa.plugin.errors import UserError
from tests.benchmarks.conftest import Load
from tests.benchmarks.fault_server import FaultServer
from tests.browser import chromium
from tests.tiny import REPOSITORY

QUICK = ("--requests", "8", "--output-tokens", "6", "--warm-up", "0", "--image-size", "32x32")


def test_a_stall_of_the_server_counts_for_all_who_would_have_waited(
    faults: FaultServer, load: Load, tmp_path: Path
) -> None:
    # Requests are meant to go out every 10 ms, and the server stands still for one second at the 50th: a client that
    # sent the next only after an answer would see one slow request.
    trace, file = tmp_path / "trace", tmp_path / "out.json"
    trace.write_text("\n".join(f"{number / 100:.2f}" for number in range(150)))
    faults.stall_at = len(faults.bodies) + 1 + 50  # one of them is the probe
    done = load("--url", faults.url, "--model", "stalls", "--trace", str(trace), "--json", str(file), *QUICK)
    assert done.returncode == 0, done.stderr
    rows = read_result(file)["cells"][0]["records"]
    stalled = max(rows, key=lambda row: row["end"] - row["intended"])["intended"]
    for row in rows:
        if stalled <= row["intended"] <= stalled + 0.8:
            assert row["end"] - row["intended"] >= stalled + 0.95 - row["intended"]
    assert sum(row["end"] - row["intended"] > 0.3 for row in rows) >= 60


def test_a_server_that_answers_to_the_clock_is_measured_as_what_it_is(load: Load, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    with null_server("--ttft", "300", "--itl", "40") as url:
        done = load("--url", url, "--concurrency", "2", *QUICK, "--json", str(file))
    assert done.returncode == 0, done.stderr
    found = read_result(file)["cells"][0]["summary"]
    # Late by what this machine is late; never early.
    assert 300 <= found["ttft"]["p50"] < 400
    assert 39 <= found["tpot"]["p50"] < 55
    seconds = 0.3 + 5 * 0.04
    assert 0.7 * 2 / seconds < found["requests_per_second"] <= 2 / seconds


def test_the_null_server_ends_with_a_client_that_is_killed() -> None:
    code = "import time\nfrom qwen_vqa.benchmarks.load_generator.client_overhead import null_server\n"
    code += "with null_server() as url:\n print(url, flush=True)\n time.sleep(600)"
    client = subprocess.Popen((sys.executable, "-c", code), stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    url = client.stdout.readline().strip()
    assert httpx.get(f"{url}/models").status_code == 200
    client.kill()
    # It has the same output: the pipe ends once it has ended as well.
    assert client.communicate(timeout=30) == ("", None)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models")


def test_failed_requests_beyond_the_bound_are_status_1(faults: FaultServer, load: Load) -> None:
    # The first question, before anything is measured, goes to the model that is asked about; the adapter fails.
    arguments = (
        "--url",
        faults.url,
        "--model",
        "good",
        "--adapters",
        "closes=0.5",
        "--concurrency",
        "2",
        "--seed",
        "3",
    )
    assert load(*arguments, *QUICK).returncode == 1
    allowed = load(*arguments, *QUICK, "--allowed-errors", "1")
    assert allowed.returncode == 0
    assert "failed, closed mid-stream" in allowed.stdout


def test_ctrl_c_writes_what_was_measured(faults: FaultServer, tmp_path: Path) -> None:
    file, page = tmp_path / "out.json", tmp_path / "out.html"
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "load.py"), "--url", faults.url, "--model", "good"]
    command += ["--concurrency", "1", "--requests", "3000", "--json", str(file), "--html", str(page)]
    command += ["--output-tokens", "20", "--image-size", "32x32", "--warm-up", "0"]
    asked = len(faults.bodies)
    # A group of its own gets the signal as a terminal's Ctrl-C sends it: to the program and its processes.
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    while len(faults.bodies) < asked + 30 and process.poll() is None:
        time.sleep(0.05)
    # Not `kill -INT -PID`: procps 4.0.2 reads a number that starts with 1 as -1, which is every process there is.
    assert os.getpgid(process.pid) == process.pid
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, errors
    assert "Traceback" not in errors
    result = read_result(file)
    summary = result["cells"][0]["summary"]
    assert result["interrupted"]
    assert 20 <= summary["completed"] < 3000
    assert summary["failed"] == 0
    assert "Interrupted" in page.read_text()


@pytest.mark.parametrize("seconds", [0.2, 1.5, 3.0])
def test_ctrl_c_before_the_first_cell_is_no_traceback(faults: FaultServer, tmp_path: Path, seconds: float) -> None:
    file = tmp_path / "out.json"
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "load.py"), "--url", faults.url, "--model", "good"]
    command += ["--requests", "5000", "--image-size", "32x32", "--json", str(file), "--output-tokens", "1"]
    asked = len(faults.bodies)
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    while len(faults.bodies) == asked and process.poll() is None:
        time.sleep(0.02)
    time.sleep(seconds)  # the client's own ceiling is being measured then
    assert os.getpgid(process.pid) == process.pid
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, errors
    assert "Traceback" not in errors
    assert not file.exists() or read_result(file)["interrupted"]


def test_a_picture_that_is_gone_leaves_what_was_measured_before(faults: FaultServer, tmp_path: Path) -> None:
    file, photos = tmp_path / "out.json", tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        (photos / f"{number}.jpg").write_bytes(draw(number, 32, 32))
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "load.py"), "--url", faults.url, "--model", "good"]
    command += ["--concurrency", "1,2", "--requests", "20", "--image-folder", str(photos), "--json", str(file)]
    asked = len(faults.bodies)
    process = subprocess.Popen(
        [*command, "--output-tokens", "50", "--warm-up", "0"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    while len(faults.bodies) < asked + 3 and process.poll() is None:
        time.sleep(0.02)
    (photos / "1.jpg").unlink()
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "1.jpg cannot be read" in errors and "Traceback" not in errors
    assert "the folder has 2 images for the 40 times" in output
    result = read_result(file)
    assert [cell["summary"]["completed"] for cell in result["cells"]] == [20]
    assert "1.jpg" in result["error"]


def test_several_processes_share_users_and_requests(faults: FaultServer, load: Load, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    asked = len(faults.bodies)
    done = load("--url", faults.url, "--concurrency", "3", "--processes", "2", "--json", str(file), *QUICK)
    assert done.returncode == 0, done.stderr
    cell = read_result(file)["cells"][0]
    assert cell["client_processes"] == 2
    assert [row["index"] for row in cell["records"]] == list(range(8))
    assert len(faults.bodies) == asked + 1 + 8  # and the first question


def test_later_turns_carry_the_conversation(faults: FaultServer, load: Load) -> None:
    asked = len(faults.bodies)
    done = load("--url", faults.url, "--concurrency", "1", "--multi-turn", "1", *QUICK)
    assert done.returncode == 0, done.stderr
    messages = [[message["role"] for message in body["messages"]] for body in faults.bodies[asked + 1 :]]
    assert messages[2] == ["user", "assistant", "user", "assistant", "user"]
    assert "later turns: TTFT" in done.stdout


def test_a_server_without_extensions_is_measured_and_what_is_left_out_is_said(faults: FaultServer, load: Load) -> None:
    done = load("--url", faults.url, "--model", "plain", "--concurrency", "1", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "no /metrics" in done.stdout
    assert "an event of the stream counts as one token" in done.stdout


def test_a_run_compared_with_itself_shows_ratios_of_one(faults: FaultServer, load: Load, tmp_path: Path) -> None:
    file, faster = tmp_path / "a.json", tmp_path / "b.json"
    load("--url", faults.url, "--concurrency", "2", "--json", str(file), *QUICK)
    same = load("--compare", str(file), str(file))
    assert same.returncode == 0
    assert "requests/s" in same.stdout and "1.00" in same.stdout
    assert "better" not in same.stdout and "worse" not in same.stdout and "careful" not in same.stdout
    result = json.loads(file.read_text())
    result["cells"][0]["summary"]["requests_per_second"] *= 2
    result["environment"]["machine"]["cores"] += 1
    faster.write_text(json.dumps(result))
    other = load("--compare", str(file), str(faster)).stdout
    assert "2.00" in other and "better" in other
    assert "careful: other machines (cores" in other


def test_the_page_loads_nothing_and_shows_the_cells(faults: FaultServer, load: Load, tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    load("--url", faults.url, "--concurrency", "1,2", "--html", str(page), *QUICK)
    text = page.read_text()
    assert text.count("<svg") == 8
    assert "2 users" in text
    assert "src=" not in text and "href=" not in text and "@import" not in text
    assert "{" not in text.partition("</style>")[2]  # no Python in what people read
    assert re.search(r"<dt>answers</dt><dd>6 tokens</dd>", text)
    assert re.search(r"<dt>pictures</dt><dd>1 a request, drawn, 32 x 32 pixels", text)
    assert "p99 of 8 requests" in text and "--requests 500" in text
    with chromium() as browser:
        for width in (390, 1280):
            shown = browser.new_page(viewport={"width": width, "height": 800})
            shown.goto(page.as_uri())
            assert shown.evaluate("document.documentElement.scrollWidth") == width


def test_users_in_a_range_and_a_warm_up_that_fails(faults: FaultServer, load: Load) -> None:
    # The first question is answered, and then every request, the warm-up's too, goes to the adapter.
    arguments = ("--url", faults.url, "--model", "good", "--adapters", "429=1", "--concurrency", "1,2..4")
    done = load(*arguments, *QUICK[:4], "--warm-up", "2", "--image-size", "32x32")
    assert done.returncode == 1
    for users in ("1 user", "2 users", "4 users"):
        assert f"{users}, cold: warm-up: 2 failed, http 429" in done.stdout
        assert f"{users}, cold, warm-up: 2 of 2, 2 failed" in done.stderr


def test_the_key_is_sent_and_not_written(faults: FaultServer, load: Load, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    load("--url", faults.url, "--concurrency", "1", "--api-key", "very-secret", "--json", str(file), *QUICK)
    assert "very-secret" not in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--url", "http://127.0.0.1:9/v1"), "nobody answers"),
        (("--concurrency", "0"), "--concurrency '0'"),
        (("--output-tokens", "9-3"), "the first is larger"),
        (("--repeated-images", "2"), "a share from 0 to 1"),
        (("--json", "/no/such/folder/out.json"), "there is no folder"),
        (("--image-folder", "/no/such/folder"), "no images there"),
        (("--goodput", "speed:1"), "NAME:MILLISECONDS"),
        (("--extra-body", "[1]"), "expected a JSON object"),
        (("--concurrency", "2,3..9"), "write the numbers out"),
        (("--compare", "a.json", "b.json", "--html", "c.html"), "leave out --json and --html"),
    ],
)
def test_bad_input_is_one_message(load: Load, arguments: tuple[str, ...], message: str) -> None:
    done = load(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text("{}")
    with pytest.raises(UserError, match="not a result"):
        read_result(file)
