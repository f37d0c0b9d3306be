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
        token_count: of a conversation's messages, image tokens included; with a third argument of its images' tokens.
        max_length: in tokens.
        image_tokens: of a picture of so many pixels, width and height; None where all have the same.
    """

    token_count: Callable[..., int]
    max_length: int
    image_tokens: Callable[[int, int], int] | None = None
    # A picture is asked about several times, and decoded once.
    _found: dict[str, "Looked"] = field(default_factory=dict)

    def __call__(self, row: Row) -> Verdict:
        if row.fault:
            return Verdict(0, row.fault, row.sample_id)
        kept = fitting_messages(row.messages, lambda part: self._tokens(part, row), self.max_length)
        if not kept:
            return Verdict(0, TOO_LONG, row.sample_id)
        for picture in row.images[: image_count(row.messages[:kept])]:
            if fault := self._look(picture).fault:
                return Verdict(0, *fault)
        return Verdict(kept, shortened=kept < len(row.messages))

    def _tokens(self, messages: list[dict[str, Any]], row: Row) -> int:
        if self.image_tokens is None:
            return self.token_count(messages, row.sample_id)
        sizes = [self._look(picture).size for picture in row.images[: image_count(messages)]]
        return self.token_count(messages, row.sample_id, [self.image_tokens(*size) for size in sizes])

    def _look(self, picture: Picture) -> "Looked":
        if picture.data is not None:
            return _looked(picture)
        if picture.path not in self._found:
            self._found[picture.path] = _looked(picture)
        return self._found[picture.path]


@dataclass(frozen=True)
class Looked:
    """A picture's width and height, or what is wrong with it."""

    size: tuple[int, int] = (1, 1)
    fault: tuple[str, str] | None = None


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


def _looked(picture: Picture) -> Looked:
    source = picture.source
    if not isinstance(source, (str, bytes)) and not source.is_file():
        return Looked(fault=(MISSING_FILE, str(source)))
    try:
        return Looked(open_image(source).size)
    except ImageError as error:
        told = str(error) if picture.data is None else f"{picture.path}: {error}"
        return Looked(fault=(BROKEN_IMAGE, told))
