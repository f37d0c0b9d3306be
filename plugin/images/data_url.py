"""Data URLs to bytes: with or without a media type, and base64 in the spellings that clients send."""

import binascii
import re
from urllib.parse import unquote

import pybase64

from qwen_vqa.plugin.images.image_limits import ImageError, ImageLimits, check_size
from qwen_vqa.plugin.images.image_loader import HEAD, looks_like_image

EXAMPLE = "data:image/png;base64,iVBORw0KGgo..."
_BINARY = ("", "application/octet-stream", "binary/octet-stream")
# Room for line breaks and percent signs beside the four characters for three bytes.
_LOOSE = 1.5


def is_data_url(url: str) -> bool:
    """Whether it begins as a data URL does."""
    return url[:5].lower() == "data:"


def data_url_bytes(url: str, label: str, limits: ImageLimits) -> bytes:
    """What a data URL holds (RFC 2397).

    Taken: any `image/*` type, none, or another where the bytes are an image's; base64 with line breaks, url-safe, or
    without padding.

    Raises:
        ImageError: not base64, neither type nor bytes of an image, or larger than the limit, which is seen before
            decoding.
    """
    header, comma, payload = url[5:].partition(",")
    if not comma:
        raise ImageError(f"{label}: a data URL without a comma; expected {EXAMPLE}")
    media_type, *parameters = (part.strip().lower() for part in header.split(";"))
    if media_type == "base64":  # "data:base64,...": the type and its semicolon left out
        media_type, parameters = "", ["base64"]
    if "base64" not in parameters:
        raise ImageError(f"{label}: a data URL that is not base64; expected {EXAMPLE}")
    if len(payload) * 3 // 4 > limits.max_bytes * _LOOSE:
        check_size(len(payload) * 3 // 4, label, limits)
    data = _decoded(payload, label)
    check_size(len(data), label, limits)
    if not (media_type.startswith("image/") or media_type in _BINARY or looks_like_image(data[:HEAD])):
        raise ImageError(f"{label}: a data URL of type {media_type[:40]!r}; expected an image: {EXAMPLE}")
    return data


def _decoded(payload: str, label: str) -> bytes:
    # What nearly all clients send is decoded first, by vLLM's decoder: binascii takes thirty times as long (48 ms
    # for 15 MiB) and stops all threads meanwhile. Other spellings are looked for only after that.
    try:
        return pybase64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        pass
    if "%" in payload:
        payload = unquote(payload)
    text = "".join(payload.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except (binascii.Error, ValueError) as error:
        wrong = re.search(r"[^A-Za-z0-9+/]", text)
        fault = f"character {wrong.group()!r} at {wrong.start()}" if wrong else "it is cut off"
        raise ImageError(f"{label}: the data URL's base64 cannot be decoded ({fault}).") from error
