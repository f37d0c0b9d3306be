"""One's own conversations, one a line of a JSONL file.

    {"id": "42", "messages": [
        {"role": "user", "content": [{"type": "image", "image": "photos/42.jpg"},
                                     {"type": "text", "text": "What is written on the sign?"}]},
        {"role": "assistant", "content": "Stop"}]}

Messages have the OpenAI form; an image is a path relative to the file (or to the folder `images=`), an http(s) URL
or a data URL. Several images and turns are welcome. `question_id`, `answers` (all that people gave) and
`answer_type` may be there for evaluation.
"""

import contextlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from qwen_vqa.plugin.command.text_files import text_lines
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.images.image_source import is_url
from qwen_vqa.train.data.formats.entries import EntryError, line_entries, require, rows_of
from qwen_vqa.train.data.row import Picture, Row
from qwen_vqa.train.data.source import DataSource

NAME = "local"
NEEDS_IMAGES = False
EXPECTED = '{"id": ..., "messages": [{"role": ..., "content": ...}, ...]}'
LINES_LOOKED_AT, CHARACTERS_LOOKED_AT = 20, 4000  # to tell another format
ROLES = ("system", "user", "assistant", "tool")


def rows(source: DataSource) -> Iterator[Row]:
    """Every line of the file."""
    if source.in_hub_form:
        raise UserError(f"data set {NAME}: expected a .jsonl file; got {source.location}.")
    folder = Path(source.images or Path(source.location).parent)
    _check_lines(source)
    return rows_of(line_entries(source), lambda place, line: _row(place, line, folder))


def _check_lines(source: DataSource) -> None:
    """Raises UserError for a JSON array, which is one line or many that are nothing by themselves."""
    with contextlib.closing(text_lines(Path(source.location))) as lines:
        first = next((line for line in lines if line.strip()), "")
        beginning = first + "".join(islice(lines, LINES_LOOKED_AT))
    if not first.lstrip().startswith("["):
        return
    file = Path(source.location)
    if '"conversations"' in beginning[:CHARACTERS_LOOKED_AT]:
        how = f"It looks like LLaVA's: --data llava={file},images=FOLDER reads it."
    else:
        how = f"This makes lines of it: jq -c '.[]' {file.name} > lines.jsonl"
    raise UserError(f"data set {NAME}: {file} is a JSON array, and a conversation a line was expected. {how}")


def _row(place: str, line: str, folder: Path) -> Row:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        where = f"{error.msg} at character {error.pos}"
        raise EntryError(f"{place}: expected {EXPECTED}; it is not JSON ({where}).") from error
    messages = require(entry, "messages", list, place, EXPECTED)
    roles = [require(message, "role", str, place, EXPECTED) for message in messages]
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        raise EntryError(f"{place}: role {unknown[0]!r}; expected one of {', '.join(ROLES)}.")
    if "assistant" not in roles:
        raise EntryError(f"{place}: no assistant turn, so there is nothing to learn from it.")
    pictures: list[Picture] = []
    shown = [_message(message, place, folder, pictures) for message in messages]
    answers = entry.get("answers", [])
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise EntryError(f"{place}: answers {answers!r:.60}; expected a list of texts.")
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
        raise EntryError(f"{place}: an assistant turn must be text that is not empty; got {content!r}.")
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
            raise EntryError(f"{place}: content part of type {kind!r}; expected text or image.")
        parts.append(part)
    return {**message, "content": parts}
