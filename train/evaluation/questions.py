"""The questions that a data set asks, and the same ones blind."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from qwen_vqa.plugin.chat.prompts import SHORT_ANSWER_INSTRUCTION
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.data.reading import read_data_set
from qwen_vqa.train.data.row import Picture, Row
from qwen_vqa.train.data.screening import image_count
from qwen_vqa.train.data.source import DataSource

Condition = Literal["own picture", "no picture", "other picture"]
OWN, NONE, OTHER = get_args(Condition)
# By data set and reason, the names of the entries that are not asked about.
LeftOut = dict[str, dict[str, list[str]]]


class TooFewPicturesError(UserError):
    """A data set has too few pictures to show a question others than its own."""


@dataclass(frozen=True)
class Question:
    """The conversation up to the answer that is asked for, its pictures, the target, and what everybody answered.

    `messages` have the OpenAI form, in which `{"type": "image"}` stands for the next of `pictures`.
    """

    data_set: str
    question_id: str
    messages: list[dict[str, Any]]
    pictures: tuple[Picture, ...]
    target: str
    answers: tuple[str, ...]
    answer_type: str

    @classmethod
    def of(cls, data_set: str, row: Row) -> "Question":
        """The last answer of a row is the one that is asked for; those before it are given."""
        last = max(number for number, message in enumerate(row.messages) if message["role"] == "assistant")
        messages, target = row.messages[:last], row.messages[last]["content"]
        pictures = row.images[: image_count(messages)]
        answers = row.answers or (target,)
        return cls(data_set, row.question_id, messages, pictures, target, answers, row.answer_type)

    @property
    def text(self) -> str:
        """What the last user turn says, without the instruction to answer briefly."""
        content = next(message["content"] for message in reversed(self.messages) if message["role"] == "user")
        parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
        return " ".join(part for part in parts if part).removesuffix(SHORT_ANSWER_INSTRUCTION).strip()


@dataclass(frozen=True)
class Prompt:
    """A question as it is put to a model: with its own pictures, without any, or with others."""

    question: Question
    condition: Condition
    messages: list[dict[str, Any]]
    pictures: tuple[Picture, ...]


def read_questions(sources: Sequence[DataSource], seed: int) -> tuple[list[Question], LeftOut]:
    """The questions of the data sets, and what was left out.

    Of a data set with `samples`, that many rows are drawn at random. Of two with one name, the file's name tells.

    Raises:
        UserError: something is missing or not in its format, or nothing can be asked.
    """
    questions: list[Question] = []
    left_out: LeftOut = {}
    names = Counter(source.name for source in sources)
    for position, source in enumerate(sources):
        name = source.name if names[source.name] == 1 else f"{source.name} {Path(source.location).stem}"
        if source.weight is not None:
            raise UserError(f"data set {source.name}: weight= is for training; samples= says how many to ask.")
        data = read_data_set(source)
        order = np.random.default_rng((seed, position)).permutation(len(data))[: source.samples]
        rows = [Row.from_arrow(data[int(index)]) for index in np.sort(order)]
        left_out[name] = {}
        for row in rows:
            if row.fault:
                left_out[name].setdefault(row.fault, []).append(row.sample_id.rstrip("."))
        questions += [Question.of(name, row) for row in rows if not row.fault]
    if not questions:
        faults = [f"{len(ids)} of {name}: {fault}" for name, of in left_out.items() for fault, ids in of.items()]
        first = next(ids[0] for of in left_out.values() for ids in of.values())
        raise UserError(f"nothing to ask: {'; '.join(faults)}. The first of them: {first}.")
    return questions, left_out


def prompts(questions: Sequence[Question], conditions: Sequence[Condition], seed: int) -> list[Prompt]:
    """Each question under each condition, those of one question beside each other.

    The other pictures are drawn from those of the question's data set; none of them is its own.

    Raises:
        TooFewPicturesError: a data set has too few pictures to show others.
    """
    generator = np.random.default_rng(seed)
    pools: dict[str, list[Picture]] = {}
    for question in questions:
        pools.setdefault(question.data_set, []).extend(question.pictures)
    pools = {name: list(dict.fromkeys(pictures)) for name, pictures in pools.items()}
    asked = []
    for question in questions:
        for condition in conditions:
            messages, pictures = question.messages, question.pictures
            if condition == NONE:
                messages, pictures = [_without_pictures(message) for message in messages], ()
            elif condition == OTHER:
                pictures = _others(question, pools[question.data_set], generator)
            asked.append(Prompt(question, condition, messages, pictures))
    return asked


def _without_pictures(message: dict[str, Any]) -> dict[str, Any]:
    if isinstance(message["content"], str):
        return message
    return {**message, "content": [part for part in message["content"] if part["type"] != "image"]}


def _others(question: Question, pool: list[Picture], generator: np.random.Generator) -> tuple[Picture, ...]:
    own, count = set(question.pictures), len(question.pictures)
    if len(pool) - len(own) < count:
        raise TooFewPicturesError(
            f"data set {question.data_set}: it has {len(pool)} pictures, too few to show question "
            f"{question.question_id} others than its own; leave out that baseline: --baseline no-picture."
        )
    others: dict[Picture, None] = {}
    while len(others) < count:
        picture = pool[int(generator.integers(len(pool)))]
        if picture not in own:
            others[picture] = None
    return tuple(others)
