"""The supervisor: who answers on the port, and what it ends with. Its child here is one without a model."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import httpx
import psutil
import pytest

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.process.listener import LISTEN_FLAGS, check_same_listener, listen, listen_flags, listening
from qwen_vqa.serving.process.supervisor import HEALTHY_SECONDS, Backoff
from tests.server import free_port
from tests.serving.stub_server import SLOW_SECONDS


@contextlib.contextmanager
def supervised(behaviour: str, *arguments: str, first: Sequence[str] = ()) -> Iterator[tuple[str, subprocess.Popen]]:
    """Its address and process; `first` comes before its command."""
    port = free_port()
    command = [*first, sys.executable, "-m", "tests.serving.supervised", behaviour, "--port", str(port), *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for child in [*children, process]:
            child.kill()
        process.wait()


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if condition():
                return
        time.sleep(0.02)
    raise AssertionError("it did not come to that")


def test_while_loading_it_is_alive_and_not_ready():
    with supervised("loading") as (address, _):
        until(lambda: httpx.get(address + "/health").status_code == 200)
        reply = httpx.post(address + "/v1/chat/completions", content=b"x" * 5_000_000)
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.headers["connection"] == "close"
    assert reply.json()["error"] == {
        "message": "The model is loading.",
        "type": "server_error",
        "param": None,
        "code": "service_unavailable",
    }


def test_it_takes_no_processor_time_while_the_server_answers():
    with supervised("serve") as (address, process):
        until(lambda: httpx.get(address).status_code == 200)
        time.sleep(0.5)
        watched = psutil.Process(process.pid)
        before = sum(watched.cpu_times()[:2])
        time.sleep(2)
        assert sum(watched.cpu_times()[:2]) - before < 0.5


def test_a_server_that_dies_is_replaced_and_the_port_answers_all_the_time():
    with supervised("serve") as (address, process):
        until(lambda: httpx.get(address).status_code == 200)
        first = int(httpx.get(address).text)
        os.kill(first, signal.SIGKILL)
        replies = []

        def another_answers() -> bool:
            replies.append(httpx.get(address))
            return replies[-1].status_code == 200 and int(replies[-1].text) != first

        deadline = time.monotonic() + 20
        while not another_answers():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert {reply.status_code for reply in replies} == {200, 503}
        assert "started again" in next(reply for reply in replies if reply.status_code == 503).text
        process.terminate()
        assert process.wait(10) == 0


def test_with_no_restart_it_ends_with_status_1():
    with supervised("serve", "--no-restart") as (address, process):
        until(lambda: httpx.get(address).status_code == 200)
        os.kill(int(httpx.get(address).text), signal.SIGKILL)
        assert process.wait(10) == 1
        assert "not started again" in process.stderr.read()


def test_a_first_start_that_fails_is_not_tried_again():
    with supervised("fail") as (_, process):
        assert process.wait(10) == 7
        assert "not tried again" in process.stderr.read()


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_everything_at_once(first: signal.Signals):
    with supervised("stubborn", "--drain-seconds", "60") as (address, process):
        until(lambda: httpx.get(address).status_code == 200)
        child = int(httpx.get(address).text)
        process.send_signal(first)
        assert any("a second signal ends it at once" in line for line in process.stderr)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 128 + signal.SIGTERM
        assert not psutil.pid_exists(child)


def test_a_terminal_that_is_closed_stops_it_and_nohup_does_not():
    with supervised("serve") as (address, process):
        until(lambda: httpx.get(address).status_code == 200)
        process.send_signal(signal.SIGHUP)
        assert process.wait(10) == 0
    with supervised("serve", first=["nohup"]) as (address, process):
        until(lambda: httpx.get(address).status_code == 200)
        process.send_signal(signal.SIGHUP)
        time.sleep(1)
        assert httpx.get(address).status_code == 200


def test_told_to_stop_while_loading_it_stops():
    with supervised("loading") as (address, process):
        until(lambda: httpx.get(address).status_code == 503)
        process.terminate()
        assert process.wait(10) == 0


def test_a_supervisor_that_is_killed_takes_its_server_with_it():
    with supervised("serve") as (address, process):
        until(lambda: httpx.get(address).status_code == 200)
        child = psutil.Process(int(httpx.get(address).text))
        process.kill()
        process.wait()
        until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_delays_double_up_to_a_minute_and_begin_again_after_a_healthy_while():
    backoff = Backoff()
    assert [backoff.after(3) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert [backoff.after(HEALTHY_SECONDS), backoff.after(0)] == [1, 2]


def test_it_imports_neither_torch_nor_vllm():
    code = "import sys, qwen_vqa.serving.cli, qwen_vqa.serving.serve, qwen_vqa.serving.process.supervisor; "
    code += "print([name for name in ('torch', 'vllm', 'transformers', 'numpy') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_unix_socket_left_behind_is_taken_over_and_a_live_one_is_not(tmp_path):
    flags = listen_flags(["--uds", str(tmp_path / "socket")])
    listen(flags).close()
    with listen(flags) as second:
        assert second.getsockname() == flags.uds
        with pytest.raises(UserError, match="cannot be used"):
            listen(flags)


@pytest.mark.parametrize("what", ["a file", "another server's socket"])
def test_what_lies_at_the_sockets_path_already_stays(tmp_path, what: str):
    path = tmp_path / "socket"
    with contextlib.ExitStack() as others:
        if what == "a file":
            path.write_text("precious")
        else:
            others.enter_context(listening(listen_flags(["--uds", str(path)])))
        run = subprocess.run(
            [sys.executable, "-m", "qwen_vqa.serving.cli", "serve", "--uds", str(path)], capture_output=True, text=True
        )
        assert run.returncode == 2
        assert str(path) in run.stderr
        if what == "a file":
            assert path.read_text() == "precious"
        else:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))


def test_only_the_socket_that_was_made_is_removed(tmp_path):
    path = tmp_path / "socket"
    with listening(listen_flags(["--uds", str(path)])):
        path.unlink()
        path.write_text("put there by somebody else")
    assert path.exists()
    path.unlink()
    with listening(listen_flags(["--uds", str(path)])):
        assert path.is_socket()
    assert not path.exists()


def test_clients_are_told_how_long_the_last_start_took():
    with supervised("slow") as (address, _):
        until(lambda: httpx.get(address + "/ready").status_code == 200)
        first = httpx.get(address + "/ready")
        os.kill(int(first.text), signal.SIGKILL)
        replies = []
        until(lambda: replies.append(httpx.get(address + "/ready")) or replies[-1].status_code == 503)
    refusal = replies[-1]
    told = re.search(r"about (\d+) s, of which (\d+) have passed", refusal.json()["error"]["message"])
    assert int(told[1]) >= SLOW_SECONDS
    assert SLOW_SECONDS - 3 <= int(refusal.headers["retry-after"]) <= int(told[1]) + 1


def test_the_listeners_flags_are_read_as_vllm_reads_them():
    from qwen_vqa.serving.serve import _parse

    argv = ["some-model", "--port=9001", "--host", "::1", "--ssl_ciphers", "ECDHE", "--ssl-cert-reqs", "1"]
    assert {name: getattr(listen_flags(argv), name) for name in LISTEN_FLAGS} == {
        name: getattr(_parse(argv), name) for name in LISTEN_FLAGS
    }


def test_an_address_from_a_config_file_is_refused(tmp_path):
    from qwen_vqa.serving.serve import _parse

    (tmp_path / "config.yaml").write_text("port: 9001\n")
    argv = ["some-model", "--config", str(tmp_path / "config.yaml")]
    with pytest.raises(UserError, match="--port has to stand on the command line"):
        check_same_listener(argv, _parse(argv))


@pytest.mark.parametrize("flags", [["--api-server-count", "2"], ["--headless"], ["--grpc"]])
def test_what_only_vllms_own_launcher_starts_is_refused(flags: list[str]):
    from qwen_vqa.serving.serve import _parse

    with pytest.raises(UserError, match=flags[0]):
        _parse(["some-model", *flags])


def test_half_of_a_certificate_is_refused(tmp_path):
    with pytest.raises(UserError, match="go together"):
        listen_flags(["--ssl-keyfile", str(tmp_path / "key.pem")])
