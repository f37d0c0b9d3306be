"""TextVQA (Singh et al. 2019, arXiv:1904.08920): questions whose answers are written in the picture.

The released JSON with its folder of pictures:

    {"dataset_type": "train", "data": [{"question": "what is the brand of phone?", "image_id": "0054c91397f2fe05",
        "question_id": 0, "answers": ["nokia", ... ten of them], "set_name": "train", ...}, ...]}

and the hub's form (lmms-lab/textvqa, facebook/textvqa): rows of the same fields with the picture in `image`.
"""

from collections.abc import Iterator
from typing import Any

from qwen_vqa.plugin.chat.prompts import short_answer_question
from qwen_vqa.train.data.formats.answers import majority_answer
from qwen_vqa.train.data.formats.entries import EntryError, hub_entries, json_entries, require, rows_of
from qwen_vqa.train.data.formats.image_folder import find_picture
from qwen_vqa.train.data.row import Picture, Row, question_row
from qwen_vqa.train.data.source import DataSource

NAME = "textvqa"
NEEDS_IMAGES = True
EXPECTED = '{"question": TEXT, "question_id": ..., "image_id": ..., "answers": [ten texts], ...}'


def rows(source: DataSource) -> Iterator[Row]:
    """Every question of the release or of the hub's form."""
    entries = hub_entries(source) if source.in_hub_form else json_entries(source, "data")
    return rows_of(entries, lambda place, entry: _row(place, entry, source))


def _row(place: str, entry: Any, source: DataSource) -> Row:
    question = require(entry, "question", str, place, EXPECTED)
    question_id = str(require(entry, "question_id", (int, str), place, EXPECTED))
    answers = require(entry, "answers", list, place, f"{EXPECTED} (the test set has no answers)")
    if not all(isinstance(answer, str) for answer in answers):
        raise EntryError(f"{place}: answers {answers!r:.60}; expected a list of texts.")
    if source.in_hub_form:
        image = require(entry, "image", dict, place, EXPECTED)
        picture = Picture(str(image.get("path") or question_id), image.get("bytes"))
    else:
        image_id = require(entry, "image_id", str, place, EXPECTED)
        picture = find_picture(source.images or "", f"{image_id}.jpg")
    return question_row(question_id, short_answer_question(question), majority_answer(answers), picture, answers)
