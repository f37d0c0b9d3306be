"""What all vision encoders have: what the rest of the project asks of one, and layers with a norm before each."""

import re
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.configuration_utils import PretrainedConfig

from qwen_vqa.plugin.layers import Layers


class VisionEncoder(nn.Module, ABC):
    """An encoder of images: pixels to features.

    A family subclasses it in a file of its own and is added to `encoders.ENCODERS`.

    Attributes:
        model_type: what Transformers' config of the family has as `model_type`.
        example: one that people use, by its id on the hub.
        transformers_class: what loads its weights, with `transformers_arguments`.
        weight_names: patterns of the names that its weights have in Transformers, and ours.
        not_the_encoder: names of weights that such a checkpoint brings beside the encoder.
    """

    model_type: ClassVar[str]
    example: ClassVar[str]
    transformers_class: ClassVar[str]
    transformers_arguments: ClassVar[dict[str, Any]] = {}
    weight_names: ClassVar[tuple[tuple[str, str], ...]]
    not_the_encoder: ClassVar[re.Pattern[str]]
    patch_embedding: nn.Module
    position_embedding: nn.Parameter

    @classmethod
    def check(cls, config: PretrainedConfig) -> None:
        """Raises ValueError for a config that the family's module cannot be built from."""
        size, patch = square_sizes(config)
        if size % patch:
            raise ValueError(
                f"vision_config.image_size {size} is not a multiple of patch_size {patch}; patches would not cover the "
                "canvas."
            )

    @classmethod
    @abstractmethod
    def num_features(cls, config: PretrainedConfig) -> int:
        """How many features a view has."""

    @classmethod
    def split_sizes(cls, config: PretrainedConfig) -> dict[str, int]:
        """What has to be a multiple of the number of ranks, by its field."""
        return {
            "vision_config.num_attention_heads": config.num_attention_heads,
            "vision_config.intermediate_size": config.intermediate_size,
        }

    @abstractmethod
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels [views, 3, size, size] to features [views, features, width]."""

    @abstractmethod
    def initialise_embeddings(self, config: PretrainedConfig) -> None:
        """Random numbers for a new encoder's embeddings, whose layers Transformers fills."""

    @property
    def dtype(self) -> torch.dtype:
        """What pixels have to be."""
        return self.position_embedding.dtype


class EncoderLayer(nn.Module):
    """Attention and MLP, each after its norm and beside a residual."""

    def __init__(self, config: PretrainedConfig, layers: Layers, name: str, qkv_bias: bool = True) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.attention = layers.attention(width, config.num_attention_heads, f"{name}.attention", qkv_bias)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.mlp = EncoderMlp(config, layers, f"{name}.mlp")

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, T, width] to the same."""
        hidden = hidden + self.attention(self.attention_norm(hidden))
        return hidden + self.mlp(self.mlp_norm(hidden))


class EncoderMlp(nn.Module):
    """Linear, activation, Linear."""

    def __init__(self, config: PretrainedConfig, layers: Layers, name: str) -> None:
        super().__init__()
        self.fc1 = layers.column(config.hidden_size, config.intermediate_size, f"{name}.fc1")
        self.activation = layers.activation(config.hidden_act)
        self.fc2 = layers.row(config.intermediate_size, config.hidden_size, f"{name}.fc2")

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., width] to the same."""
        return self.fc2(self.activation(self.fc1(hidden)))


def encoder_layers(config: PretrainedConfig, layers: Layers, name: str, qkv_bias: bool = True) -> nn.ModuleList:
    """All layers of an encoder that lies at `name`."""
    return nn.ModuleList(
        EncoderLayer(config, layers, f"{name}.layers.{index}", qkv_bias) for index in range(config.num_hidden_layers)
    )


def square_sizes(config: PretrainedConfig) -> tuple[int, int]:
    """Sides of the canvas and of a patch, in pixels.

    Raises:
        ValueError: transformers would take oblong ones; the canvas here is square.
    """
    for name in ("image_size", "patch_size"):
        if not isinstance(getattr(config, name), int):
            raise ValueError(f"vision_config.{name} is {getattr(config, name)}; it must be one whole number.")
    return config.image_size, config.patch_size
