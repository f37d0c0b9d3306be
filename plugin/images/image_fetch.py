"""Images from the web, for a server that strangers tell what to fetch.

Every connection, the first and each redirect's, goes to an address that was looked up once and found public;
the socket refuses any other. Size is counted while reading, and what is no image is not read to its end.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from ipaddress import IPv4Address
from typing import Any
from urllib.parse import quote, urljoin

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.images.addresses import refusal
from qwen_vqa.plugin.images.image_limits import DEFAULT_LIMITS, ImageError, ImageLimits, check_size
from qwen_vqa.plugin.images.image_loader import ACCEPTED, HEAD, looks_like_image

PORTS = {"http": 80, "https": 443}
HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity"}
USER_AGENT = f"qwen-vqa/{version('qwen-vqa')}"
_REDIRECTS = (301, 302, 303, 307, 308)
_BINARY = ("", "application/octet-stream", "binary/octet-stream")
_AUTHORITY = re.compile(r"https?://[^/?#]*", re.IGNORECASE)
# What may stand in a URL as it is (RFC 3986), and the percent sign before what may not.
_URL_CHARACTERS = "%:/?#[]@!$&'()*+,;=-._~"
_CHUNK = 64 * 1024
# What can be an IPv4 address to someone: 127.1, 0x7f.1, 2130706433. Only the plain form of four numbers is taken.
_NUMERIC = re.compile(r"(\d+|0x[0-9a-f]*)", re.IGNORECASE)

Lookup = Callable[[str, int], Awaitable[list[str]]]


@dataclass(frozen=True)
class FetchRules:
    """From where images are fetched, and how long that may take.

    Args:
        limits: of the file; see `ImageLimits`.
        allowed_hosts: fetch from these hosts only; empty: from any public one.
        trusted_hosts: HOST or HOST:PORT that may have a private address and any, or this, port.
        max_redirects: how many redirects are followed.
        connect_seconds, read_seconds: for one connection, and between two pieces of an answer.
        total_seconds: for all of it, redirects and name look-ups included.
        user_agent: what the server calls itself. Some hosts (Wikimedia's) want to find a contact in it.

    Raises:
        UserError: a number that cannot be, a host with a scheme or path, or a user agent that is no header.
    """

    limits: ImageLimits = DEFAULT_LIMITS
    allowed_hosts: frozenset[str] = frozenset()
    trusted_hosts: frozenset[str] = frozenset()
    max_redirects: int = 3
    connect_seconds: float = 3
    read_seconds: float = 5
    total_seconds: float = 10
    user_agent: str = USER_AGENT
    _trusted: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.max_redirects < 0 or min(self.connect_seconds, self.read_seconds, self.total_seconds) <= 0:
            raise UserError(
                f"fetching images: redirects {self.max_redirects} must be 0 or more, and seconds "
                f"{self.connect_seconds:g}, {self.read_seconds:g}, {self.total_seconds:g} more than 0."
            )
        for host in self.trusted_hosts | self.allowed_hosts:
            if not host or "/" in host or "@" in host:
                raise UserError(f"image host {host!r}: expected HOST or HOST:PORT, without http:// and path.")
        if not (self.user_agent.strip() and self.user_agent.isascii() and self.user_agent.isprintable()):
            raise UserError(f"user agent {self.user_agent!r}: expected printable ASCII, such as {USER_AGENT!r}.")
        object.__setattr__(self, "_trusted", frozenset(host.lower() for host in self.trusted_hosts))

    def trusts(self, url: URL) -> bool:
        """Whether the operator named this host, or this host and port."""
        return not self._trusted.isdisjoint({_host(url), f"{_host(url)}:{url.port}", f"[{_host(url)}]:{url.port}"})


DEFAULT_RULES = FetchRules()


def is_web_url(url: str) -> bool:
    """Whether it begins as an http or https URL does."""
    return url[:8].lower().startswith(("http://", "https://"))


async def fetch_image_bytes(
    url: str, label: str, rules: FetchRules = DEFAULT_RULES, lookup: Lookup | None = None
) -> bytes:
    """The bytes of an image on the web.

    Args:
        url: http or https.
        label: what errors call it.
        rules: from where, and how much.
        lookup: host and port to addresses (default: the system's resolver).

    Raises:
        ImageError: refused, unreachable, too slow, too large, or not an image.
    """
    try:
        return await asyncio.wait_for(_fetch(url, label, rules, lookup or system_lookup), rules.total_seconds)
    except asyncio.TimeoutError as error:
        raise ImageError(f"{label}: fetching it took longer than {rules.total_seconds:g} s.") from error


async def system_lookup(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system knows them."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def _fetch(url: str, label: str, rules: FetchRules, lookup: Lookup) -> bytes:
    target = checked_url(url, label, rules)
    for _ in range(rules.max_redirects + 1):
        answer = await _get(target, label, rules, lookup)
        if isinstance(answer, bytes):
            return answer
        target = checked_url(_joined(target, answer, label), f"{label}: redirected", rules)
    raise ImageError(f"{label}: more than {rules.max_redirects} redirects.")


def checked_url(url: str, label: str, rules: FetchRules) -> URL:
    """A URL that may be fetched as far as its text tells; the address is looked at when it is known.

    Its path and query stay as they were written: one that is signed is signed byte by byte. What may not stand in a
    URL at all, such as letters beyond ASCII, is encoded.

    Raises:
        ImageError: what is wrong with it.
    """
    if any(character <= " " or character in "\\\x7f" for character in url):
        raise ImageError(f"{label}: the URL holds a space, a backslash or a control character; encode it.")
    if not is_web_url(url):
        raise ImageError(f"{label}: only http, https and data URLs are fetched.")
    authority = url[: _AUTHORITY.match(url).end()]  # type: ignore[union-attr] # it begins as a web URL
    try:
        given = URL(authority)
        if not given.raw_host or given.port is None:
            raise ImageError(f"{label}: the URL names no host.")
        if "@" in authority:
            raise ImageError(f"{label}: a URL with a user name or password is not fetched.")
        rest = quote(url[len(authority) :].partition("#")[0], safe=_URL_CHARACTERS)
        parsed = URL(f"{given.origin()}{'' if rest.startswith('/') else '/'}{rest}", encoded=True)
    except ImageError:
        raise
    except ValueError as error:
        raise ImageError(f"{label}: not a valid URL ({error}).") from error
    _check_host(parsed, _host(parsed), label, rules)
    return parsed


def _check_host(parsed: URL, host: str, label: str, rules: FetchRules) -> None:
    if rules.allowed_hosts and host not in {allowed.lower() for allowed in rules.allowed_hosts}:
        raise ImageError(f"{label}: images are not fetched from {host} here; send the image as a data URL.")
    if rules.trusts(parsed):
        return
    if "%" in host:
        raise ImageError(f"{label}: an address with a zone is not fetched from.")
    if parsed.port != PORTS[parsed.scheme]:
        raise ImageError(f"{label}: port {parsed.port} is not fetched from; only 80 for http and 443 for https are.")
    if ":" in host or _is_plain_ipv4(host):
        _check_address(host, label, host)
    elif _NUMERIC.fullmatch(host.rsplit(".", 1)[-1]):
        raise ImageError(f"{label}: {host[:60]} is no host name, and no address in its plain form.")


def _is_plain_ipv4(host: str) -> bool:
    try:
        return IPv4Address(host) is not None
    except ValueError:
        return False


def _host(url: URL) -> str:
    return (url.raw_host or "").rstrip(".").lower()


def _joined(base: URL, location: str, label: str) -> str:
    try:
        return location if is_web_url(location) else urljoin(str(base), location)
    except ValueError as error:
        raise ImageError(f"{label}: redirected to what is not a URL ({error}).") from error


def _check_address(address: str, label: str, host: str) -> None:
    try:
        reason = refusal(address)
    except ValueError as error:
        raise ImageError(f"{label}: {host} is not a valid address.") from error
    if reason:
        raise ImageError(f"{label}: the address of {host} is {reason}; images come from the public internet only.")


class _CheckedResolver(AbstractResolver):
    """Looks a name up once, and hands its addresses on only when every one of them may be connected to."""

    def __init__(self, lookup: Lookup, label: str, trusted: bool) -> None:
        self._lookup, self._label, self._trusted = lookup, label, trusted

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        try:
            addresses = await self._lookup(host, port)
        except (OSError, UnicodeError) as error:
            raise ImageError(f"{self._label}: no host is called {host[:60]}.") from error
        if not self._trusted:
            for address in addresses:
                _check_address(address, self._label, host)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        pass


def _public_socket(info: Any) -> socket.socket:
    """The last look: whatever way an address came, none but a public one gets a socket."""
    family, kind, protocol, _, address = info
    if refusal(address[0]):
        raise ImageError(f"the address {address[0]} is not public.")
    return socket.socket(family, kind, protocol)


async def _get(url: URL, label: str, rules: FetchRules, lookup: Lookup) -> bytes | str:
    """One request: the image's bytes, or where it is redirected to."""
    trusted = rules.trusts(url)
    connector = TCPConnector(
        resolver=_CheckedResolver(lookup, label, trusted),
        use_dns_cache=False,
        force_close=True,
        socket_factory=None if trusted else _public_socket,
    )
    timeout = ClientTimeout(sock_connect=rules.connect_seconds, sock_read=rules.read_seconds)
    try:
        async with (
            ClientSession(
                connector=connector,
                timeout=timeout,
                cookie_jar=DummyCookieJar(),
                auto_decompress=False,
                headers={**HEADERS, "User-Agent": rules.user_agent},
            ) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            if response.status in _REDIRECTS:
                return response.headers.get("Location", "")
            return await _body(response, label, rules.limits)
    except asyncio.TimeoutError as error:
        raise ImageError(f"{label}: {_host(url)} took too long to answer.") from error
    except (ClientError, OSError) as error:
        raise ImageError(f"{label}: {_host(url)} could not be reached ({type(error).__name__}).") from error


async def _body(response: ClientResponse, label: str, limits: ImageLimits) -> bytes:
    host = _host(response.url)
    if response.status != 200:
        raise ImageError(f"{label}: {host} answered with status {response.status}.")
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    may_be = kind in _BINARY or (kind.startswith("image/") and not kind.startswith("image/svg"))
    sent = f"what {host} sent is" if may_be else f"{host} sent {kind[:40]!r},"
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ImageError(f"{label}: {host} sent it compressed, which was not asked for.")
    if response.content_length is not None and may_be:
        check_size(response.content_length, label, limits)
    data = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK):
        data += chunk
        # The bytes decide: hosts send pictures as text/plain, too.
        if len(data) >= HEAD and not looks_like_image(bytes(data[:HEAD])):
            raise ImageError(f"{label}: {sent} not an image; {ACCEPTED} can be read.")
        check_size(len(data), label, limits)
    check_size(len(data), label, limits)
    return bytes(data)
