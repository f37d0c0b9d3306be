"""The reference: the served model in plain PyTorch, for training, for transformers and as the proof's other side."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.plugin.registration import register_for_transformers
from qwen_vqa.plugin.vision.tower import VisionEncoder
from qwen_vqa.train.model.labels import IGNORED
from qwen_vqa.train.model.torch_layers import TorchLayers

LOGITS_AT_ONCE = 256  # positions


class QwenVqaForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A vision encoder and a connector whose outputs stand in for the embeddings of `<|image_pad|>` tokens."""

    config: QwenVqaConfig
    config_class = QwenVqaConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["EncoderLayer"]  # noqa: RUF012 - transformers reads a plain class list
    # A tied output layer is not in the checkpoint; an untied one is (config.tie_word_embeddings says which).
    _tied_weights_keys = {  # noqa: RUF012 - transformers reads a plain class dict
        "language_model.lm_head.weight": "language_model.model.embed_tokens.weight"
    }

    def __init__(self, config: QwenVqaConfig) -> None:
        super().__init__(config)
        if config.vision_in_float32:
            self._keep_in_fp32_modules_strict = ["vision_encoder", "connector"]  # transformers reads it while it loads
        self.vision_encoder = config.new_vision_encoder(TorchLayers())
        self.connector = config.new_connector(TorchLayers())
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    if TYPE_CHECKING:  # transformers decorates its own so that a type checker cannot call them

        def to(self, *args: Any, **kwargs: Any) -> Self: ...  # type: ignore[override]

        def generate(self, *args: Any, **kwargs: Any) -> torch.Tensor: ...  # type: ignore[override]

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, VisionEncoder):
            module.initialise_embeddings(self.config.vision_config)
        else:
            super()._init_weights(module)

    @property
    def dtype(self) -> torch.dtype:
        """The language model's float type, which is the checkpoint's; the vision side may have another."""
        return self.get_input_embeddings().weight.dtype  # type: ignore[return-value] # an nn.Embedding's

    def to_float_type(self, dtype: torch.dtype) -> None:
        """Hold the language model in a float type, and the vision side in it or in float32, as the config says."""
        self.language_model.to(dtype)
        vision_dtype = torch.float32 if self.config.vision_in_float32 else dtype
        self.vision_encoder.to(vision_dtype)
        self.connector.to(vision_dtype)

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding of the language model."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding of the language model."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The output layer of the language model."""
        return self.language_model.get_output_embeddings()

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels [views, 3, size, size] to what the connector takes: [views, features, feature width].

        No graph is kept for a frozen encoder. With the view rule s2, the views of an image become one.
        """
        trainable = any(parameter.requires_grad for parameter in self.vision_encoder.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trainable):
            return self.config.joined_features(self.vision_encoder(pixel_values.to(self.vision_encoder.dtype)))

    def embed(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        view_layouts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Token ids [B, T] and images in reading order to embeddings [B, T, text width].

        `view_layouts` [images, 6] are the image processor's, where images differ in their views.

        Raises:
            ValueError: placeholders and image features differ in number.
        """
        embeddings = self.get_input_embeddings()(input_ids)
        if image_features is None and pixel_values is not None:
            image_features = self.get_image_features(pixel_values)
        is_image = input_ids == self.config.image_token_id
        if image_features is None:
            if is_image.any():
                raise ValueError(f"{int(is_image.sum())} image tokens in the prompt, but no image was given.")
            if self.training and torch.is_grad_enabled():
                # A batch of text alone still has a gradient for every trained weight, if it is 0: the backward pass
                # needs one when the connector is all that learns, and so do processes that share their gradients.
                nothing = self._features_of_nothing(embeddings)
                unused = self.connector(nothing.to(self.connector.dtype)).sum()
                if self.connector.image_newline is not None:
                    unused = unused + self.connector.image_newline.sum()
                embeddings = embeddings + 0 * unused.to(embeddings.dtype)
            return embeddings
        images = self.config.image_embeddings(image_features.to(self.connector.dtype), self.connector, view_layouts)
        connected = torch.cat(images)
        if len(connected) != int(is_image.sum()):
            raise ValueError(
                f"{int(is_image.sum())} image tokens in the prompt for {len(connected)} image features "
                f"({self.config.tokens_per_view} a view)."
            )
        return embeddings.masked_scatter(is_image.unsqueeze(-1), connected.to(embeddings.dtype))

    def _features_of_nothing(self, like: torch.Tensor) -> torch.Tensor:
        """Features [1, F, feature width]; of a black image where the encoder is trained, and needs a gradient."""
        config = self.config
        if not any(parameter.requires_grad for parameter in self.vision_encoder.parameters()):
            return like.new_zeros(1, config.features_per_view, config.feature_width)
        size = config.vision_config.image_size
        return self.get_image_features(like.new_zeros(config.view_rule.fixed_views or 1, 3, size, size))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        view_layouts: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, vocabulary]; where `labels` [B, T] are given (-100: not counted) the loss, and no logits.

        Images are given as `pixel_values` [views, 3, size, size], or as the frozen encoder's cached
        `image_features` [images, features, feature width], in the order of their placeholders, and as the image
        processor's `view_layouts` [images, 6] where they differ in their views.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("forward needs input_ids or inputs_embeds.")
            cache = kwargs.get("past_key_values")
            if cache is not None and cache.get_seq_length():
                # The images came with the prompt. An image token in an answer is a token like any other, as in vLLM.
                inputs_embeds = self.get_input_embeddings()(input_ids)
            else:
                inputs_embeds = self.embed(input_ids, pixel_values, image_features, view_layouts)
        inputs = {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask, **kwargs}
        if labels is None:
            return self.language_model(**inputs)
        return CausalLMOutputWithPast(loss=self._loss(labels, **inputs))

    def _loss(self, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None, **inputs: Any) -> Any:
        """The language model's own loss of `labels` [B, T], with logits of few of the counted positions at a time.

        Logits [B, T, 151936] and their gradients in float32 would need more memory than the model.
        """
        inputs.setdefault("use_cache", False)
        hidden = self.language_model.get_decoder()(**inputs).last_hidden_state[:, :-1]  # [B, T - 1, text width]
        shifted = labels[:, 1:].to(hidden.device)
        counted = shifted != IGNORED
        hidden, targets = hidden[counted], shifted[counted]
        total = len(targets) if num_items_in_batch is None else num_items_in_batch
        parts = zip(hidden.split(LOGITS_AT_ONCE), targets.split(LOGITS_AT_ONCE), strict=True)
        return sum(checkpoint(self._part_of_loss, *part, total, use_reentrant=False) for part in parts)

    def _part_of_loss(self, hidden: torch.Tensor, targets: torch.Tensor, total: torch.Tensor | int) -> torch.Tensor:
        """Of hidden states [N, text width] and the tokens that follow them [N]: the sum, divided by `total`."""
        return self.language_model.loss_function(
            self.get_output_embeddings()(hidden),
            labels=None,
            vocab_size=self.config.text_config.vocab_size,
            num_items_in_batch=total,
            shift_labels=targets,
        )

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The images enter with the prompt; later steps find them in the cache."""
        images = {name: kwargs.pop(name, None) for name in ("pixel_values", "image_features", "view_layouts")}
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc] # transformers' self type
        if kwargs.get("is_first_iteration") or not kwargs.get("use_cache", True):
            inputs |= images
        return inputs


def embedded_prompt(model: QwenVqaForConditionalGeneration, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Embeddings [B, T, text width] of what a processor or a collator returned."""
    images = {name: inputs.get(name) for name in ("pixel_values", "image_features", "view_layouts")}
    return model.embed(inputs["input_ids"], **images)


def register_model() -> None:
    """`AutoModelForImageTextToText.from_pretrained(CHECKPOINT)` works from here on."""
    register_for_transformers()
    AutoModelForImageTextToText.register(QwenVqaConfig, QwenVqaForConditionalGeneration, exist_ok=True)


register_model()
