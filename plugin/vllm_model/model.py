"""The model as vLLM serves it: vision encoder, connector and any language model that vLLM knows."""

import re
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import nn
from transformers.configuration_utils import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from qwen_vqa.plugin.chat.chat_format import CHATML
from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.plugin.lora.adapter_names import layer_prefix
from qwen_vqa.plugin.views.image_processor import LAYOUTS
from qwen_vqa.plugin.vllm_model.parallel_layers import ParallelLayers
from qwen_vqa.plugin.vllm_model.processing import (
    QwenVqaDummyInputsBuilder,
    QwenVqaMultiModalProcessor,
    QwenVqaProcessingInfo,
)
from qwen_vqa.plugin.vllm_model.weight_loading import load_all_weights
from qwen_vqa.plugin.vllm_model_api import (
    MULTIMODAL_REGISTRY,
    IntermediateTensors,
    MultiModalEmbeddings,
    MultiModalKwargsItem,
    MultiModelKeys,
    SupportsLoRA,
    SupportsMultiModal,
    SupportsPP,
    TensorSchema,
    TensorShape,
    VllmConfig,
    WeightsMapper,
    current_platform,
    get_tensor_model_parallel_world_size,
    init_vllm_registered_model,
    maybe_prefix,
    run_dp_sharded_vision_model,
    set_default_torch_dtype,
)


class PixelInputs(TensorSchema):
    """Dimensions:
    - n: views of the images of all requests in the step
    - s: height and width of the canvas
    """

    type: Literal["pixel_values"] = "pixel_values"
    pixel_values: Annotated[torch.Tensor, TensorShape("n", 3, "s", "s")]


@MULTIMODAL_REGISTRY.register_processor(
    QwenVqaMultiModalProcessor, info=QwenVqaProcessingInfo, dummy_inputs=QwenVqaDummyInputsBuilder
)
class QwenVqaForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsLoRA, SupportsPP):
    """A vision encoder whose features, through a connector, take the places of `<|image_pad|>` in the prompt."""

    packed_modules_mapping: dict[str, list[str]] = {  # noqa: RUF012 - vLLM reads a plain class dict
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    # The checkpoint has vLLM's names already.
    hf_to_vllm_mapper = WeightsMapper()
    supports_tower_connector_lora: ClassVar[bool] = True
    supports_encoder_tp_data: ClassVar[bool] = True

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """What stands for an image in the prompt where a chat template takes text only."""
        if modality.startswith("image"):
            return CHATML.image
        raise ValueError(f"the model takes images, no {modality}.")

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: QwenVqaConfig = vllm_config.model_config.hf_config  # type: ignore[assignment] # vLLM says less of it
        # A quantised checkpoint says itself which layers are; quantising in flight is for the language model alone.
        quant_config = vllm_config.quant_config if getattr(config, "quantization_config", None) else None
        multimodal_config = vllm_config.model_config.multimodal_config
        ranks = get_tensor_model_parallel_world_size()
        self.encoder_whole = ranks > 1 and getattr(multimodal_config, "mm_encoder_tp_mode", None) == "data"
        check_tensor_parallel(config, ranks, self.encoder_whole)
        self.config = config
        self.configure_mm_token_handling(vocab_size=config.text_config.vocab_size, mm_token_ids=[config.image_token_id])
        self.embedding_dtype = vllm_config.model_config.dtype
        with self._mark_tower_model(vllm_config, "image"), vision_float_type(config):
            self.vision_encoder = config.new_vision_encoder(ParallelLayers(quant_config, prefix, self.encoder_whole))
            self.connector = config.new_connector(ParallelLayers(quant_config, prefix))
        with self._mark_language_model(vllm_config):
            language_model: Any = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                architectures=config.text_config.architectures or [causal_lm_class(config.text_config)],
                prefix=maybe_prefix(prefix, "language_model"),
            )
            self.language_model = language_model
        self.hf_to_vllm_mapper = adapter_mapper(layer_prefix(name for name, _ in self.language_model.named_modules()))
        self.takes_adapters = vllm_config.lora_config is not None
        if current_platform.is_cpu():
            from qwen_vqa.plugin.cpu.language_model import hold_in_stored_type

            hold_in_stored_type(self.language_model, vllm_config, config)
        # A language model may stack others than these (Phi3 stacks none): its word counts.
        self.packed_modules_mapping = {
            **type(self).packed_modules_mapping,
            **getattr(self.language_model, "packed_modules_mapping", {}),
        }
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **kwargs: Any) -> MultiModalEmbeddings:
        """All images of a step, of whatever requests, to one [tokens, D_text] each, in the language model's float type.

        `pixel_values` is [views, 3, size, size]; the encoder runs once over them all. `view_layouts` [images, 6] says
        which belong together, where images differ in it.
        """
        if kwargs.get("pixel_values") is None:
            return []
        size = self.config.vision_config.image_size
        inputs = PixelInputs(pixel_values=kwargs["pixel_values"], resolve_bindings={"s": size})
        if self.encoder_whole:
            features = run_dp_sharded_vision_model(inputs["pixel_values"], self.vision_encoder)
        else:
            features = self.vision_encoder(inputs["pixel_values"])
        features = self.config.joined_features(features)
        images = self.config.image_embeddings(features, self.connector, kwargs.get(LAYOUTS))
        return [image.to(self.embedding_dtype) for image in images]

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor | IntermediateTensors:
        """Embeddings [tokens, D_text] of a step, images included, to hidden states [tokens, D_text]."""
        if intermediate_tensors is not None:  # A later pipeline rank: its input comes from the one before.
            inputs_embeds = None
        return self.language_model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Hidden states [tokens, D_text] to logits [tokens, vocabulary]."""
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Loads a checkpoint; missing, unexpected and misshapen weights raise ValueError with their names."""
        return load_all_weights(self, self.packed_modules_mapping, weights)

    def process_weights_after_loading(self) -> None:
        """vLLM calls it once all weights are loaded and packed."""
        if current_platform.is_cpu():
            from qwen_vqa.plugin.cpu.language_model import finish_loading

            finish_loading(self.language_model, self.takes_adapters)

    def get_mm_mapping(self) -> MultiModelKeys:
        """Which submodule is what, for LoRA."""
        return MultiModelKeys.from_string_field(
            language_model="language_model", connector="connector", tower_model="vision_encoder"
        )

    def get_mm_lora_token_counts(
        self, *, modality: str, mm_kwargs: MultiModalKwargsItem | None, num_mm_embeds: int
    ) -> tuple[int, int | None]:
        """Tokens in encoder and connector for so many embeddings, or for the views of an image."""
        pixels = mm_kwargs["pixel_values"].data if mm_kwargs is not None else None
        per_view, rule = self.config.tokens_per_view, self.config.view_rule
        views = len(pixels) if isinstance(pixels, torch.Tensor) else num_mm_embeds // per_view * (rule.fixed_views or 1)
        return views * self.config.encoder_tokens_per_view, views // (rule.fixed_views or 1) * per_view


def vision_float_type(config: QwenVqaConfig) -> AbstractContextManager[None]:
    """For building encoder and connector: vLLM's layers have torch's default float type, the language model's here."""
    return set_default_torch_dtype(torch.float32) if config.vision_in_float32 else nullcontext()


def adapter_mapper(layers: str) -> WeightsMapper:
    """Renames the tensors of adapters, and nothing else, to where the language model's layers lie here.

    Scripts name them in many ways (`plugin.adapter_names`); which are a language model's was looked at
    before vLLM sees them.

    Args:
        layers: where they lie in the language model, such as `model.layers.`.
    """
    stack = layers.removesuffix(".").rpartition(".")[2]
    names = re.compile(rf"^(?:.*?\.)??{re.escape(stack)}\.(?=\d+\..*\.lora_[AB]\.)")
    return WeightsMapper(orig_to_new_regex={names: f"language_model.{layers}"})


def causal_lm_class(text_config: PretrainedConfig) -> str:
    """The class name that stands for a language model whose config does not say it."""
    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text_config.model_type]


def check_tensor_parallel(config: QwenVqaConfig, ranks: int, encoder_whole: bool = False) -> None:
    """Every part of the vision side must split evenly between the ranks.

    Args:
        encoder_whole: each rank has all of the encoder (`--mm-encoder-tp-mode data`).

    Raises:
        ValueError: it does not; the message names the field and the ranks that would do.
    """
    encoder = {} if encoder_whole else config.vision_family.split_sizes(config.vision_config)
    for field, size in (encoder | config.connector_shape.split_sizes).items():
        if size % ranks:
            fitting = [n for n in range(1, ranks) if size % n == 0]
            other = ", or --mm-encoder-tp-mode data: each rank has all of it" if field in encoder else ""
            raise ValueError(
                f"--tensor-parallel-size {ranks} does not divide {field} {size}; use one of "
                f"{', '.join(map(str, fitting))}{other}."
            )
