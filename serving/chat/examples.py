"""The demo's own pictures with questions that it can answer, for a page that nobody has asked anything yet."""

import functools
import json
from dataclasses import dataclass

from qwen_vqa.serving import DEMO_IMAGES
from qwen_vqa.serving.chat.pictures import ChatPicture, picture_from_file


@dataclass(frozen=True)
class Example:
    """A bundled picture and what may be asked about it."""

    picture: ChatPicture
    questions: tuple[str, ...]


@functools.cache
def examples() -> tuple[Example, ...]:
    """All of them, in the order of `demo_images/examples.json`."""
    listed = json.loads((DEMO_IMAGES / "examples.json").read_text(encoding="utf-8"))
    return tuple(
        Example(
            picture_from_file((DEMO_IMAGES / name).read_bytes(), name),
            tuple(one["question"] for one in listed if one["image"] == name),
        )
        for name in dict.fromkeys(one["image"] for one in listed)
    )
