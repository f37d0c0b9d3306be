"""What an adapter makes of an entry: a conversation, its pictures, and what evaluation needs to know of it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Features, List, Value

from qwen_vqa.plugin.images.image_source import is_url

FEATURES = Features(
    {
        "sample_id": Value("string"),
        "messages": Value("string"),  # JSON: a content is a string or a list of parts, which Arrow cannot have at once
        "images": List({"path": Value("string"), "data": Value("binary")}),
        "question_id": Value("string"),
        "answers": List(Value("string")),
        "answer_type": Value("string"),
        "fault": Value("string"),
    }
)
EMPTY_ANSWER = "empty answer"


@dataclass(frozen=True)
class Picture:
    """An image that is opened late: a path or URL, or the bytes of a file that stood in the data set itself."""

    path: str
    data: bytes | None = None

    @property
    def source(self) -> str | Path | bytes:
        """What `open_image` takes."""
        if self.data is not None:
            return self.data
        return self.path if is_url(self.path) else Path(self.path)


@dataclass(frozen=True)
class Row:
    """An entry of a data set.

    `messages` have the OpenAI form, in which `{"type": "image"}` stands for the next of `images`. `answers` are all
    that people gave (ten in TextVQA and VizWiz). A row with a `fault` is counted and never trained on.
    """

    sample_id: str
    messages: list[dict[str, Any]]
    images: tuple[Picture, ...] = ()
    question_id: str = ""
    answers: tuple[str, ...] = ()
    answer_type: str = ""
    fault: str = ""

    def arrow(self) -> dict[str, Any]:
        """The row in FEATURES' types."""
        messages = json.dumps(self.messages, ensure_ascii=False)
        pictures = [asdict(picture) for picture in self.images]
        return {**asdict(self), "messages": messages, "images": pictures, "answers": list(self.answers)}

    @classmethod
    def from_arrow(cls, row: dict[str, Any]) -> "Row":
        """The inverse of `arrow`."""
        return cls(
            **{
                **row,
                "messages": json.loads(row["messages"]),
                "images": tuple(Picture(**picture) for picture in row["images"]),
                "answers": tuple(row["answers"]),
            }
        )


def question_row(
    sample_id: str, question: str, answer: str, picture: Picture, answers: list[str], answer_type: str = ""
) -> Row:
    """A question about one picture, its target answer and all answers; without an answer it has that fault."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    fault = "" if answer else EMPTY_ANSWER
    return Row(sample_id, messages, (picture,), sample_id, tuple(answers), answer_type, fault)
