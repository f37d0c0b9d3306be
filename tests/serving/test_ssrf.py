"""Addresses that a stranger may not have the server fetch: in every spelling, and by every detour.

A recording server listens where each of them points. None of them may reach it, from the loader with a resolver
of the test's own, and from the running server.
"""

import asyncio
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from openai import BadRequestError

from qwen_vqa.plugin.images import image_fetch
from qwen_vqa.plugin.images.image_fetch import FetchRules, fetch_image_bytes
from qwen_vqa.plugin.images.image_limits import ImageError
from tests.image_server import HOPPER, ImageServer, image_server
from tests.namespaces import may_unshare
from tests.server import Server

# {port} is the recording server's; without it, the scheme's own port.
SPELLINGS = {
    "plain": "http://127.0.0.1:{port}/",
    "plain without a port": "http://127.0.0.1/",
    "https": "https://127.0.0.1:{port}/",
    "another of the block": "http://127.8.8.8:{port}/",
    "any address": "http://0.0.0.0:{port}/",
    "zero": "http://0:{port}/",
    "decimal": "http://2130706433:{port}/",
    "decimal on port 80": "http://2130706433/",
    "octal": "http://0177.0.0.1:{port}/",
    "octal on port 80": "http://0177.0.0.1/",
    "octal whole": "http://017700000001/",
    "hexadecimal": "http://0x7f.0.0.1/",
    "hexadecimal whole": "http://0x7f000001/",
    "hexadecimal on the port": "http://0x7f000001:{port}/",
    "short": "http://127.1:{port}/",
    "short on port 80": "http://127.1/",
    "shorter": "http://127.0.1/",
    "padded": "http://127.000.000.001/",
    "overflow": "http://4294967297/",
    "trailing dot": "http://127.0.0.1.:{port}/",
    "trailing dot on port 80": "http://127.0.0.1./",
    "localhost": "http://localhost:{port}/",
    "localhost on port 80": "http://localhost/",
    "LOCALHOST.": "http://LOCALHOST.:{port}/",
    "IPv6": "http://[::1]:{port}/",
    "IPv6 on port 80": "http://[::1]/",
    "IPv6 written out": "http://[0:0:0:0:0:0:0:1]/",
    "IPv6 any": "http://[::]:{port}/",
    "IPv4-mapped": "http://[::ffff:127.0.0.1]:{port}/",
    "IPv4-mapped on port 80": "http://[::ffff:127.0.0.1]/",
    "IPv4-mapped in hexadecimal": "http://[::ffff:7f00:1]/",
    "IPv4-compatible": "http://[::127.0.0.1]/",
    "NAT64": "http://[64:ff9b::7f00:1]/",
    "6to4": "http://[2002:7f00:1::]/",
    "zone": "http://[fe80::1%25lo]/",
    "zone without escape": "http://[::1%lo]/",
    "backslash": "http:\\\\127.0.0.1:{port}\\",
    "backslash after a host": "http://example.com\\@127.0.0.1:{port}/",
    "user": "http://example.com@127.0.0.1:{port}/",
    "user and password": "http://example.com:80@127.0.0.1:{port}/",
    "two users": "http://a@127.0.0.1:{port}@example.com/",
    "empty user": "http://@127.0.0.1:{port}/",
    "fragment": "http://127.0.0.1:{port}#@example.com/",
    "query": "http://127.0.0.1:{port}?@example.com/",
    "unicode digits": "http://①②⑦.⓪.⓪.①/",
    "full-width digits": "http://\uff11\uff12\uff17.\uff10.\uff10.\uff11/",
    "ideographic dots": "http://127。0。0。1/",
    "percent-encoded": "http://%31%32%37.0.0.1/",
    "percent-encoded localhost": "http://loc%61lhost:{port}/",
    "space": "http:// 127.0.0.1:{port}/",
    "tab": "http://127.0.0.1:{port}\t/",
    "line break": "http://127.0.0.1:{port}/\r\nHost: example.com",
    "upper-case scheme": "HTTP://127.0.0.1:{port}/",
    "no slashes": "http:127.0.0.1:{port}/",
    "one slash": "http:/127.0.0.1:{port}/",
    "no scheme": "//127.0.0.1:{port}/",
    "metadata": "http://169.254.169.254/latest/meta-data/",
    "metadata in decimal": "http://2852039166/",
    "metadata by name": "http://metadata.google.internal/",
    "Azure's agent": "http://168.63.129.16/metadata/instance",
    "Alibaba's metadata": "http://100.100.100.200/latest/meta-data/",
    "private network": "http://192.168.0.1/",
    "ten": "http://10.0.0.1/",
    "another port": "http://example.com:22/",
    "file": "file:///etc/passwd",
    "file with a host": "file://127.0.0.1/etc/passwd",
    "ftp": "ftp://127.0.0.1:{port}/",
    "gopher": "gopher://127.0.0.1:{port}/_GET",
}
# Those that a Location header can say, and that are not a path on the same host.
REDIRECTS = [name for name, url in SPELLINGS.items() if "\r" not in url and url.isascii() and "//" in url]
# What a name's owner may write into its DNS.
PRIVATE_ANSWERS = {
    "loopback": ["127.0.0.1"],
    "private": ["10.1.2.3"],
    "link-local": ["169.254.169.254"],
    "IPv6 loopback": ["::1"],
    "mapped": ["::ffff:127.0.0.1"],
    "unique local": ["fd00:ec2::254"],
    "public and private": ["93.184.216.34", "127.0.0.1"],
}


@pytest.fixture(scope="module")
def target() -> Iterator[ImageServer]:
    """The recording server that nothing may reach."""
    with image_server() as running:
        yield running


@pytest.fixture
def lookups(monkeypatch) -> list[str]:
    """Names as the system resolves them, but none is sent to a name server: example.com is here, too."""
    asked = []
    system = socket.getaddrinfo

    def getaddrinfo(host, port, *args, **kwargs):
        asked.append(host)
        return system("127.0.0.1" if "example" in str(host) or "internal" in str(host) else host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def refused(url: str, target: ImageServer, lookup=None, **rules) -> str:
    reached = len(target.requests)
    with pytest.raises(ImageError) as error:
        asyncio.run(fetch_image_bytes(url, "image 1", FetchRules(**rules), lookup))
    assert len(target.requests) == reached
    return str(error.value)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_spelling_is_tried(spelling: str, target: ImageServer, lookups: list[str]):
    message = refused(SPELLINGS[spelling].format(port=target.port), target)
    assert "could not be reached" not in message
    assert "too long" not in message


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_spelling_reaches_it_where_its_port_is_no_obstacle(
    spelling: str, target: ImageServer, lookups: list[str], monkeypatch
):
    monkeypatch.setattr(image_fetch, "PORTS", {"http": target.port, "https": target.port})
    url = SPELLINGS[spelling]
    if "{port}" not in url:
        url = re.sub(r"^(http://[^/]+)/", r"\1:{port}/", url)
    message = refused(url.format(port=target.port), target)
    assert "could not be reached" not in message
    assert "too long" not in message


@pytest.mark.parametrize("answer", PRIVATE_ANSWERS)
def test_no_name_that_resolves_privately_reaches_it(answer: str, target: ImageServer):
    async def lookup(host: str, port: int) -> list[str]:
        return PRIVATE_ANSWERS[answer]

    assert "images come from the public internet only" in refused("http://images.example/", target, lookup)


def test_a_name_is_asked_once_so_that_it_cannot_change_its_mind(target: ImageServer):
    answers = [["93.184.216.34"], ["127.0.0.1"]]

    async def lookup(host: str, port: int) -> list[str]:
        return answers.pop(0)

    refused("http://rebinding.example/", target, lookup, connect_seconds=0.2, total_seconds=0.5)
    assert answers == [["127.0.0.1"]]


@pytest.mark.skipif(not may_unshare("-Urmn"), reason="no network of this user's own")
def test_a_real_name_that_moves_here_between_two_questions_reaches_nothing():
    """By a real name server and the system's resolver; the second question is a redirect's to the same name."""
    command = ["unshare", "-Urmn", sys.executable, "-m", "tests.rebinding"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    refusal, asked = run.stdout.splitlines()
    assert "images come from the public internet only" in refusal
    assert asked == "asked at 93.184.216.34"


@pytest.mark.parametrize("spelling", REDIRECTS)
def test_no_redirect_reaches_it(spelling: str, target: ImageServer, lookups: list[str]):
    url = SPELLINGS[spelling].format(port=target.port)
    with image_server() as first:
        start = first.url(f"/redirect?{quote(url)}")
        with pytest.raises(ImageError):
            rules = FetchRules(trusted_hosts=frozenset({f"127.0.0.1:{first.port}"}))
            reached = len(target.requests)
            asyncio.run(fetch_image_bytes(start, "image 1", rules))
        assert len(first.requests) >= 1
    assert len(target.requests) == reached


def test_the_recording_server_would_be_reached_if_it_were_trusted(target: ImageServer):
    rules = FetchRules(trusted_hosts=frozenset({f"127.0.0.1:{target.port}"}))
    assert asyncio.run(fetch_image_bytes(target.url("/there"), "image 1", rules)) == HOPPER
    assert target.requests[-1] == "/there"


def ask(server: Server, url: str) -> None:
    image = {"type": "image_url", "image_url": {"url": url}}
    server.client.chat.completions.create(
        model="tiny", max_tokens=1, messages=[{"role": "user", "content": [{"type": "text", "text": "?"}, image]}]
    )


@pytest.mark.parametrize(
    "spelling", [name for name, url in SPELLINGS.items() if "example" not in url and "internal" not in url]
)
def test_the_running_server_refuses_it(spelling: str, target: ImageServer, tiny_server: Server):
    reached = len(target.requests)
    with pytest.raises(BadRequestError) as error:
        ask(tiny_server, SPELLINGS[spelling].format(port=target.port))
    assert error.value.param == "messages[0].content[1]"
    assert error.value.message.count("messages[0].content[1]: ") == 1
    assert len(target.requests) == reached


def test_the_running_server_follows_no_redirect_there(
    target: ImageServer, tiny_server: Server, trusted_images: ImageServer
):
    reached = len(target.requests)
    with pytest.raises(BadRequestError, match="redirected"):
        ask(tiny_server, trusted_images.url(f"/redirect?{target.url()}"))
    assert trusted_images.requests[-1].startswith("/redirect")
    assert len(target.requests) == reached
    ask(tiny_server, trusted_images.url("/redirect?/hopper.jpg"))
