"""Attacks by connections, heads and bodies. Each returns what it found that should not be."""

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx

from qwen_vqa.serving.http.http_protocol import HEAD_SECONDS
from qwen_vqa.serving.process.listener import SLOW_CONNECTIONS_PER_ADDRESS
from tests.image_server import image_server
from tests.raw_http import START, answer_to, error_of, is_open, opened, place

Faults = list[str]
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LOOPBACK = (
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "017700000001",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "localhost",
)


def expect(status: int, answers: list[tuple[int, dict]]) -> Faults:
    """A fault for each other status."""
    others = Counter(got for got, _ in answers if got != status)
    return [f"{number} answers were {got} in place of {status}" for got, number in others.items()]


def at_once(number: int, work: Callable[[int], object]) -> list:
    """`work` so many times in as many threads; its results."""
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(work, range(number)))


def endless_headers(address: str) -> Faults:
    """Four connections with a header line without an end, again and again for 8 s."""
    end = time.monotonic() + 8
    sent = [0]

    def flood(_: int) -> None:
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(place(address), timeout=5) as connection:
                connection.sendall(START + b"X: ")
                while time.monotonic() < end:
                    connection.sendall(b"x" * 2**16)
                    sent[0] += 2**16

    at_once(4, flood)
    return [] if sent[0] else ["nothing was sent"]


def many_headers(address: str) -> Faults:
    """A hundred heads of 10,000 headers, ten at once."""
    head = START + b"X: y\r\n" * 10_000 + b"\r\n"
    answers = at_once(10, lambda _: [error_of(answer_to(address, head)) for _ in range(10)])
    return expect(431, [answer for part in answers for answer in part])


def half_open(address: str) -> Faults:
    """1,000 connections that say nothing and 1,000 with half a head."""
    faults = []
    with opened(address, 1000) as silent, opened(address, 1000, START) as halves:
        time.sleep(3)
        left = sum(map(is_open, [*silent, *halves]))
        if left > SLOW_CONNECTIONS_PER_ADDRESS:
            faults.append(f"{left} connections of one address are open after 3 s")
        time.sleep(HEAD_SECONDS)
        if left := sum(map(is_open, [*silent, *halves])):
            faults.append(f"{left} connections are open after {HEAD_SECONDS + 3:g} s")
    return faults


def slow_bodies(address: str) -> Faults:
    """300 bodies that come a byte a second."""
    began = time.monotonic()
    with opened(address, 300, POST + b"Content-Length: 1000000\r\n\r\n{") as connections:
        while time.monotonic() - began < 45 and any(map(is_open, connections)):
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.sendall(b" ")
            time.sleep(1)
        left = sum(map(is_open, connections))
    return [f"{left} bodies may go on after 45 s"] if left else []


def crumbs(address: str) -> Faults:
    """Fifty bodies in chunks of one byte."""
    head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    return expect(400, at_once(50, lambda _: error_of(answer_to(address, head, b"1\r\n \r\n" * 20_000))))


def long_bodies(address: str) -> Faults:
    """Bodies of 64 MiB, eight at once, half of which say how long they are."""
    piece = b" " * 2**20

    def send(number: int) -> tuple[int, dict]:
        if number % 2:
            return error_of(
                answer_to(address, POST + b"Connection: close\r\nContent-Length: 67108864\r\n\r\n", *[piece] * 64)
            )
        chunk = b"100000\r\n" + piece + b"\r\n"
        return error_of(
            answer_to(address, POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n", *[chunk] * 64)
        )

    return expect(413, at_once(8, send))


def unread_answers(address: str) -> Faults:
    """200 clients that ask for the list of models again and again, and never read."""
    with opened(address, 200) as connections:
        for connection in connections:
            connection.setblocking(False)
        for _ in range(30):
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.send((START + b"\r\n") * 20)
            time.sleep(0.1)
    return []


def private_addresses(address: str) -> Faults:
    """Pictures on this machine, in every spelling of it, by themselves and by redirects."""
    with image_server() as target:
        ask = threading.local()

        def post(url: str) -> int:
            if not hasattr(ask, "client"):
                ask.client = httpx.Client(timeout=30)
            content = [{"type": "image_url", "image_url": {"url": url}}]
            body = {"model": "qwen-vqa-demo", "messages": [{"role": "user", "content": content}]}
            return ask.client.post(f"{address}/v1/chat/completions", json=body).status_code

        urls = [target.url("/hopper.jpg", host) for host in LOOPBACK]
        urls += [url.replace(f":{target.port}", "") for url in urls]
        urls += ["file:///etc/passwd", f"gopher://127.0.0.1:{target.port}/", "http://169.254.169.254/latest/meta-data"]
        statuses = at_once(len(urls), lambda number: post(urls[number]))
        hits = len(target.requests)
    faults = [f"{url}: {status}" for url, status in zip(urls, statuses, strict=True) if status != 400]
    return faults + ([f"{hits} requests reached it"] if hits else [])
