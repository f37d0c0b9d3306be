"""What is asked through a library, and what the answer has to be. Runs in the libraries' environments."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

Checks = dict[str, Callable[[], object]]
KEY = "none"


class Colour(BaseModel):
    """What the JSON and the tool have to hold."""

    color: Literal["red", "green", "blue", "pink", "purple", "yellow", "orange"]


class Asked:
    """The server, and what is asked of it."""

    def __init__(self, url: str, model: str, image: str, question: str, answer: str) -> None:
        self.url, self.model, self.question, self.answer = url, model, question, answer
        self.data = base64.b64encode(Path(image).read_bytes()).decode()
        self.picture = f"data:image/png;base64,{self.data}"
        self.schema = Colour.model_json_schema()

    def parts(self) -> list[dict[str, Any]]:
        """The picture and the question, as OpenAI's chat has them."""
        return [{"type": "image_url", "image_url": {"url": self.picture}}, {"type": "text", "text": self.question}]

    def messages(self, *later: dict[str, Any]) -> list[dict[str, Any]]:
        """A conversation that begins with them."""
        return [{"role": "user", "content": self.parts()}, *later]

    def turns(self) -> list[dict[str, Any]]:
        """The question, its answer, and the question again."""
        again = {"role": "user", "content": self.question}
        return self.messages({"role": "assistant", "content": self.answer}, again)

    def right(self, text: object) -> None:
        """Raises where it is not the answer."""
        if str(text).strip() != self.answer:
            raise AssertionError(f"{text!r} in place of {self.answer!r}")

    def fits(self, fields: object) -> None:
        """Raises where it is not the object that was asked for."""
        Colour.model_validate(json.loads(fields) if isinstance(fields, str) else fields)


def tool(asked: Asked) -> dict[str, Any]:
    """A tool that takes the object."""
    return {"type": "function", "function": {"name": "report", "description": "Report.", "parameters": asked.schema}}


FORCED = {"type": "function", "function": {"name": "report"}}


def format_of(asked: Asked) -> dict[str, Any]:
    """The object as `response_format`."""
    return {"type": "json_schema", "json_schema": {"name": "colour", "schema": asked.schema, "strict": True}}
