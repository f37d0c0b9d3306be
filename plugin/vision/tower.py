"""What all vision encoders have: what the rest of the project asks of one, and layers with a norm before each."""

import re
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.configuration_utils import PretrainedConfig

from qwen_vqa.plugin.layers import Layers
from qwen_vqa.plugin.vision.features import FeatureChoice


class VisionEncoder(nn.Module, ABC):
    """An encoder of images: pixels to features.

    A family subclasses it in a file of its own and is added to `encoders.ENCODERS`. Only the layers that the chosen
    features need are built.

    Attributes:
        model_type: what Transformers' config of the family has as `model_type`.
        example: one that people use, by its id on the hub.
        transformers_class: what loads its weights, with `transformers_arguments`.
        weight_names: patterns of the names that its weights have in Transformers, and ours.
        not_the_encoder: names of weights that such a checkpoint brings beside the encoder.
        patch_bias: whether the patches' embedding has a bias.
        usual_features: what connectors of this family are given, where nobody says otherwise.
    """

    model_type: ClassVar[str]
    example: ClassVar[str]
    transformers_class: ClassVar[str]
    transformers_arguments: ClassVar[dict[str, Any]] = {}
    weight_names: ClassVar[tuple[tuple[str, str], ...]]
    not_the_encoder: ClassVar[re.Pattern[str]]
    usual_features: ClassVar[FeatureChoice]
    patch_bias: ClassVar[bool] = True
    position_embedding: nn.Parameter

    @classmethod
    def check(cls, config: PretrainedConfig, features: FeatureChoice) -> None:
        """Raises ValueError for a config that the family's module cannot be built from."""
        features.depths(config.num_hidden_layers)
        size, patch = square_sizes(config)
        if size % patch:
            raise ValueError(
                f"vision_config.image_size {size} is not a multiple of patch_size {patch}; patches would not cover the "
                "canvas."
            )

    @classmethod
    @abstractmethod
    def num_first_tokens(cls, config: PretrainedConfig) -> int:
        """How many tokens stand before the patches': the class token, and registers."""

    @classmethod
    def num_features(cls, config: PretrainedConfig, features: FeatureChoice) -> int:
        """How many features a view has: one a whole patch, and the first tokens' where they are kept."""
        size, patch = square_sizes(config)
        return (size // patch) ** 2 + (cls.num_first_tokens(config) if features.class_token else 0)

    @classmethod
    def width(cls, config: PretrainedConfig, features: FeatureChoice) -> int:
        """Of a feature."""
        return config.hidden_size * len(features.layers)

    @classmethod
    def mlp_width(cls, config: PretrainedConfig) -> int:
        """Of the MLP in a layer."""
        return config.intermediate_size

    @classmethod
    def split_sizes(cls, config: PretrainedConfig) -> dict[str, int]:
        """What has to be a multiple of the number of ranks, by its field."""
        return {
            "vision_config.num_attention_heads": config.num_attention_heads,
            "vision_config.intermediate_size": cls.mlp_width(config),
        }

    def __init__(
        self, config: PretrainedConfig, layers: Layers, features: FeatureChoice, name: str = "vision_encoder"
    ) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.patch_embedding = layers.convolution(config.num_channels, width, patch, bias=self.patch_bias)
        self.depths = features.depths(config.num_hidden_layers)
        self.num_dropped = 0 if features.class_token else self.num_first_tokens(config)
        self.layers = nn.ModuleList(
            self.layer(config, layers, f"{name}.layers.{index}") for index in range(max(self.depths))
        )
        self.final_norm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if features.norm else nn.Identity()
        )

    def layer(self, config: PretrainedConfig, layers: Layers, name: str) -> nn.Module:
        """One layer of the encoder, [N, T, width] to the same."""
        return EncoderLayer(config, layers, name, self.mlp_width(config), getattr(config, "qkv_bias", True))

    @abstractmethod
    def embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels [views, 3, size, size] to what the first layer is given, [views, tokens, width]."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels [views, 3, size, size] to features [views, features, width]."""
        hidden = self.embed(pixel_values)
        after = {0: hidden}
        for depth, layer in enumerate(self.layers, start=1):
            hidden = layer(hidden)
            if depth in self.depths:
                after[depth] = hidden
        chosen = [self.final_norm(after[depth]) for depth in self.depths]
        return torch.cat(chosen, dim=-1)[:, self.num_dropped :]

    @abstractmethod
    def initialise_embeddings(self, config: PretrainedConfig) -> None:
        """Random numbers for a new encoder's embeddings, whose layers Transformers fills."""

    @property
    def dtype(self) -> torch.dtype:
        """What pixels have to be."""
        return self.position_embedding.dtype


class EncoderLayer(nn.Module):
    """Attention and MLP, each after its norm and beside a residual."""

    def __init__(self, config: PretrainedConfig, layers: Layers, name: str, mlp_width: int, qkv_bias: bool) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.attention = layers.attention(width, config.num_attention_heads, f"{name}.attention", qkv_bias)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.mlp = EncoderMlp(width, mlp_width, config.hidden_act, layers, f"{name}.mlp")

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, T, width] to the same."""
        hidden = hidden + self.attention(self.attention_norm(hidden))
        return hidden + self.mlp(self.mlp_norm(hidden))


class EncoderMlp(nn.Module):
    """Linear, activation, Linear."""

    def __init__(self, width: int, middle: int, activation: str, layers: Layers, name: str) -> None:
        super().__init__()
        self.fc1 = layers.column(width, middle, f"{name}.fc1")
        self.activation = layers.activation(activation)
        self.fc2 = layers.row(middle, width, f"{name}.fc2")

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., width] to the same."""
        return self.fc2(self.activation(self.fc1(hidden)))


def square_sizes(config: PretrainedConfig) -> tuple[int, int]:
    """Sides of the canvas and of a patch, in pixels.

    Raises:
        ValueError: transformers would take oblong ones; the canvas here is square.
    """
    for name in ("image_size", "patch_size"):
        if not isinstance(getattr(config, name), int):
            raise ValueError(f"vision_config.{name} is {getattr(config, name)}; it must be one whole number.")
    return config.image_size, config.patch_size
