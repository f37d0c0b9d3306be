"""LLaVA-Instruct (Liu et al. 2023, arXiv:2304.08485): conversations of several rounds about COCO pictures.

    [{"id": "000000033471", "image": "000000033471.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat are the colors of the bus in the image?"},
        {"from": "gpt", "value": "The bus in the image is white and red."}, ...]}, ...]

`<image>` stands in the first human turn, before or after the question. Entries without `image` are text alone. Files
in this form may have several images in an entry, a system turn first, and `user` and `assistant` for human and gpt.
"""

from collections.abc import Iterator
from typing import Any

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.data.formats.entries import EntryError, json_entries, require, rows_of
from qwen_vqa.train.data.formats.image_folder import find_picture
from qwen_vqa.train.data.row import EMPTY_ANSWER, Row
from qwen_vqa.train.data.source import DataSource

NAME = "llava"
NEEDS_IMAGES = True
EXPECTED = '{"id": ..., "image": FILE, "conversations": [{"from": "human" or "gpt", "value": TEXT}, ...]}'
PLACEHOLDER = "<image>"
# The released names, and what files in this form have beside them.
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


def rows(source: DataSource) -> Iterator[Row]:
    """Every entry of the released JSON."""
    if source.in_hub_form:
        raise UserError(f"data set {NAME}: expected the released .json file; got {source.location}.")
    return rows_of(json_entries(source), lambda place, entry: _row(place, entry, source.images or ""))


def _row(place: str, entry: Any, folder: str) -> Row:
    turns = require(entry, "conversations", list, place, EXPECTED)
    sample_id = str(entry.get("id", place.rpartition(" ")[2]))
    images = tuple(find_picture(folder, name) for name in _image_names(entry, place))
    messages = [_message(turn, place) for turn in turns]
    if messages and messages[0]["role"] == "assistant":  # as LLaVA's own training does
        messages = messages[1:]
    return Row(sample_id, messages, images, sample_id, fault=_fault(messages, len(images)))


def _image_names(entry: Any, place: str) -> list[str]:
    """None, one, or, as LLaVA-NeXT-Interleave has them, several."""
    given = entry.get("image")
    if isinstance(given, list) and all(isinstance(name, str) for name in given):
        return given
    return [] if given is None else [require(entry, "image", str, place, EXPECTED)]


def _message(turn: Any, place: str) -> dict[str, Any]:
    role = ROLES.get(require(turn, "from", str, place, EXPECTED))
    if role is None:
        raise EntryError(f"{place}: a turn from {turn['from']!r}; expected human or gpt.")
    text = require(turn, "value", str, place, EXPECTED)
    if role != "user":
        return {"role": role, "content": text.strip()}
    if PLACEHOLDER not in text:
        return {"role": role, "content": text}
    content: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(PLACEHOLDER)):
        if number:
            content.append({"type": "image"})
        if piece.strip():
            content.append({"type": "text", "text": piece.strip()})
    return {"role": role, "content": content}


def _fault(messages: list[dict[str, Any]], images: int) -> str:
    roles = [message["role"] for message in messages]
    asked = roles[1:] if roles[:1] == ["system"] else roles
    if asked != ["user", "assistant"] * (len(asked) // 2) or not asked:
        return "turns not in pairs of human and gpt"
    if not all(message["content"] for message in messages if message["role"] == "assistant"):
        return EMPTY_ANSWER
    parts = [part for message in messages for part in message["content"] if isinstance(part, dict)]
    placeholders = sum(part["type"] == "image" for part in parts)
    return "" if placeholders == images else f"{placeholders} {PLACEHOLDER} for {images} images"
