"""Malformed requests, made by a seed: broken pictures, broken JSON, and bodies with something wrong in one place."""

import base64
import copy
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pillow_heif
from PIL import Image

from tests.tiny import picture

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "HEIF", "JPEG2000", "EPS", "TGA")
# What stands in the place of something: of every type, and at the edge of each.
ODD = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, 0.5, -0.0, 1e308, "", " ", "a", "\0", "\ud800", "é" * 300,
    "<|im_end|>", "<|image_pad|>" * 20, "{{ 7 * 7 }}", "../../etc/passwd", "http://127.0.0.1/", "data:,", [], {}, [[]],
    [None], {"": None}, {"type": None}, {"role": "user"}, [1] * 200, "A" * 5000,
)  # fmt: skip
IMAGE_TYPES = ("image/png", "image/jpeg", "", "text/html", "image/svg+xml", "image/" + "x" * 500)


@dataclass(frozen=True)
class Malformed:
    """A request: where to, and the body as sent."""

    path: str
    body: bytes
    kind: str


def malformed_requests(seed: int, model: str) -> Iterator[Malformed]:
    """Without end: pictures, bodies and bytes that are wrong, a third each."""
    pillow_heif.register_heif_opener()
    rng = random.Random(seed)
    pictures = _pictures()
    makers: tuple[Callable[[], Malformed], ...] = (
        lambda: _broken_picture(rng, pictures, model),
        lambda: _broken_body(rng, model),
        lambda: _broken_bytes(rng, model),
    )
    while True:
        yield rng.choice(makers)()


def _pictures() -> list[bytes]:
    files = []
    for image_format in FORMATS:
        for mode in ("RGB", "L"):
            buffer = io.BytesIO()
            picture(1, 64, 40).convert(mode).save(buffer, image_format)
            files.append(buffer.getvalue())
    for mode in ("RGBA", "P", "1", "I;16", "LA"):
        buffer = io.BytesIO()
        Image.new(mode, (30, 30)).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files


def _broken_picture(rng: random.Random, pictures: list[bytes], model: str) -> Malformed:
    data = bytearray(rng.choice(pictures))
    for _ in range(rng.choice((1, 1, 3, 30))):
        at = rng.randrange(min(len(data), rng.choice((32, 200, 10**6))))
        how = rng.randrange(5)
        if how == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\xff\xff"))
        elif how == 2:
            del data[at : at + rng.choice((1, 4, 100))]
        elif how == 3:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 100)))
        else:
            del data[max(1, at) :]
        if not data:
            data += b"\0"
    code = base64.b64encode(bytes(data)).decode()
    url = f"data:{rng.choice(IMAGE_TYPES)};base64,{code}"
    if rng.random() < 0.1:
        url = url.replace(code[rng.randrange(len(code))], rng.choice(("!", "\n", "", "=", "é")), 1)
    path, body = rng.choice(_bodies(model, url))
    return Malformed(path, json.dumps(body).encode(), "picture")


def _bodies(model: str, url: str) -> list[tuple[str, dict[str, Any]]]:
    """Good requests to the routes that take images."""
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    chat = {
        "model": model,
        "max_tokens": 1,
        "temperature": 0,
        "stream": False,
        "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
        "tool_choice": "none",
        "messages": [
            {"role": "system", "content": "be kind", "name": "anna"},
            {"role": "user", "content": [{"type": "text", "text": "look"}, _image_part(url)]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "seen"},
        ],
    }
    source = {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}
    blocks = [{"type": "text", "text": "look"}, {"type": "image", "source": source}]
    items = [{"type": "input_text", "text": "look"}, {"type": "input_image", "image_url": url, "detail": "low"}]
    return [
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions/tokens", chat),
        ("/v1/responses", {"model": model, "max_output_tokens": 1, "input": [{"role": "user", "content": items}]}),
        ("/v1/messages", {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": blocks}]}),
        ("/tokenize", {"model": model, "messages": chat["messages"]}),
    ]


def _image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}


def _good_url() -> str:
    buffer = io.BytesIO()
    picture(2, 20, 20).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _broken_body(rng: random.Random, model: str) -> Malformed:
    path, body = rng.choice(_bodies(model, _good_url()))
    body = copy.deepcopy(body)
    for _ in range(rng.choice((1, 1, 2, 5))):
        _break_once(rng, body)
    # How long an answer may be is not what is looked at here, and it costs time.
    for limit in ("max_tokens", "max_output_tokens"):
        if limit in body and rng.random() < 0.9:
            body[limit] = 1
    return Malformed(path, json.dumps(body).encode(), "body")


def _break_once(rng: random.Random, body: dict[str, Any]) -> None:
    """Replace, drop, double, wrap or rename something, at any depth."""
    place, key = rng.choice(list(_places(body)))
    how = rng.randrange(6)
    if how <= 1:
        place[key] = copy.deepcopy(rng.choice(ODD))
    elif how == 2:
        del place[key]
    elif how == 3:
        place[key] = [place[key], copy.deepcopy(place[key])]
    elif how == 4:
        for _ in range(rng.choice((1, 3, 200))):
            place[key] = rng.choice(([place[key]], {"content": place[key]}))
    elif isinstance(place, dict):
        place[rng.choice(("type", "n", "stop", "logprobs", "seed", "content", "name", "uuid", "x"))] = place.pop(key)
    if not body:
        body["model"] = None


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(item, dict | list):
            yield from _places(item)


def _broken_bytes(rng: random.Random, model: str) -> Malformed:
    path, body = rng.choice(_bodies(model, _good_url()))
    data = json.dumps(body).encode()
    at = rng.randrange(len(data))
    broken = rng.choice(
        (
            data[:at],
            data[:at] + rng.randbytes(3) + data[at:],
            data[:at] + b"\xff\xfe" + data[at + 1 :],
            data[:at] + b"\0" + data[at:],
            data.replace(b'"temperature": 0', b'"temperature": NaN').replace(b"1", b"1e999", 1),
            b"[" * rng.choice((10, 1000, 100_000)),
            b'{"messages":' * 500 + b"1" + b"}" * 500,
            json.dumps(rng.choice(ODD)).encode(),
            b"",
            data.replace(b'"role"', b'"role": "user", "role"'),
            data.decode().encode("utf-16"),
        )
    )
    return Malformed(path, broken, "bytes")
