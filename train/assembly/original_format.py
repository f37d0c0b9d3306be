"""How the original project shows its model pictures and asks it: `qwen-vqa assemble --like`.

Source: train.py and app.py of https://github.com/ishreyanshkumar/VQA. The two differ in the system prompt and in how a
picture becomes square. Both put the picture before the whole prompt.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwen_vqa.plugin.chat.chat_template import ImagePosition
from qwen_vqa.plugin.views.fit import Fit

if TYPE_CHECKING:
    from transformers import GenerationConfig

# As transformers' generate has it where a generation config samples and does not say.
_TOP_K = 50


@dataclass(frozen=True)
class Likeness:
    """A script's prompt, pixels and decoding.

    Attributes:
        sampling: temperature, top_p and tokens of an answer; None for greedy decoding.
    """

    image_position: ImagePosition
    system_prompt: str
    fit: Fit
    sampling: dict[str, float] | None = None


LIKENESSES = {
    "original": Likeness("prefix", "You are a helpful visual assistant.", "squash"),
    "original-app": Likeness(
        "prefix",
        "You are a helpful visual assistant. You can see the image provided by the user.",
        "pad",
        {"temperature": 0.6, "top_p": 0.9, "max_new_tokens": 200},
    ),
}
# LLaVA's conversation "qwen_1_5" (LLaVA-NeXT's conversation.py): the image on a line before the question.
LLAVA = Likeness("line", "You are a helpful assistant.", "crop")


def decoding_defaults(base: "GenerationConfig", likeness: Likeness | None) -> "GenerationConfig":
    """What a request without sampling parameters gets.

    It is what transformers' generate makes of the language model's own generation config, or what the likeness
    does; without a repetition penalty (`plugin/generation_defaults.py` says why).
    """
    config = type(base).from_dict(base.to_dict())
    config.repetition_penalty = None
    if likeness and likeness.sampling:
        config.update(do_sample=True, **likeness.sampling)
    elif likeness or not config.do_sample:
        config.update(do_sample=False, temperature=None, top_p=None, top_k=None, min_p=None)
    if config.do_sample and config.top_k is None:
        config.top_k = _TOP_K
    return config
