"""Text and images to what the model takes: token ids with room for every image, and pixels."""

from typing import Any

from transformers.processing_utils import ProcessingKwargs, ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from qwen_vqa.plugin.chat.chat_template import CONTROL_TOKENS, IMAGE_TOKEN
from qwen_vqa.plugin.views.image_processor import TOKENS, QwenVqaImageProcessor


class QwenVqaProcessorKwargs(ProcessingKwargs, total=False):
    """Defaults of a call: a ChatML prompt brings all its control tokens itself."""

    # transformers reads a plain class attribute of its TypedDict, which typing knows nothing of.
    _defaults = {"text_kwargs": {"padding": False, "add_special_tokens": False}}  # type: ignore[misc] # noqa: RUF012 - as transformers has it


class QwenVqaProcessor(ProcessorMixin):
    """An image processor and a tokenizer; `apply_chat_template` makes the prompt.

    Called with a ChatML prompt and its images in order, it returns `input_ids` [prompts, tokens],
    in which each `<|image_pad|>` of the prompt has become as many as its image has features, and
    `pixel_values` [images, 3, size, size].

    Raises:
        ValueError: the tokenizer lacks a control token, or prompt and images do not match in number.
    """

    valid_processor_kwargs = QwenVqaProcessorKwargs
    image_token = IMAGE_TOKEN

    def __init__(
        self,
        image_processor: QwenVqaImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
    ) -> None:
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in CONTROL_TOKENS if token not in vocabulary]
        if missing:
            raise ValueError(
                f"the tokenizer lacks {', '.join(missing)}. The model speaks ChatML with Qwen2.5's vision "
                "tokens: use a Qwen2 or Qwen2.5 tokenizer, or add these tokens to yours before training."
            )
        self.image_token_id = vocabulary[IMAGE_TOKEN]
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def get_attributes(cls) -> list[str]:
        """The parts that are saved and loaded beside the processor."""
        return ["image_processor", "tokenizer"]

    def get_text_with_replacements(self, text: list[str], images_replacements: Any = (), *args: Any, **kwargs: Any):
        """Expand the image placeholders, once it is sure that each has its image."""
        placeholders = sum(prompt.count(IMAGE_TOKEN) for prompt in text)
        if images_replacements and placeholders != len(images_replacements):
            raise ValueError(
                f"the prompt has {placeholders} {IMAGE_TOKEN} placeholders for {len(images_replacements)} images."
            )
        return super().get_text_with_replacements(text, images_replacements, *args, **kwargs)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """What one placeholder becomes: as many as the image has features."""
        return IMAGE_TOKEN * int(image_inputs[TOKENS][image_idx])

    @property
    def unused_input_names(self) -> list[str]:
        """What the image processor counts for this class alone."""
        return [TOKENS]
