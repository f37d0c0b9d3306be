"""Prompts and images on their way into vLLM: one `<|image_pad|>` in the prompt becomes an image's tokens."""

from collections.abc import Mapping, Sequence

import torch
from transformers import BatchFeature

from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.plugin.views.image_processor import LAYOUTS
from qwen_vqa.plugin.views.view_layout import ViewLayout
from qwen_vqa.plugin.vllm_model_api import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    ImageProcessorItems,
    MultiModalDataDict,
    MultiModalDataItems,
    MultiModalDummyOptions,
    MultiModalFieldConfig,
    MultiModalInput,
    MultiModalKwargsItems,
    ProcessorInputs,
    PromptReplacement,
    PromptUpdate,
    TimingContext,
)


class QwenVqaProcessingInfo(BaseProcessingInfo):
    """What vLLM asks about the model's inputs before it sees one."""

    def get_hf_config(self) -> QwenVqaConfig:
        return self.ctx.get_hf_config(QwenVqaConfig)

    def get_hf_processor(self, **kwargs: object) -> QwenVqaProcessor:
        """The checkpoint's processor.

        Raises:
            ValueError: a request brought `mm_processor_kwargs`. They would build another image processor,
                of any canvas size that the client names, and another canvas does not fit the encoder.
        """
        if kwargs:
            raise ValueError(
                f"mm_processor_kwargs {sorted(kwargs)} are not supported: the encoder must see images as in "
                "training. Leave them out of the request."
            )
        return self.ctx.get_hf_processor(QwenVqaProcessor)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {"image": self.get_hf_config().most_image_tokens}


class QwenVqaDummyInputsBuilder(BaseDummyInputsBuilder[QwenVqaProcessingInfo]):
    """The largest input there is, with which vLLM measures its memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return self.info.get_hf_processor().image_token * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: MultiModalDummyOptions
    ) -> MultiModalDataDict:
        width, height = self.info.get_hf_config().view_rule.largest
        images = self._get_dummy_images(
            width=width,
            height=height,
            num_images=mm_counts.get("image", 0),
            overrides=mm_options.get("image"),
        )
        return {"image": images}


class QwenVqaMultiModalProcessor(BaseMultiModalProcessor[QwenVqaProcessingInfo]):
    """Pixels from the checkpoint's own processor; tokens by replacing placeholders in the token ids."""

    def apply(self, inputs: ProcessorInputs, timing_ctx: TimingContext) -> MultiModalInput:
        """A prompt's token ids and images, as they came, to what the engine takes.

        Raises:
            ValueError: placeholders and images differ in number. vLLM would leave a placeholder too many
                as it is, and answer one too few as if the server were at fault.
        """
        placeholders = inputs.prompt.count(self.info.get_hf_config().image_token_id)
        images = inputs.mm_data_items.get_count("image", strict=False)
        if placeholders != images:
            raise ValueError(f"the prompt has {placeholders} <|image_pad|> placeholders for {images} images.")
        return super().apply(inputs, timing_ctx)

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        """vLLM rounds pixels to the language model's float type, which an encoder in float32 must not see."""
        if not self.info.get_hf_config().vision_in_float32:
            return super()._call_hf_processor(hf_data, hf_kwargs)
        return self.info.get_hf_processor(**hf_kwargs)(**hf_data, return_tensors="pt")

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        views = self.info.get_hf_config().view_rule.fixed_views
        if views is not None:
            images = len(hf_inputs.get("pixel_values", ())) // views
            return {"pixel_values": MultiModalFieldConfig.flat_from_sizes("image", torch.full((images,), views))}
        layouts = hf_inputs.get(LAYOUTS, torch.empty((0, 0)))
        sizes = torch.tensor([ViewLayout(*row).num_views for row in layouts.tolist()], dtype=torch.long)
        return {
            "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", sizes),
            LAYOUTS: MultiModalFieldConfig.batched("image"),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        token = self.info.get_hf_config().image_token_id
        image_processor = self.info.get_hf_processor().image_processor

        def tokens_of(index: int) -> list[int]:
            return [token] * image_processor.tokens_of(mm_items.get_items("image", ImageProcessorItems).get(index))

        return [PromptReplacement(modality="image", target=[token], replacement=tokens_of)]
