"""A request's body as JSON, or a refusal that says what it is instead."""

import json
import re
from typing import Any

from starlette.datastructures import Headers

from qwen_vqa.serving.errors.refusals import RefusedError

# \ud800 to \udfff, of which two together are one character, and one alone is none.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parsed_body(headers: Headers, body: bytes) -> Any:
    """What the body holds.

    Raises:
        RefusedError: 415, compressed, or called something else than JSON; 400, not UTF-8, not JSON, or with half a
            character in a text.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise RefusedError(415, f"the body is encoded as {encoding[:40]!r}; send it without Content-Encoding.")
    kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RefusedError(415, f"the body's Content-Type is {kind[:40]!r}; send JSON, and say application/json.")
    try:
        content = json.loads(body)
    except UnicodeDecodeError as error:
        wrong = body[error.start : error.start + 1].hex()
        raise RefusedError(400, f"the body is not UTF-8: byte 0x{wrong} at {error.start}.") from None
    except ValueError as error:
        raise RefusedError(400, f"the body is not JSON: {error}.") from None
    except RecursionError:
        raise RefusedError(400, "the JSON is nested too deeply.") from None
    if _SURROGATE.search(body) and (place := _half_character(content)) is not None:
        raise RefusedError(
            400, f"{place}: a text with half a character (a lone surrogate, \\ud800 to \\udfff).", param=place
        )
    return content


def _half_character(content: Any) -> str | None:
    """Where a text cannot be written as UTF-8."""
    waiting: list[tuple[str, Any]] = [("", content)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, list):
            waiting += ((f"{place}[{number}]", part) for number, part in enumerate(value))
        elif isinstance(value, dict):
            if not all(map(_is_whole, value)):
                return place
            waiting += ((f"{place}.{name}".lstrip("."), part) for name, part in value.items())
        elif isinstance(value, str) and not _is_whole(value):
            return place
    return None


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
