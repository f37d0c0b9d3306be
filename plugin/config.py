"""The checkpoint's config.json: a vision encoder, a connector and a language model under one roof."""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.configuration_utils import PretrainedConfig

from qwen_vqa.plugin.connector.mlp import ConnectorShape, MlpConnector
from qwen_vqa.plugin.layers import Layers
from qwen_vqa.plugin.views.merging import image_embeddings, joined_scales
from qwen_vqa.plugin.views.view_layout import ViewLayout
from qwen_vqa.plugin.views.view_rule import ViewRule
from qwen_vqa.plugin.views.view_rules import view_rule
from qwen_vqa.plugin.vision.encoders import encoder_family
from qwen_vqa.plugin.vision.features import FeatureChoice
from qwen_vqa.plugin.vision.tower import VisionEncoder

MODEL_TYPE = "qwen_vqa"
ARCHITECTURE = "QwenVqaForConditionalGeneration"
# How the names of the vision side's weights begin in a checkpoint.
VISION_WEIGHTS = ("vision_encoder.", "connector.")


class QwenVqaConfig(PretrainedConfig):
    """Config of a vision encoder, a connector and a causal language model.

    Args:
        vision_config: a ViTConfig, or its dict (default: google/vit-base-patch32-384's shape).
        text_config: any causal language model's config, or its dict (default: Qwen2).
        connector: fields of `connector.mlp.ConnectorShape` (default: two Linear layers with the text width between).
        image_token_id: id of `<|image_pad|>`, the token whose embedding an image feature replaces.
        vision_in_float32: vision encoder and connector are held and computed in float32, whatever the language
            model's float type; without it they have the language model's.
        trained_adapter: the adapter in adapters/ that the connector was trained with; None where it is merged, or
            where there is none.
        vision_features: which of the encoder's layers are taken, and how: `features.FeatureChoice` (default: the
            family's `usual_features`).
        views: which views of an image the encoder sees: `rule`, and the rule's own fields (default: the whole image).

    Raises:
        ValueError: a vision encoder, an activation or an image size that the model does not have.
    """

    model_type = MODEL_TYPE
    # Auto classes, since the parts are of many kinds; transformers annotates config classes and reads a plain dict.
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}  # type: ignore[dict-item] # noqa: RUF012 - as transformers has it
    is_composition = True

    def __init__(
        self,
        vision_config: dict[str, Any] | PretrainedConfig | None = None,
        text_config: dict[str, Any] | PretrainedConfig | None = None,
        connector: dict[str, Any] | None = None,
        image_token_id: int = 151655,
        vision_in_float32: bool = False,
        trained_adapter: str | None = None,
        vision_features: dict[str, Any] | None = None,
        views: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.vision_config = _as_config(
            vision_config or {"model_type": "vit", "patch_size": 32, "image_size": 384}, default="vit"
        )
        self.text_config = _as_config(text_config, default="qwen2")
        self.connector = {"hidden_size": self.text_config.hidden_size, "activation": "gelu", **(connector or {})}
        self.image_token_id = image_token_id
        self.vision_in_float32 = vision_in_float32
        self.trained_adapter = trained_adapter
        self.vision_features = vision_features
        self.views = views
        kwargs["tie_word_embeddings"] = bool(getattr(self.text_config, "tie_word_embeddings", False))
        super().__init__(**kwargs)
        self._check()

    def _check(self) -> None:
        self.vision_family.check(self.vision_config, self.features)
        self.view_rule  # noqa: B018 - raises where features, connector and views do not fit

    @property
    def vision_family(self) -> type[VisionEncoder]:
        """The vision encoder's class, which knows what there is to know of it."""
        return encoder_family(self.vision_config)

    @property
    def features(self) -> FeatureChoice:
        """What of the encoder the connector is given."""
        if self.vision_features is None:
            return self.vision_family.usual_features
        return FeatureChoice.of(self.vision_features)

    @property
    def connector_shape(self) -> ConnectorShape:
        """Number and widths of the connector's layers."""
        return ConnectorShape.of(self.connector)

    @property
    def features_per_view(self) -> int:
        """Features of one view of an image."""
        return self.vision_family.num_features(self.vision_config, self.features)

    @property
    def encoder_tokens_per_view(self) -> int:
        """Tokens of one view in the encoder's layers, which may be more than its features."""
        return self.vision_family.num_features(self.vision_config, FeatureChoice())

    @property
    def feature_width(self) -> int:
        """Of what the connector takes."""
        rule = self.view_rule
        return self.vision_family.width(self.vision_config, self.features) * rule.times_wider(rule.fields)

    def joined_features(self, features: torch.Tensor) -> torch.Tensor:
        """The encoder's features [views, F, width] to what the connector takes, [.., F, feature_width]."""
        first = self.vision_family.num_first_tokens(self.vision_config) if self.features.class_token else 0
        return joined_scales(features, self.view_rule, first)

    def image_embeddings(
        self, features: torch.Tensor, connector: MlpConnector, layouts: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """What the connector takes, to each image's embeddings [tokens, text width].

        Args:
            layouts: of the images, `ViewLayout.numbers` [images, 6]; None where each has as many views.
        """
        of_images = None if layouts is None else [ViewLayout(*row) for row in layouts.tolist()]
        return image_embeddings(features, connector, of_images, connector.image_newline)

    def new_vision_encoder(self, layers: Layers) -> VisionEncoder:
        """A new one, of these layers."""
        return self.vision_family(self.vision_config, layers, self.features)

    def new_connector(self, layers: Layers) -> MlpConnector:
        """A new one, of these layers."""
        width = self.text_config.hidden_size
        return MlpConnector(self.feature_width, width, self.connector_shape, layers, self.view_rule.has_newline)

    @property
    def tokens_per_view(self) -> int:
        """Prompt tokens of one view of an image (145 of google/vit-base-patch32-384's)."""
        return self.connector_shape.num_tokens(self.features_per_view)

    @property
    def view_rule(self) -> ViewRule:
        """Which views an image has."""
        return view_rule(self.views, self.vision_config.image_size, self.tokens_per_view)

    @property
    def most_image_tokens(self) -> int:
        """Prompt tokens of the image that takes most of them."""
        return self.view_rule.most_tokens

    def get_text_config(self, *args: Any, **kwargs: Any) -> PretrainedConfig:
        """The language model's config: what transformers and vLLM ask for sizes, heads and caches."""
        return self.text_config


def _as_config(value: dict[str, Any] | PretrainedConfig | None, default: str) -> PretrainedConfig:
    if isinstance(value, PretrainedConfig):
        return value
    fields = dict(value or {})
    model_type = fields.pop("model_type", default)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"transformers knows no model_type {model_type!r}; check the spelling in config.json.")
    return CONFIG_MAPPING[model_type](**fields)
