"""Fetching images from the web: what is followed, and where reading stops. What is refused: test_ssrf."""

import asyncio
import time
from collections.abc import Iterator
from importlib.metadata import version
from urllib.parse import quote

import pytest

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.images.image_fetch import FetchRules, fetch_image_bytes
from qwen_vqa.plugin.images.image_limits import ImageError, ImageLimits
from qwen_vqa.plugin.images.image_source import open_image
from tests.image_server import HOPPER, ImageServer, image_server


@pytest.fixture(scope="module")
def server() -> Iterator[ImageServer]:
    with image_server() as running:
        yield running


def fetch(server: ImageServer, path: str, host: str = "127.0.0.1", lookup=None, **rules) -> bytes:
    rules = {"trusted_hosts": frozenset({host}), **rules}
    return asyncio.run(fetch_image_bytes(server.url(path, host), "image 1", FetchRules(**rules), lookup))


def test_an_image_is_fetched_and_opened(server: ImageServer):
    assert fetch(server, "/hopper.jpg") == HOPPER
    rules = FetchRules(trusted_hosts=frozenset({f"127.0.0.1:{server.port}"}))
    assert open_image(server.url(), rules).size == (128, 128)


def test_the_host_is_looked_up_once_and_asked_by_its_name(server: ImageServer):
    asked = []

    async def lookup(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return ["127.0.0.1"]

    assert fetch(server, "/hopper.jpg", "images.example", lookup) == HOPPER
    assert asked == [("images.example", server.port)]
    assert server.headers[-1]["Host"] == f"images.example:{server.port}"


SIGNED = [
    "/picture.jpg?X-Amz-Credential=AK%2F2026%2Fus&sig=a%2Bb%3D%7E%28x%29",
    "/http%3A%2F%2Fx/y%20z.jpg",
    "/a/../b/./c.jpg?d=/../e",
    "/c.jpg?a=1&&b=%zz&=%e4+%C3%A4;~(')[]!$*,:@",
    "?who=me@example.org",
]


@pytest.mark.parametrize("path", SIGNED)
def test_a_signed_url_is_sent_byte_for_byte(server: ImageServer, path: str):
    sent = path if path.startswith("/") else f"/{path}"
    assert fetch(server, path + "#part") == HOPPER
    assert server.requests[-1] == sent
    assert fetch(server, f"/redirect?{quote(server.url(sent))}") == HOPPER
    assert server.requests[-1] == sent
    if "/../" not in path:  # a relative address is resolved
        assert fetch(server, f"/redirect?{quote(sent)}") == HOPPER
        assert server.requests[-1] == sent


def test_what_may_not_stand_in_a_url_is_encoded(server: ImageServer):
    assert fetch(server, '/Bücher/"{a}|b.jpg') == HOPPER
    assert server.requests[-1] == "/B%C3%BCcher/%22%7Ba%7D%7Cb.jpg"


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "binary/octet-stream", "text/html"])
def test_an_image_is_one_whatever_its_host_calls_it(server: ImageServer, kind: str):
    assert fetch(server, f"/typed?{quote(kind)}") == HOPPER


def test_a_host_learns_who_asks(server: ImageServer):
    fetch(server, "/hopper.jpg")
    assert server.headers[-1]["User-Agent"] == f"qwen-vqa/{version('qwen-vqa')}"
    contact = "my-service/1.0 (https://example.org; me@example.org)"
    fetch(server, "/hopper.jpg", user_agent=contact)
    assert server.headers[-1]["User-Agent"] == contact


def test_redirects_are_followed_but_not_for_ever(server: ImageServer):
    assert fetch(server, "/redirect?/redirect?/redirect?/hopper.jpg") == HOPPER
    before = len(server.requests)
    with pytest.raises(ImageError, match="image 1: more than 3 redirects"):
        fetch(server, "/loop")
    assert len(server.requests) - before == 4
    with pytest.raises(ImageError, match="more than 0 redirects"):
        fetch(server, "/redirect?/hopper.jpg", max_redirects=0)
    with pytest.raises(ImageError, match="redirected: only http, https and data URLs"):
        fetch(server, "/redirect?file:///etc/passwd")


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("/big", "larger than the limit"),  # said by its header
        ("/chunked", "larger than the limit"),  # counted while reading
        ("/page", "sent 'text/html', not an image"),
        ("/lie", "what 127.0.0.1 sent is not an image"),
        ("/gzip", "compressed"),
        ("/status/404", "status 404"),
        ("/status/500", "status 500"),
    ],
)
def test_reading_stops_early(server: ImageServer, path: str, fault: str):
    started = time.monotonic()
    with pytest.raises(ImageError, match=f"image 1: .*{fault}"):
        fetch(server, path, limits=ImageLimits(max_bytes=100_000))
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "\0\xff\xfe",
        "HTTP/1.1 99999 No\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n\xff\xd8\xff",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "HTTP/1.1 200 OK\r\nContent-Type: \xe9\r\n\r\n",
        "HTTP/1.1 200 OK\r\n" + "A" * 20_000 + ": b\r\n\r\n",
        "HTTP/1.1 302 Found\r\n\r\n",
        "HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n",
        "HTTP/1.1 302 Found\r\nLocation: \xff\xfe\r\n\r\n",
    ],
)
def test_an_answer_that_is_no_http_is_said(server: ImageServer, answer: str):
    with pytest.raises(ImageError, match="image 1"):
        fetch(server, f"/garbage?{quote(answer)}", total_seconds=2)


def test_slow_servers_are_left(server: ImageServer):
    with pytest.raises(ImageError, match=r"took longer than 0\.6 s"):
        fetch(server, "/drip", total_seconds=0.6)  # each byte comes in time, all of them do not
    with pytest.raises(ImageError, match=r"127.0.0.1 took too long to answer"):
        fetch(server, "/silent", read_seconds=0.3)

    async def lookup(host: str, port: int) -> list[str]:
        await asyncio.sleep(5)
        return []

    with pytest.raises(ImageError, match=r"took longer than 0\.3 s"):
        fetch(server, "/hopper.jpg", "slow.example", lookup, total_seconds=0.3)


def test_nobody_there_is_said(server: ImageServer):
    async def nowhere(host: str, port: int) -> list[str]:
        raise OSError("no such host")

    with pytest.raises(ImageError, match=r"no host is called nowhere\.example"):
        fetch(server, "/x", "nowhere.example", nowhere)
    with pytest.raises(ImageError, match=r"127\.0\.0\.1 could not be reached"):
        asyncio.run(fetch_image_bytes("http://127.0.0.1:9/x", "image 1", FetchRules(trusted_hosts={"127.0.0.1"})))


def test_allowed_hosts_are_the_only_ones(server: ImageServer):
    assert fetch(server, "/hopper.jpg", allowed_hosts=frozenset({"127.0.0.1"})) == HOPPER
    with pytest.raises(ImageError, match=r"not fetched from 127\.0\.0\.1 here"):
        fetch(server, "/hopper.jpg", allowed_hosts=frozenset({"images.example"}))


@pytest.mark.parametrize(
    "rules",
    [
        {"max_redirects": -1},
        {"total_seconds": 0},
        {"trusted_hosts": frozenset({"http://a"})},
        {"allowed_hosts": frozenset({""})},
        {"user_agent": " "},
        {"user_agent": "a\r\nHost: b"},
        {"user_agent": "Ä"},
    ],
)
def test_rules_that_cannot_be_are_said(rules: dict):
    with pytest.raises(UserError):
        FetchRules(**rules)
