"""SigLIP (Zhai et al. 2023, arXiv:2303.15343), and SigLIP 2 of fixed resolution (arXiv:2502.14786)."""

import re
from typing import ClassVar

import torch
from torch import nn
from transformers.configuration_utils import PretrainedConfig

from qwen_vqa.plugin.layers import Layers
from qwen_vqa.plugin.vision.tower import VisionEncoder, encoder_layers, square_sizes


class SiglipEncoder(VisionEncoder):
    """The last layer's output after the final norm: one feature a patch, and no class token."""

    model_type: ClassVar[str] = "siglip_vision_model"
    example: ClassVar[str] = "google/siglip-so400m-patch14-384"
    transformers_class: ClassVar[str] = "SiglipVisionModel"
    # With "vision_model." before them up to transformers 4.x.
    weight_names: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^(?:vision_model\.)?embeddings\.patch_embedding\.", "patch_embedding."),
        (r"^(?:vision_model\.)?embeddings\.position_embedding\.weight$", "position_embedding"),
        (r"^(?:vision_model\.)?post_layernorm\.", "final_norm."),
        (r"^(?:vision_model\.)?encoder\.layers\.(\d+)\.layer_norm1\.", r"layers.\1.attention_norm."),
        (r"^(?:vision_model\.)?encoder\.layers\.(\d+)\.layer_norm2\.", r"layers.\1.mlp_norm."),
        (r"^(?:vision_model\.)?encoder\.layers\.(\d+)\.self_attn\.", r"layers.\1.attention."),
        (r"^(?:vision_model\.)?encoder\.layers\.(\d+)\.mlp\.", r"layers.\1.mlp."),
    )
    # The pooling head, and the side of the text.
    not_the_encoder: ClassVar[re.Pattern[str]] = re.compile(r"^(?:(?:vision_model\.)?head|text_model|logit_\w+)\b")

    @classmethod
    def check(cls, config: PretrainedConfig) -> None:
        """Any square: what is left of a row of pixels after the last whole patch is not looked at."""
        square_sizes(config)

    @classmethod
    def num_features(cls, config: PretrainedConfig) -> int:
        """One a whole patch: 729 of 384 pixels in patches of 14."""
        size, patch = square_sizes(config)
        return (size // patch) ** 2

    def __init__(self, config: PretrainedConfig, layers: Layers, name: str = "vision_encoder") -> None:
        super().__init__()
        width = config.hidden_size
        self.patch_embedding = layers.convolution(config.num_channels, width, config.patch_size)
        self.position_embedding = nn.Parameter(torch.zeros(self.num_features(config), width))
        self.layers = encoder_layers(config, layers, name)
        self.final_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels [views, 3, size, size] to features [views, patches, width]."""
        hidden = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2) + self.position_embedding
        for layer in self.layers:
            hidden = layer(hidden)
        return self.final_norm(hidden)

    def initialise_embeddings(self, config: PretrainedConfig) -> None:
        """As Transformers' SigLIP, which goes by the width."""
        nn.init.normal_(self.position_embedding, std=config.hidden_size**-0.5)
