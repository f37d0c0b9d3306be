"""HTTP as clients speak it beside Python's: upgrades, old versions, HEAD, connections that stay."""

import http.client
import json
import shutil
import socket
import subprocess
import time
from urllib.parse import urlsplit

import httpx
import pytest

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.process.listener import KEEP_ALIVE_SECONDS, listen_flags
from tests.server import Server

BODY = json.dumps({"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": "hi"}]})


def place(server: Server) -> tuple[str, int]:
    parts = urlsplit(server.url)
    return str(parts.hostname), int(parts.port or 0)


def sent(server: Server, version: str, *headers: str, body: str = BODY) -> bytes:
    """The whole answer to a POST, to the end of the connection."""
    head = [f"POST /v1/chat/completions HTTP/{version}", "Host: x", "Content-Type: application/json", *headers]
    head.append(f"Content-Length: {len(body)}")
    with socket.create_connection(place(server), timeout=60) as connection:
        connection.sendall("\r\n".join([*head, "", body]).encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


H2C = ("Connection: Upgrade, HTTP2-Settings, close", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")


def test_an_upgrade_to_http2_is_ignored_and_the_body_kept(tiny_server: Server):
    answer = sent(tiny_server, "1.1", *H2C)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b'"finish_reason"' in answer
    assert "Unsupported upgrade" not in tiny_server.log.read_text()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl_with_http2_is_answered(tiny_server: Server):
    command = ["curl", "--http2", "--silent", f"{tiny_server.url}/chat/completions", "--data", BODY]
    answer = subprocess.run([*command, "-H", "Content-Type: application/json"], capture_output=True, check=True)
    assert json.loads(answer.stdout)["choices"]


def test_a_stream_to_http_1_0_is_not_in_chunks(tiny_server: Server):
    head, _, body = sent(tiny_server, "1.0", body=json.dumps({**json.loads(BODY), "stream": True})).partition(
        b"\r\n\r\n"
    )
    assert b"transfer-encoding" not in head.lower()
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/version", "/v1/models", "/v1/models/tiny"])
def test_head_is_answered_where_get_is(path: str, tiny_server: Server):
    address = tiny_server.url.removesuffix("/v1")
    head, get = httpx.head(address + path), httpx.get(address + path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers.get("content-type") == get.headers.get("content-type")
    assert httpx.head(address + "/v1/chat/completions").status_code == 405


def test_another_method_is_told_which_there_are(tiny_server: Server):
    address = tiny_server.url.removesuffix("/v1")
    for method, path, allowed in (
        ("PUT", "/v1/models", "GET, HEAD"),
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/messages", "POST"),
    ):
        answer = httpx.request(method, address + path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


def test_an_idle_connection_outlives_a_load_balancers(tiny_server: Server):
    assert listen_flags([]).keep_alive_seconds == KEEP_ALIVE_SECONDS > 60
    connection = http.client.HTTPConnection(*place(tiny_server), timeout=30)
    connection.request("GET", "/health")
    connection.getresponse().read()
    first = connection.sock
    time.sleep(6)  # uvicorn's and vLLM's own are 5 s
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    assert connection.sock is first
    connection.close()


def test_keep_alive_can_be_set(monkeypatch: pytest.MonkeyPatch):
    assert listen_flags(["--keep-alive-seconds", "9"]).keep_alive_seconds == 9
    monkeypatch.setenv("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "33")
    assert listen_flags([]).keep_alive_seconds == 33
    with pytest.raises(UserError, match="--keep-alive-seconds is 0; the least is 1"):
        listen_flags(["--keep-alive-seconds", "0"])
