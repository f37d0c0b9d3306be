"""Chat formats: what marks an assistant's turn in a prompt, and what stands for an image."""

from dataclasses import dataclass

from qwen_vqa.plugin.chat.chat_template import IMAGE_TOKEN


@dataclass(frozen=True)
class ChatFormat:
    """How a conversation is written down; its template is `chat_template`'s.

    Attributes:
        assistant_start: what stands before an answer; training counts what comes after it.
        turn_end: the token that ends a turn, which the model learns to give, and at which answers stop.
        image: what stands for an image in the prompt; its `<|image_pad|>` becomes the image's tokens.
    """

    assistant_start: str
    turn_end: str
    image: str


CHATML = ChatFormat(
    assistant_start="<|im_start|>assistant\n",
    turn_end="<|im_end|>",
    image=f"<|vision_start|>{IMAGE_TOKEN}<|vision_end|>",
)
