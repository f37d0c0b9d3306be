"""The entries of a release one by one, each with its place for error messages."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import Image, IterableDataset, load_dataset

from qwen_vqa.plugin.command.text_files import read_text, text_lines
from qwen_vqa.plugin.errors import UserError, first_line_of
from qwen_vqa.train.data.row import Row
from qwen_vqa.train.data.source import DataSource

Entry = tuple[str, Any]
ANOTHER_FORMAT = "not in its data set's format"
_SHOWN = 160
_DECODER = json.JSONDecoder()


class EntryError(UserError):
    """An entry that does not have its data set's format: its place, and what was expected."""


def rows_of(entries: Iterable[Entry], make: Callable[[str, Any], Row]) -> Iterator[Row]:
    """What `make` makes of each entry; one that it refuses is a row with that fault, named by what was refused."""
    for place, entry in entries:
        try:
            row = make(place, entry)
            _check_characters(row, place)
        except EntryError as error:
            row = Row(str(error), [], fault=ANOTHER_FORMAT)
        yield row


def json_entries(source: DataSource, key: str | None = None) -> Iterator[Entry]:
    """The elements of a JSON array, or of the array under `key` of a JSON object.

    One at a time, so that a file of gigabytes is not in memory as Python objects.

    Raises:
        UserError: no such array, or broken JSON, with the number of the entry.
    """
    path = Path(source.location)
    text = read_text(path)
    place = f"data set {source.name}, {path}"
    position = _array_start(text, key, place)
    number = 0
    while True:
        position = _after_space(text, position)
        if text[position : position + 1] == "]":
            return
        try:
            entry, position = _DECODER.raw_decode(text, position)
            position = _after_space(text, position)
            if text[position : position + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
        except json.JSONDecodeError as error:
            raise UserError(f"{place}, entry {number}: not JSON ({error}); is the file whole?") from error
        yield f"{place}, entry {number}", entry
        position += text[position] == ","
        number += 1


def line_entries(source: DataSource) -> Iterator[Entry]:
    """The lines of a JSONL file that are not empty, each still to be parsed."""
    path = Path(source.location)
    for number, line in enumerate(text_lines(path), start=1):
        if line.strip():
            yield f"{path} line {number}", line


def hub_entries(source: DataSource, seed: int = 0) -> Iterator[Entry]:
    """The rows of a data set in the hub's form, read as a stream, images as the bytes of their files.

    With `samples`, a random choice, and no more of it than that is fetched.

    Raises:
        UserError: it cannot be had.
    """
    place = f"data set {source.name}, {source.location}"
    path = Path(source.location)
    try:
        if path.is_file():
            stream = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        else:
            stream = load_dataset(source.location, split=source.split, streaming=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{place}: cannot be read ({first_line_of(error)}).") from error
    assert isinstance(stream, IterableDataset)
    if stream.features is None or "image" not in stream.features:
        raise UserError(f"{place}: expected a column 'image'; it has {', '.join(stream.column_names or [])}.")
    stream = stream.cast_column("image", Image(decode=False))
    if source.samples is not None:
        stream = stream.shuffle(seed=seed, buffer_size=1000)
    for number, entry in enumerate(stream):
        yield f"{place}, row {number}", entry


def require(entry: Any, key: str, kind: type | tuple[type, ...], place: str, expected: str) -> Any:
    """`entry[key]`, which has to be of that kind.

    Raises:
        EntryError: the entry's place, what was expected, and what stands there.
    """
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind):
        what = f"no {key!r}" if isinstance(entry, dict) and key not in entry else f"{key!r} is {value!r:.40}"
        raise EntryError(f"{place}: {what}; expected {expected}. It reads {_shortened(entry)}.")
    return value


def _check_characters(row: Row, place: str) -> None:
    """Raises EntryError for half a character, which JSON can escape (\\ud83d) and no text file can hold."""
    texts = [row.sample_id, row.messages, row.question_id, row.answers, row.answer_type]
    try:
        json.dumps(texts, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise EntryError(f"{place}: half a character, \\u{ord(half):04x}; write both halves, or neither.") from error


def _shortened(entry: Any) -> str:
    text = json.dumps(entry, default=lambda value: f"<{type(value).__name__}>")
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " ..."


def _array_start(text: str, key: str | None, place: str) -> int:
    start = re.match(rf'\s*\{{.*?"{key}"\s*:\s*\[' if key else r"\s*\[", text, re.DOTALL)
    if start is None:
        expected = f'{{"{key}": [...]}}' if key else "an array [...]"
        raise UserError(f"{place}: expected {expected}; the file begins with {text[:60]!r}.")
    return start.end()


def _after_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position
