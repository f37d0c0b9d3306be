"""Whether a row can be trained on: its pictures open, and it is not longer than the model is to see."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qwen_vqa.plugin.images.image_limits import ImageError
from qwen_vqa.plugin.images.image_source import open_image
from qwen_vqa.train.data.row import Picture, Row

MISSING_FILE, BROKEN_IMAGE, TOO_LONG = "missing file", "broken image", "too long"


@dataclass(frozen=True)
class Verdict:
    """How many of a row's messages are kept, and if some are cut off; none with a `fault`, which `detail` names."""

    messages: int
    fault: str = ""
    detail: str = ""
    shortened: bool = False


@dataclass(frozen=True)
class Screen:
    """Called with a row.

    Args:
        token_count: of a conversation's messages, image tokens included.
        max_length: in tokens.
    """

    token_count: Callable[[list[dict[str, Any]], str], int]
    max_length: int
    # A picture is asked about several times, and decoded once.
    _found: dict[str, tuple[str, str] | None] = field(default_factory=dict)

    def __call__(self, row: Row) -> Verdict:
        if row.fault:
            return Verdict(0, row.fault, row.sample_id)
        kept = fitting_messages(row.messages, lambda part: self.token_count(part, row.sample_id), self.max_length)
        if not kept:
            return Verdict(0, TOO_LONG, row.sample_id)
        for picture in row.images[: image_count(row.messages[:kept])]:
            fault = self._fault_of(picture)
            if fault:
                return Verdict(0, *fault)
        return Verdict(kept, shortened=kept < len(row.messages))

    def _fault_of(self, picture: Picture) -> tuple[str, str] | None:
        if picture.data is not None:
            return _fault(picture)
        if picture.path not in self._found:
            self._found[picture.path] = _fault(picture)
        return self._found[picture.path]


def fitting_messages(
    messages: list[dict[str, Any]], token_count: Callable[[list[dict[str, Any]]], int], max_length: int
) -> int:
    """How many messages from the first one on fit, up to the end of an answer; 0 when not even the first round does.

    Whole rounds are cut off the end, so that an answer ends where it ended and no image is cut through.
    """
    ends = [number for number, message in enumerate(messages, start=1) if message["role"] == "assistant"]
    return next((end for end in reversed(ends) if token_count(messages[:end]) <= max_length), 0)


def image_count(messages: list[dict[str, Any]]) -> int:
    """How many images the messages hold."""
    parts = [part for message in messages if isinstance(message.get("content"), list) for part in message["content"]]
    return sum(part["type"] == "image" for part in parts)


def _fault(picture: Picture) -> tuple[str, str] | None:
    source = picture.source
    if not isinstance(source, (str, bytes)) and not source.is_file():
        return MISSING_FILE, str(source)
    try:
        open_image(source)
    except ImageError as error:
        return BROKEN_IMAGE, str(error) if picture.data is None else f"{picture.path}: {error}"
    return None
