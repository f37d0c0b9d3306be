"""The chat template: where images stand in the prompt, and how typed control tokens stay text."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

ImagePosition = Literal["inline", "prefix", "line"]
QWEN_SYSTEM_PROMPT = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
IMAGE_TOKEN = "<|image_pad|>"
CONTROL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", IMAGE_TOKEN)

_SOURCE = Path(__file__).with_name("chat_template.jinja")


def chat_template(
    image_position: ImagePosition = "inline",
    default_system: str = QWEN_SYSTEM_PROMPT,
    special_tokens: Iterable[str] = (),
) -> str:
    """The Jinja template of a checkpoint.

    Args:
        image_position: "inline" leaves each image where the user put it, between vision_start and
            vision_end; "prefix" puts all images, bare, before the system turn, as the original
            training script does; "line" puts them first in their turn, bare, each on a line, as LLaVA
            does.
        default_system: system turn of a conversation that has none; "" for no such turn.
        special_tokens: the tokenizer's; those that do not begin with `<|` (such as Llama's `</s>`)
            are parted in what people typed, too.

    Raises:
        ValueError: another image position.
    """
    if image_position not in get_args(ImagePosition):
        raise ValueError(f"image position {image_position!r}: it must be one of {get_args(ImagePosition)}.")
    breaks = "".join(
        f" | replace({_quoted(token)}, {_quoted(token[0] + ' ' + token[1:])})"
        for token in sorted(set(special_tokens))
        if not token.startswith("<|") and len(token) > 1
    )
    return (
        _SOURCE.read_text(encoding="utf-8")
        .replace("@IMAGE_POSITION@", _quoted(image_position))
        .replace("@DEFAULT_SYSTEM@", _quoted(default_system))
        .replace("@BREAKS@", breaks)
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
