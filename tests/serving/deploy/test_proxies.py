"""nginx and HAProxy with the files of serving/deploy, real ones, in front of a real server."""

import base64
import io
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import ClassVar
from urllib.parse import urlsplit

import httpx
import pytest
from openai import InternalServerError, NotFoundError, OpenAI

from tests.server import Server, free_port
from tests.serving.deploy.proxies import NAMES, REPLICAS, Proxy, configured, proxy
from tests.serving.process.test_supervisor import supervised, until
from tests.tiny import picture

TOKENS = 200
BURST_SECONDS = 0.0005
SAME = 8
CALLERS = 24
MIB = 2**20


def host(url: str) -> str:
    return urlsplit(url).netloc


@pytest.fixture(scope="module", params=NAMES)
def fronted(request, tiny_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Each proxy in front of the tiny model alone."""
    with proxy(request.param, tmp_path_factory.mktemp("fronted"), host(tiny_server.url)) as running:
        yield running


def sdk(running: Proxy) -> OpenAI:
    client = httpx.Client(verify=running.trust, timeout=120)
    return OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, http_client=client)


def question(content: object = "hi", **fields) -> dict:
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 1, **fields}


def large_picture() -> dict:
    """A message's part of a little more than 20 MiB."""
    buffer = io.BytesIO()
    picture(1, 2300, 2300).save(buffer, "PNG", compress_level=0)
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    assert 20 * MIB < len(url) < 32 * MIB
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.mark.parametrize("replicas", [REPLICAS, REPLICAS[:1]], ids=["two", "one"])
@pytest.mark.parametrize("name", NAMES)
def test_the_proxy_takes_its_file(name: str, replicas: tuple[str, ...], tmp_path: Path):
    checked = subprocess.run(configured(name, tmp_path, replicas).check, capture_output=True, text=True, check=False)
    said = checked.stdout + checked.stderr
    assert checked.returncode == 0, said
    assert "warn" not in said.lower(), said


def test_a_stream_arrives_piece_by_piece(fronted: Proxy):
    body = question(stream=True, max_tokens=TOKENS, ignore_eos=True)
    with fronted.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
        arrived = [(time.monotonic(), piece) for piece in answer.iter_raw()]
    events = b"".join(piece for _, piece in arrived).count(b"data: ")
    assert events > TOKENS / 2
    # Tokens are milliseconds apart. A proxy that waits fills a buffer of 4 KiB, some 16 events, and hands on that.
    bursts = sum(later - earlier > BURST_SECONDS for (earlier, _), (later, _) in pairwise(arrived))
    assert bursts > events / 8


def test_a_body_of_20_mib_passes(fronted: Proxy):
    with fronted.client() as client:
        answer = client.post("/v1/chat/completions", json=question([large_picture()]))
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["prompt_tokens_details"]["multimodal_tokens"]["image"] > 0


def test_a_body_of_33_mib_is_refused_in_openais_shape(fronted: Proxy):
    with fronted.client() as client:
        answer = client.post("/v1/chat/completions", content=b" " * 33 * MIB)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"
    assert answer.headers["content-type"].startswith("application/json")


def test_an_error_of_the_server_comes_as_it_is(fronted: Proxy):
    with pytest.raises(NotFoundError) as caught:
        sdk(fronted).chat.completions.create(**question(), extra_body={"model": "nobody"})
    assert caught.value.type and "tiny" in caught.value.message
    assert caught.value.request_id


@pytest.mark.parametrize("name", NAMES)
def test_without_a_server_the_error_is_openais(name: str, tmp_path: Path):
    with proxy(name, tmp_path, f"127.0.0.1:{free_port()}") as running, pytest.raises(InternalServerError) as caught:
        sdk(running).chat.completions.create(**question())
    assert caught.value.status_code == 503
    assert (caught.value.type, caught.value.code) == ("server_error", "service_unavailable")
    assert int(caught.value.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
@pytest.mark.parametrize("name", NAMES)
def test_a_replica_that_is_not_ready_gets_nothing(name: str, first: bool, tiny_server: Server, tmp_path: Path):
    """Its place is the server's own answer while a model loads: 503 to /ready and to all else but /health."""
    with supervised("loading") as (loading, _):
        until(lambda: httpx.get(f"{loading}/ready").status_code == 503)
        replicas = [host(loading), host(tiny_server.url)]
        with proxy(name, tmp_path, *(replicas if first else reversed(replicas))) as running:
            if name == "haproxy":
                running.said(f"Server replicas/{'first' if first else 'second'} is DOWN")
            body = question([{"type": "text", "text": "x" * 100}], user="u" * 50_000)  # beyond HAProxy's buffer
            with running.client() as client:
                answers = [
                    client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {caller}"})
                    for caller in range(CALLERS)
                ]
    assert [answer.status_code for answer in answers] == [200] * CALLERS


def asked(client: httpx.Client, headers: dict[str, str]) -> str:
    answer = client.post("/v1/chat/completions", content=b"{}", headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.text


@pytest.mark.parametrize("name", NAMES)
def test_a_caller_stays_at_one_replica_and_moves_when_it_goes(name: str, tmp_path: Path):
    """The replicas answer with their process' id."""
    with supervised("serving") as (first, first_process), supervised("serving") as (second, _), ExitStack() as stack:
        for address in (first, second):
            until(lambda address=address: httpx.get(f"{address}/ready").status_code == 200)
        running = stack.enter_context(proxy(name, tmp_path, host(first), host(second)))
        client = stack.enter_context(running.client())
        callers = [{header: f"Bearer {n}"} for header in ("authorization", "x-api-key") for n in range(CALLERS)]
        at = [asked(client, caller) for caller in callers]
        assert len(set(at)) == 2
        assert {asked(client, callers[0]) for _ in range(SAME)} == {at[0]}
        assert len({asked(client, {}) for _ in range(SAME)}) == 1  # by address

        gone = httpx.get(first).text
        first_process.kill()
        until(lambda: not reachable(first))
        after = [asked(client, caller) for caller in callers]
        assert gone not in after
        stayed = [(one, other) for one, other in zip(at, after, strict=True) if one != gone]
        assert all(one == other for one, other in stayed)


def reachable(url: str) -> bool:
    try:
        return httpx.get(url).status_code > 0
    except httpx.TransportError:
        return False


class Breaking(BaseHTTPRequestHandler):
    """A replica that is ready, and breaks off: before it answers /before, and in the middle of any other answer."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[tuple[str, tuple]]] = []

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.asked.append((self.path, self.server.server_address))
        self.rfile.read(int(self.headers["content-length"]))
        if self.path != "/before":
            self.wfile.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\ndata: \r\n")
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.mark.parametrize("name", NAMES)
def test_it_is_asked_again_only_where_nothing_was_answered(name: str, tmp_path: Path):
    with ExitStack() as stack:
        servers = [stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Breaking)) for _ in range(2)]
        for server in servers:
            Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
        replicas = [f"127.0.0.1:{server.server_port}" for server in servers]
        client = stack.enter_context(stack.enter_context(proxy(name, tmp_path, *replicas)).client())
        Breaking.asked.clear()
        with pytest.raises(httpx.RemoteProtocolError):
            client.post("/middle", content=b"{}")
        assert [path for path, _ in Breaking.asked] == ["/middle"]
        answer = client.post("/before", content=b"{}")
    assert [path for path, _ in Breaking.asked] == ["/middle", "/before", "/before"]
    assert Breaking.asked[1] != Breaking.asked[2], "the other one"
    assert answer.status_code in (502, 503)
    assert answer.json()["error"]["type"] == "server_error"
