"""Connections that ask nothing, ask without end, or are too many: they are closed or refused, the others answered."""

import contextlib
import json
import socket
import ssl
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.http.http_protocol import HEAD_BYTES, HEAD_SECONDS, HEADERS
from qwen_vqa.serving.process.listener import SLOW_CONNECTIONS_PER_ADDRESS, listen_flags
from tests.attack.watch import health as health_of
from tests.certificate import self_signed
from tests.raw_http import START, answer_to, error_of, is_open, opened, place
from tests.server import Server
from tests.serving.process.test_supervisor import supervised, until


@pytest.mark.parametrize(
    "head",
    [
        pytest.param([START, b"X: " + b"x" * (HEAD_BYTES + 1)], id="one line without an end"),
        pytest.param([START, b"X: " + b"x" * (HEAD_BYTES + 1) + b"\r\n\r\n"], id="one long line"),
        pytest.param([START + b"X: y\r\n" * HEADERS + b"\r\n"], id="many headers"),
        pytest.param([START + b"X: y\r\n" * 10_000], id="headers without an end"),
        pytest.param([b"GET /" + b"x" * HEAD_BYTES + b" HTTP/1.1\r\n"], id="a long address"),
        pytest.param([START + b"Connection: keep-alive\r\n\r\n" + START, b"X: y\r\n" * 10_000], id="pipelined"),
    ],
)
def test_headers_beyond_a_bound_are_431(tiny_server: Server, head: list[bytes]):
    answer = answer_to(tiny_server.url, *head)
    status, error = error_of(answer)
    assert status == 431
    assert error["type"] == "invalid_request_error" and error["code"] == "headers_too_large"
    assert "KiB" in error["message"] or str(HEADERS) in error["message"]


def test_headers_within_the_bounds_are_taken(tiny_server: Server):
    headers = b"".join(b"X-%d: %s\r\n" % (number, b"y" * 500) for number in range(HEADERS - 2))
    assert b"HTTP/1.1 200 OK" in answer_to(tiny_server.url, START + headers + b"Connection: close\r\n\r\n")


def test_a_large_body_in_the_same_piece_as_its_head_is_no_large_head(tiny_server: Server):
    body = json.dumps({"model": "tiny", "prompt": "a\n" * 100, "max_tokens": 1, "user": "\n" * 2 * HEAD_BYTES})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: application/json\r\n\r\n"
    assert b"HTTP/1.1 200 OK" in answer_to(tiny_server.url, (head + body).encode())


def test_a_body_in_crumbs_is_refused(tiny_server: Server):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    status, error = error_of(answer_to(tiny_server.url, head, b"1\r\n \r\n" * 2000))
    assert (status, error["code"]) == (400, "chunks_too_small")


def test_what_is_not_http_is_400_in_openais_shape(tiny_server: Server):
    status, error = error_of(answer_to(tiny_server.url, b"HELO example.org\r\n\r\n"))
    assert (status, error["code"]) == (400, "invalid_http")


def test_headers_without_an_end_take_neither_memory_nor_the_others_time(tiny_server: Server):
    api = max(psutil.Process(tiny_server.process.pid).children(), key=lambda process: process.memory_info().rss)
    before = api.memory_info().rss
    stop = time.monotonic() + 4
    address = tiny_server.url.removesuffix("/v1")

    def flood() -> None:
        while time.monotonic() < stop:
            with contextlib.suppress(OSError), socket.create_connection(place(address), timeout=5) as connection:
                connection.sendall(START + b"X: ")
                while time.monotonic() < stop:
                    connection.sendall(b"x" * 2**16)

    with health_of(address) as health:
        floods = [threading.Thread(target=flood) for _ in range(4)]
        for thread in floods:
            thread.start()
        for thread in floods:
            thread.join()
    assert health.worst < 1 and health.asked > 10 and not health.faults
    assert api.memory_info().rss - before < 32 * 2**20


@pytest.mark.parametrize("sent", [b"", START], ids=["nothing", "half a head"])
def test_many_connections_that_ask_nothing_are_closed(tiny_server: Server, sent: bytes):
    address = tiny_server.url.removesuffix("/v1")
    with opened(address, 2000, sent) as connections, health_of(address) as health:
        time.sleep(3)
        assert sum(map(is_open, connections)) <= SLOW_CONNECTIONS_PER_ADDRESS
        time.sleep(HEAD_SECONDS - 1)
        assert not any(map(is_open, connections))
        assert httpx.get(tiny_server.url + "/models").status_code == 200
    assert health.worst < 1 and health.asked > 10 and not health.faults


def test_half_a_head_is_told_why(tiny_server: Server):
    began = time.monotonic()
    status, error = error_of(answer_to(tiny_server.url, START))
    assert (status, error["code"]) == (408, "request_timeout")
    assert HEAD_SECONDS - 1 < time.monotonic() - began < HEAD_SECONDS + 3


def test_the_second_request_of_a_connection_has_its_time_too(tiny_server: Server):
    began = time.monotonic()
    answer = answer_to(tiny_server.url, START + b"\r\n", START)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert error_of(answer)[0] == 408
    assert time.monotonic() - began < HEAD_SECONDS + 3


def test_a_body_that_nobody_wants_has_an_end(guarded_server):
    """Without a key: the answer is there at once, and the body may not go on for ever."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    with socket.create_connection(place(guarded_server.url), timeout=30) as connection:
        connection.sendall(head)
        assert connection.recv(65536).startswith(b"HTTP/1.1 401")
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 40:
                connection.sendall(b"x")
                time.sleep(0.2)
        assert 5 < time.monotonic() - began < 15


def test_a_flood_of_short_requests_leaves_time_for_others(tiny_server: Server):
    address = tiny_server.url.removesuffix("/v1")
    with opened(address, 200) as connections, health_of(address) as health:
        for _ in range(30):
            for connection in connections:
                connection.setblocking(False)
                with contextlib.suppress(OSError):
                    connection.send((START + b"\r\n") * 20)
            time.sleep(0.1)
    assert health.worst < 1 and not health.faults


def test_while_loading_the_bounds_are_the_same():
    with supervised("loading") as (address, _):
        until(lambda: httpx.get(address + "/health").status_code == 200)
        assert error_of(answer_to(address, START + b"X: y\r\n" * 10_000))[0] == 431
        with opened(address, 200) as connections, health_of(address) as health:
            until(lambda: not any(map(is_open, connections)))
        assert health.worst < 1 and not health.faults


def test_newcomers_take_the_places_of_those_that_wait_and_who_is_answered_stays():
    with supervised("loading", "--connections", "20", "--slow-connections-per-address", "0") as (address, _):
        until(lambda: httpx.get(address + "/health").status_code == 200)
        with socket.create_connection(place(address)) as busy:
            busy.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhel")
            with opened(address, 20, START) as connections:
                time.sleep(1.5)
                for _ in range(10):
                    assert httpx.get(address + "/ready").status_code == 503
                assert sum(map(is_open, connections)) < 20
                busy.sendall(b"lo")
                assert busy.recv(65536).startswith(b"HTTP/1.1 503")


def test_where_all_places_are_taken_health_is_answered_and_others_are_told_to_come_again():
    with supervised("loading", "--connections", "8", "--slow-connections-per-address", "0") as (address, _):
        until(lambda: httpx.get(address + "/health").status_code == 200)
        with opened(address, 8):  # younger than the second after which they would give way
            assert httpx.get(address + "/health").status_code == 200
            refused = httpx.get(address + "/v1/models")
    assert refused.status_code == 503
    assert "as many connections as it takes" in refused.json()["error"]["message"]


def test_below_the_limit_of_open_files_health_is_answered(tmp_path: Path):
    with supervised("loading", first=["prlimit", "--nofile=300:300"]) as (address, process):
        until(lambda: httpx.get(address + "/health").status_code == 200)
        with opened(address, 1000), health_of(address) as health:
            time.sleep(3)
            held = len(psutil.Process(process.pid).net_connections("tcp"))
    assert health.worst < 1 and health.asked > 10 and not health.faults
    assert held < 300
    assert "connections: at most" in process.stderr.read()


def test_tls_that_never_begins_is_closed(tmp_path: Path):
    key, certificate = self_signed(tmp_path)
    with supervised("loading", "--ssl-keyfile", str(key), "--ssl-certfile", str(certificate)) as (address, _):
        secure = address.replace("http:", "https:")
        until(lambda: httpx.get(secure + "/health", verify=False).status_code == 200)
        with opened(address, 200) as connections, health_of(secure) as health:
            time.sleep(3)
            assert sum(map(is_open, connections)) <= SLOW_CONNECTIONS_PER_ADDRESS
            until(lambda: not any(map(is_open, connections)))
        assert health.worst < 1 and not health.faults
        context = ssl._create_unverified_context()
        with context.wrap_socket(socket.create_connection(place(address))) as connection:
            connection.sendall(START + b"X: y\r\n" * 10_000)
            assert connection.recv(65536).startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize("flag", ["--connections=0", "--slow-connections-per-address=-1"])
def test_bounds_that_are_none_are_refused(flag: str):
    with pytest.raises(UserError, match=flag.split("=")[0]):
        listen_flags([flag])
