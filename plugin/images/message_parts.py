"""Pictures in messages of OpenAI's form, for whoever asks a server."""

import base64
from collections.abc import Iterable
from typing import Any


def data_url(data: bytes, media_type: str = "image/png") -> str:
    """A picture's file as a URL."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def image_part(url: str) -> dict[str, Any]:
    """A picture among a message's parts."""
    return {"type": "image_url", "image_url": {"url": url}}


def user_message(text: str, pictures: Iterable[str] = ()) -> dict[str, Any]:
    """A user's turn: pictures, by their URLs, before the text."""
    images = [image_part(url) for url in pictures]
    if not images:
        return {"role": "user", "content": text}
    return {"role": "user", "content": [*images, *([{"type": "text", "text": text}] if text else [])]}
