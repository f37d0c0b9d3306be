"""The checkpoint's config.json: a vision encoder, a connector and a language model under one roof."""

from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig
from transformers.configuration_utils import PretrainedConfig

from qwen_vqa.plugin.connector.mlp import ConnectorShape, MlpConnector
from qwen_vqa.plugin.layers import Layers
from qwen_vqa.plugin.views.view_rules import VIEW_RULES, WholeImage
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
        kwargs["tie_word_embeddings"] = bool(getattr(self.text_config, "tie_word_embeddings", False))
        super().__init__(**kwargs)
        self._check()

    def _check(self) -> None:
        self.vision_family.check(self.vision_config, self.features)
        self.tokens_per_view  # noqa: B018 - raises where features and connector do not fit

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
        """Of a feature: what the connector takes."""
        return self.vision_family.width(self.vision_config, self.features)

    def new_vision_encoder(self, layers: Layers) -> VisionEncoder:
        """A new one, of these layers."""
        return self.vision_family(self.vision_config, layers, self.features)

    def new_connector(self, layers: Layers) -> MlpConnector:
        """A new one, of these layers."""
        return MlpConnector(self.feature_width, self.text_config.hidden_size, self.connector_shape, layers)

    @property
    def tokens_per_view(self) -> int:
        """Prompt tokens of one view of an image (145 of google/vit-base-patch32-384's)."""
        return self.connector_shape.num_tokens(self.features_per_view)

    @property
    def most_image_tokens(self) -> int:
        """Prompt tokens of the image that takes most of them."""
        return VIEW_RULES[WholeImage.name].most() * self.tokens_per_view

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
