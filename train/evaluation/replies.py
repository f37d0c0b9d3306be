"""What came back for a prompt."""

from collections.abc import Callable
from dataclasses import dataclass

from qwen_vqa.train.evaluation.questions import Prompt


@dataclass(frozen=True)
class Reply:
    """The answer to a prompt, or why there is none."""

    prompt: Prompt
    answer: str = ""
    fault: str = ""


Record = Callable[[Reply], None]
