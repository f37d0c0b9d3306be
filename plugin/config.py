"""The checkpoint's config.json: a vision encoder, a connector and a language model under one roof."""

from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig
from transformers.configuration_utils import PretrainedConfig

MODEL_TYPE = "qwen_vqa"
ARCHITECTURE = "QwenVqaForConditionalGeneration"
VISION_ENCODERS = ("vit",)
# How the names of the vision side's weights begin in a checkpoint.
VISION_WEIGHTS = ("vision_encoder.", "connector.")
CONNECTOR_ACTIVATIONS = ("gelu",)


class QwenVqaConfig(PretrainedConfig):
    """Config of a vision encoder, a two-layer connector and a causal language model.

    Args:
        vision_config: a ViTConfig, or its dict (default: google/vit-base-patch32-384's shape).
        text_config: any causal language model's config, or its dict (default: Qwen2).
        connector: `hidden_size` (width between the two Linear layers; default: the text width) and
            `activation` ("gelu", the exact one).
        image_token_id: id of `<|image_pad|>`, the token whose embedding an image feature replaces.
        vision_in_float32: vision encoder and connector are held and computed in float32, whatever the language
            model's float type; without it they have the language model's.
        trained_adapter: the adapter in adapters/ that the connector was trained with; None where it is merged, or
            where there is none.

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
        kwargs["tie_word_embeddings"] = bool(getattr(self.text_config, "tie_word_embeddings", False))
        super().__init__(**kwargs)
        self._check()

    def _check(self) -> None:
        vision, connector = self.vision_config, self.connector
        if vision.model_type not in VISION_ENCODERS:
            raise ValueError(
                f"vision_config.model_type is {vision.model_type!r}; this version serves "
                f"{', '.join(VISION_ENCODERS)}. Assemble the checkpoint with a ViT such as "
                "google/vit-base-patch32-384."
            )
        image_size, patch_size = square_sizes(vision)
        if image_size % patch_size:
            raise ValueError(
                f"vision_config.image_size {image_size} is not a multiple of patch_size {patch_size}; "
                "patches would not cover the canvas."
            )
        if vision.hidden_act != "gelu":
            raise ValueError(f"vision_config.hidden_act is {vision.hidden_act!r}; the ViT here has 'gelu'.")
        if connector["activation"] not in CONNECTOR_ACTIVATIONS:
            raise ValueError(
                f"connector.activation is {connector['activation']!r}; "
                f"it must be one of {', '.join(CONNECTOR_ACTIVATIONS)}."
            )
        unknown = set(connector) - {"hidden_size", "activation"}
        if unknown:
            raise ValueError(f"connector has unknown fields {sorted(unknown)}; remove them from config.json.")

    @property
    def num_image_tokens(self) -> int:
        """Features, and so prompt tokens, of one image: one per patch and one for CLS (145 at 384/32)."""
        image_size, patch_size = square_sizes(self.vision_config)
        return (image_size // patch_size) ** 2 + 1

    def get_text_config(self, *args: Any, **kwargs: Any) -> PretrainedConfig:
        """The language model's config: what transformers and vLLM ask for sizes, heads and caches."""
        return self.text_config


def square_sizes(vision_config: PretrainedConfig) -> tuple[int, int]:
    """Sides of the canvas and of a patch, in pixels.

    Raises:
        ValueError: transformers would take oblong ones; the canvas here is square.
    """
    for name in ("image_size", "patch_size"):
        if not isinstance(getattr(vision_config, name), int):
            raise ValueError(f"vision_config.{name} is {getattr(vision_config, name)}; it must be one whole number.")
    return vision_config.image_size, vision_config.patch_size


def _as_config(value: dict[str, Any] | PretrainedConfig | None, default: str) -> PretrainedConfig:
    if isinstance(value, PretrainedConfig):
        return value
    fields = dict(value or {})
    model_type = fields.pop("model_type", default)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"transformers knows no model_type {model_type!r}; check the spelling in config.json.")
    return CONFIG_MAPPING[model_type](**fields)
