"""One's own conversations, one a line of a JSONL file.

    {"id": "42", "messages": [
        {"role": "user", "content": [{"type": "image", "image": "photos/42.jpg"},
                                     {"type": "text", "text": "What is written on the sign?"}]},
        {"role": "assistant", "content": "Stop"}]}

Messages have the OpenAI form; an image is a path relative to the file (or to the folder `images=`), an http(s) URL
or a data URL. Several images and turns are welcome. `question_id`, `answers` (all that people gave) and
`answer_type` may be there for evaluation.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.images.image_source import is_url
from qwen_vqa.train.data.formats.entries import line_entries
from qwen_vqa.train.data.row import Picture, Row
from qwen_vqa.train.data.source import DataSource

NAME = "local"
NEEDS_IMAGES = False
EXPECTED = '{"id": ..., "messages": [{"role": ..., "content": ...}, ...]}'
ROLES = ("system", "user", "assistant", "tool")


def rows(source: DataSource) -> Iterator[Row]:
    """Every line of the file."""
    if source.in_hub_form:
        raise UserError(f"data set {NAME}: expected a .jsonl file; got {source.location}.")
    folder = Path(source.images or Path(source.location).parent)
    for place, line in line_entries(source):
        yield _row(line, place, folder)


def _row(line: str, place: str, folder: Path) -> Row:
    try:
        entry = json.loads(line)
        messages = entry["messages"]
        roles = [message["role"] for message in messages]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{place}: expected {EXPECTED} ({error!r}).") from error
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        raise UserError(f"{place}: role {unknown[0]!r}; expected one of {', '.join(ROLES)}.")
    if "assistant" not in roles:
        raise UserError(f"{place}: no assistant turn, so there is nothing to learn from it.")
    pictures: list[Picture] = []
    shown = [_message(message, place, folder, pictures) for message in messages]
    answers = entry.get("answers", [])
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f"{place}: answers {answers!r:.60}; expected a list of texts.")
    sample_id = str(entry.get("id", place))
    return Row(
        sample_id,
        shown,
        tuple(pictures),
        str(entry.get("question_id", sample_id)),
        tuple(answers),
        str(entry.get("answer_type", "")),
    )


def _message(message: dict[str, Any], place: str, folder: Path, pictures: list[Picture]) -> dict[str, Any]:
    """The message with its images taken out of it and put into `pictures`."""
    content = message.get("content")
    if message["role"] == "assistant" and not (isinstance(content, str) and content.strip()):
        raise UserError(f"{place}: an assistant turn must be text that is not empty; got {content!r}.")
    if not isinstance(content, list):
        return message
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image" and isinstance(part.get("image"), str):
            image = part["image"]
            pictures.append(Picture(image if is_url(image) else str(folder / image)))
            part = {"type": "image"}
        elif kind != "text":
            raise UserError(f"{place}: content part of type {kind!r}; expected text or image.")
        parts.append(part)
    return {**message, "content": parts}
