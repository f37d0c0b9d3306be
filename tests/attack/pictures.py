"""Attacks by pictures. Each returns what it found that should not be."""

import base64
import contextlib
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.hostile_images import jpeg_of_many_scans, large_pictures, refused_pictures

Faults = list[str]
HOSTILE = 328
LARGE, TIMES = 41, 8
AT_ONCE = 8
SECONDS = 2.0  # within which a picture is refused
# The most scans that a picture of this side may have by the server's bound on passes over all pixels.
SIDE, SCANS = 6800, 17
GONE_AFTER = 1.5


def body_of(data: bytes) -> dict:
    """A request with this picture."""
    url = f"data:;base64,{base64.b64encode(data).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what?"}]
    return {"model": "qwen-vqa-demo", "max_tokens": 1, "messages": [{"role": "user", "content": content}]}


def posted(address: str, pictures: list[bytes]) -> list[tuple[int, float]]:
    """Status and seconds of each, eight at once."""

    def post(data: bytes) -> tuple[int, float]:
        body = body_of(data)
        began = time.monotonic()
        reply = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=120)
        return reply.status_code, time.monotonic() - began

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(post, pictures))


def hostile(address: str) -> Faults:
    """328 pictures that are to be refused: what the bounds are for, and files cut and changed at random."""
    kinds = list(refused_pictures().values())
    generator = random.Random(20)
    picture = bytearray(next(iter(large_pictures(1, 20)))[:200_000])
    pictures = []
    for number in range(HOSTILE):
        data = bytearray(kinds[number % len(kinds)] if number % 2 else picture)
        for _ in range(number % 7):
            if data:
                data[generator.randrange(len(data))] = generator.randrange(256)
        pictures.append(bytes(data))
    answers = posted(address, pictures)
    others = Counter(status for status, _ in answers if status not in (200, 400, 413))
    slow = max(seconds for _, seconds in answers)
    faults = [f"{number} were answered with {status}" for status, number in others.items()]
    return faults + ([f"one took {slow:.1f} s"] if slow > SECONDS * AT_ONCE / 2 else [])


def large(address: str) -> Faults:
    """328 requests with pictures of 24 megapixels, eight at once."""
    pictures = list(large_pictures(LARGE, 7)) * TIMES
    others = Counter(status for status, _ in posted(address, pictures) if status not in (200, 429))
    return [f"{number} were answered with {status}" for status, number in others.items()]


def many_scans(address: str) -> Faults:
    """Two JPEGs with as many scans as are let in, from clients that go after a second and a half."""
    data = jpeg_of_many_scans(SIDE, SCANS)

    def post(_: int) -> None:
        with contextlib.suppress(httpx.ReadTimeout):
            timeout = httpx.Timeout(30, read=GONE_AFTER)
            httpx.post(f"{address}/v1/chat/completions", json=body_of(data), timeout=timeout)

    for _ in range(3):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(post, range(2)))
    time.sleep(3)
    return []
