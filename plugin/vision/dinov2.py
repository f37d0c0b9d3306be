"""DINOv2 (Oquab et al. 2023, arXiv:2304.07193), without and with register tokens (arXiv:2309.16588)."""

import re
from typing import ClassVar

import torch
from torch import nn
from transformers.configuration_utils import PretrainedConfig

from qwen_vqa.plugin.layers import Layers
from qwen_vqa.plugin.vision.features import FeatureChoice
from qwen_vqa.plugin.vision.tower import EncoderLayer, VisionEncoder

_LAYER = r"^(?:dinov2\w*\.)?encoder\.layer\.(\d+)\."


class Dinov2Encoder(VisionEncoder):
    """Usually the last layer's output after the last norm, of the patches alone."""

    model_type: ClassVar[str] = "dinov2"
    example: ClassVar[str] = "facebook/dinov2-base"
    transformers_class: ClassVar[str] = "Dinov2Model"
    # Attention has two sets of names: up to 4.x (query, dense), and later (q_proj, o_proj).
    weight_names: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^embeddings\.cls_token$", "class_embedding"),
        (r"^embeddings\.register_tokens$", "registers"),
        (r"^embeddings\.position_embeddings$", "position_embedding"),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embedding."),
        (r"^layernorm\.", "final_norm."),
        (_LAYER + r"norm1\.", r"layers.\1.attention_norm."),
        (_LAYER + r"norm2\.", r"layers.\1.mlp_norm."),
        (_LAYER + r"layer_scale1\.lambda1$", r"layers.\1.attention_scale"),
        (_LAYER + r"layer_scale2\.lambda1$", r"layers.\1.mlp_scale"),
        (_LAYER + r"attention\.([qkv])_proj\.", r"layers.\1.attention.\2_proj."),
        (_LAYER + r"attention\.attention\.([qkv])[a-z]+\.", r"layers.\1.attention.\2_proj."),
        (_LAYER + r"attention\.(?:o_proj|output\.dense)\.", r"layers.\1.attention.out_proj."),
        (_LAYER + r"mlp\.(fc[12])\.", r"layers.\1.mlp.\2."),
    )
    not_the_encoder: ClassVar[re.Pattern[str]] = re.compile(r"^(?:embeddings\.mask_token$|classifier\b)")
    usual_features: ClassVar[FeatureChoice] = FeatureChoice(class_token=False)

    @classmethod
    def check(cls, config: PretrainedConfig, features: FeatureChoice) -> None:
        """Raises ValueError for the gated MLP of the giant, too, which is not built here."""
        super().check(config, features)
        if config.use_swiglu_ffn:
            raise ValueError("vision_config.use_swiglu_ffn is true; DINOv2's giant is not among what is served.")

    @classmethod
    def num_first_tokens(cls, config: PretrainedConfig) -> int:
        """The class token, and registers."""
        return 1 + getattr(config, "num_register_tokens", 0)

    @classmethod
    def mlp_width(cls, config: PretrainedConfig) -> int:
        """A multiple of the width."""
        return int(config.hidden_size * config.mlp_ratio)

    def __init__(
        self, config: PretrainedConfig, layers: Layers, features: FeatureChoice, name: str = "vision_encoder"
    ) -> None:
        super().__init__(config, layers, features, name)
        width, registers = config.hidden_size, self.num_first_tokens(config) - 1
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.registers = nn.Parameter(torch.zeros(1, registers, width)) if registers else None
        positions = self.num_features(config, FeatureChoice()) - registers
        self.position_embedding = nn.Parameter(torch.zeros(1, positions, width))

    def layer(self, config: PretrainedConfig, layers: Layers, name: str) -> nn.Module:
        """With a scale after attention and MLP."""
        return ScaledLayer(config, layers, name, self.mlp_width(config), config.qkv_bias)

    def embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The class token and the patches with their positions, and registers, which have none, between them."""
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)  # [N, patches, D]
        class_token = self.class_embedding.expand(len(patches), -1, -1)
        placed = torch.cat([class_token, patches], dim=1) + self.position_embedding
        if self.registers is None:
            return placed
        return torch.cat([placed[:, :1], self.registers.expand(len(patches), -1, -1), placed[:, 1:]], dim=1)

    def initialise_embeddings(self, config: PretrainedConfig) -> None:
        """As Transformers' DINOv2."""
        for embedding in (self.class_embedding, self.position_embedding):
            nn.init.trunc_normal_(embedding, std=config.initializer_range)


class Dinov2WithRegistersEncoder(Dinov2Encoder):
    """The same, under the name that its config has."""

    model_type: ClassVar[str] = "dinov2_with_registers"
    example: ClassVar[str] = "facebook/dinov2-with-registers-base"
    transformers_class: ClassVar[str] = "Dinov2WithRegistersModel"


class ScaledLayer(EncoderLayer):
    """An `EncoderLayer` whose attention and MLP are each scaled, channel by channel, before they are added."""

    def __init__(self, config: PretrainedConfig, layers: Layers, name: str, mlp_width: int, qkv_bias: bool) -> None:
        super().__init__(config, layers, name, mlp_width, qkv_bias)
        self.attention_scale = nn.Parameter(torch.full((config.hidden_size,), float(config.layerscale_value)))
        self.mlp_scale = nn.Parameter(torch.full((config.hidden_size,), float(config.layerscale_value)))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, T, width] to the same."""
        hidden = hidden + self.attention_scale * self.attention(self.attention_norm(hidden))
        return hidden + self.mlp_scale * self.mlp(self.mlp_norm(hidden))
