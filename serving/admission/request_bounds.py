"""What one request may ask for: images, answers, tokens. Looked at before anything is fetched, decoded or queued."""

from dataclasses import dataclass
from typing import Any

from qwen_vqa.serving.admission.request_json import SentJson
from qwen_vqa.serving.errors.refusals import RefusedError
from qwen_vqa.serving.observability.request_record import request_record

IMAGE_TYPES = {"image_url", "input_image", "image", "image_pil", "image_embeds"}
# Where the APIs keep what the model is to see: OpenAI's chat and responses, Anthropic's messages.
CONVERSATION_FIELDS = ("messages", "input", "system", "previous_input_messages")
# Of a model's name that the log shows.
MODEL_CHARACTERS = 100
TOKEN_FIELDS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens")


@dataclass(frozen=True)
class Asked:
    """What a request brings: images, those of them that are asked for in low detail, and the model's name."""

    images: int = 0
    low_detail: int = 0
    model: str | None = None


@dataclass(frozen=True)
class RequestBounds:
    """The most of each in one request; 0 is no bound."""

    images: int
    answers: int
    output_tokens: int

    def check(self, sent: SentJson) -> Asked:
        """What a request brings.

        What is no JSON object, or has fields of the wrong type, is left to the route itself to refuse.

        Raises:
            RefusedError: 400, more than a bound; it names the field, the bound and the flag.
        """
        request = _parsed(sent)
        if not isinstance(request, dict):
            return Asked()
        model = request["model"] if isinstance(request.get("model"), str) else None
        request_record().model = model and model[:MODEL_CHARACTERS]
        for name in TOKEN_FIELDS:
            _check(name, _number(request.get(name)), self.output_tokens, "--max-output-tokens")
        _check("n", _answers(request), self.answers, "--max-n")
        if request.get("background") is True:
            # It would run on after its request ended, past every limit on what runs at once.
            raise RefusedError(400, "background is not served here; leave it out.", param="background")
        images, low_detail = _count_images([request.get(name) for name in CONVERSATION_FIELDS])
        _check("messages", images, self.images, "--max-images", "images")
        return Asked(images, low_detail, model)


def _check(param: str, value: int, bound: int, flag: str, of: str = "") -> None:
    if bound and value > bound:
        what = f"{value} {of}" if of else f"{param} is {value}"
        raise RefusedError(
            400, f"{what}; this server takes at most {bound} ({flag}).", code="bound_exceeded", param=param
        )


def _parsed(sent: SentJson) -> Any:
    try:
        return sent.content
    except ValueError:  # also UnicodeDecodeError
        return None
    except RecursionError:
        raise RefusedError(400, "the JSON is nested too deeply.") from None


def _number(value: Any) -> int:
    """As pydantic will read it: "5" and 5.0 are 5."""
    try:
        return int(float(value)) if isinstance(value, int | float | str) else 0
    except (ValueError, OverflowError):  # no number; infinite, or too long to be a float
        return int(value) if isinstance(value, int) else 0


def _answers(request: dict) -> int:
    """How many answers a request asks for: `n` (or `best_of`) to each prompt of /v1/completions."""
    prompt = request.get("prompt")
    each = max(_number(request.get("n", 1)), _number(request.get("best_of", 1)), 1)
    if not isinstance(prompt, list) or all(isinstance(part, int) for part in prompt):
        return each  # a list of numbers is one prompt in tokens
    return each * len(prompt)


def _count_images(value: Any) -> tuple[int, int]:
    """Image parts anywhere in a conversation, also in tool results; and how many of them have `detail` "low"."""
    count = low_detail = 0
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, dict):
            kind = value.get("type")
            if kind in IMAGE_TYPES if isinstance(kind, str) else not IMAGE_TYPES.isdisjoint(value):
                count += 1
                holder = value.get("image_url")
                low_detail += (holder if isinstance(holder, dict) else value).get("detail") == "low"
            elif kind != "function":  # a tool call's arguments are text
                stack.extend(value.values())
    return count, low_detail
