"""VizWiz-VQA (Gurari et al. 2018, arXiv:1802.08218): what blind people asked about the pictures they took.

The released Annotations/train.json with its folder of pictures:

    [{"image": "VizWiz_train_00000000.jpg", "question": "What's the name of this product?",
      "answers": [{"answer": "basil leaves", "answer_confidence": "yes"}, ... ten of them],
      "answer_type": "other", "answerable": 1}, ...]

and the hub's form (lmms-lab/VizWiz-VQA): `question_id`, `image`, `question`, `answers` as texts, `category`.
"""

from collections.abc import Iterator
from typing import Any

from qwen_vqa.plugin.chat.prompts import UNANSWERABLE, short_answer_question
from qwen_vqa.train.data.formats.answers import majority_answer
from qwen_vqa.train.data.formats.entries import hub_entries, json_entries, require, rows_of
from qwen_vqa.train.data.formats.image_folder import find_picture
from qwen_vqa.train.data.row import Picture, Row, question_row
from qwen_vqa.train.data.source import DataSource

NAME = "vizwiz"
NEEDS_IMAGES = True
EXPECTED = (
    '{"image": FILE, "question": TEXT, "answers": [{"answer": TEXT, "answer_confidence": ...}, ...], '
    '"answer_type": ..., "answerable": 0 or 1}'
)


def rows(source: DataSource) -> Iterator[Row]:
    """Every question of the release or of the hub's form; what is not answerable has the answer `unanswerable`."""
    entries = hub_entries(source) if source.in_hub_form else json_entries(source)
    return rows_of(entries, lambda place, entry: _row(place, entry, source))


def _row(place: str, entry: Any, source: DataSource) -> Row:
    question = require(entry, "question", str, place, EXPECTED)
    given = require(entry, "answers", list, place, f"{EXPECTED} (the test set has no answers)")
    answers = [_text(answer, place) for answer in given]
    answer_type = str(entry.get("answer_type") or entry.get("category") or "")
    answerable = entry.get("answerable", answer_type != UNANSWERABLE)
    if source.in_hub_form:
        sample_id = str(entry.get("question_id") or entry.get("id") or place.rpartition(" ")[2])
        image = require(entry, "image", dict, place, EXPECTED)
        picture = Picture(str(image.get("path") or sample_id), image.get("bytes"))
    else:
        sample_id = require(entry, "image", str, place, EXPECTED)
        picture = find_picture(source.images or "", sample_id)
    answer = majority_answer(answers) if answerable else UNANSWERABLE
    return question_row(sample_id, short_answer_question(question), answer, picture, answers, answer_type)


def _text(answer: Any, place: str) -> str:
    return answer if isinstance(answer, str) else require(answer, "answer", str, place, EXPECTED)
