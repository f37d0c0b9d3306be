"""An image wherever it is: a file, its bytes, a data URL, or the web."""

import asyncio
from pathlib import Path

from PIL import Image

from qwen_vqa.plugin.images.data_url import EXAMPLE, data_url_bytes, is_data_url
from qwen_vqa.plugin.images.image_fetch import DEFAULT_RULES, FetchRules, Lookup, fetch_image_bytes, is_web_url
from qwen_vqa.plugin.images.image_limits import ImageError
from qwen_vqa.plugin.images.image_loader import load_image

_SHOWN = 60


def is_url(source: str) -> bool:
    """Whether a data set's image is a URL rather than a path."""
    return is_data_url(source) or is_web_url(source)


def open_image(source: str | Path | bytes, rules: FetchRules = DEFAULT_RULES) -> Image.Image:
    """RGB picture of a path, a file's bytes, a data URL or an http(s) URL; for training and evaluation.

    Raises:
        ImageError: it cannot be fetched or opened; the message names it.
    """
    if isinstance(source, str) and is_url(source):
        name = source if len(source) <= _SHOWN else source[:_SHOWN] + "..."
        data = asyncio.run(url_bytes(source, name, rules))
        return load_image(data, name, rules.limits)
    return load_image(source, limits=rules.limits)


async def url_bytes(url: str, label: str, rules: FetchRules, lookup: Lookup | None = None) -> bytes:
    """The file behind a URL that a client sent: data, http or https, and nothing on this machine.

    Raises:
        ImageError: as `data_url_bytes` and `fetch_image_bytes`, or another kind of URL.
    """
    if is_data_url(url):
        return await asyncio.to_thread(data_url_bytes, url, label, rules.limits)
    if is_web_url(url):
        return await fetch_image_bytes(url, label, rules, lookup)
    if url[:5].lower() == "file:":
        raise ImageError(f"{label}: file URLs are not read; send the file as a data URL: {EXAMPLE}")
    raise ImageError(f"{label}: expected an http, https or data URL ({EXAMPLE}); got {url[:_SHOWN]!r}.")
