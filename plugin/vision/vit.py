"""ViT (Dosovitskiy et al. 2021, arXiv:2010.11929), as google/vit-* have it, without its pooler.

transformers renames its ViT's internals between releases; a checkpoint of ours must not move with them.
"""

import re
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.configuration_utils import PretrainedConfig

from qwen_vqa.plugin.layers import Layers
from qwen_vqa.plugin.vision.features import FeatureChoice
from qwen_vqa.plugin.vision.tower import VisionEncoder


class VitEncoder(VisionEncoder):
    """Usually the last layer's output after the last norm, the class token's first."""

    model_type: ClassVar[str] = "vit"
    example: ClassVar[str] = "google/vit-base-patch32-384"
    transformers_class: ClassVar[str] = "ViTModel"
    transformers_arguments: ClassVar[dict[str, Any]] = {"add_pooling_layer": False}
    # transformers has named these two ways so far: up to 4.x (query, dense), and later (q_proj, fc1).
    weight_names: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^embeddings\.cls_token$", "class_embedding"),
        (r"^embeddings\.position_embeddings$", "position_embedding"),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embedding."),
        (r"^layernorm\.", "final_norm."),
        (r"^(?:encoder\.layer|layers)\.(\d+)\.layernorm_before\.", r"layers.\1.attention_norm."),
        (r"^(?:encoder\.layer|layers)\.(\d+)\.layernorm_after\.", r"layers.\1.mlp_norm."),
        (r"^(?:encoder\.layer|layers)\.(\d+)\.attention\.([qkv])_proj\.", r"layers.\1.attention.\2_proj."),
        (r"^(?:encoder\.layer|layers)\.(\d+)\.attention\.attention\.([qkv])[a-z]+\.", r"layers.\1.attention.\2_proj."),
        (r"^(?:encoder\.layer|layers)\.(\d+)\.attention\.(?:o_proj|output\.dense)\.", r"layers.\1.attention.out_proj."),
        (r"^(?:encoder\.layer|layers)\.(\d+)\.(?:mlp\.fc1|intermediate\.dense)\.", r"layers.\1.mlp.fc1."),
        (r"^(?:encoder\.layer|layers)\.(\d+)\.(?:mlp\.fc2|output\.dense)\.", r"layers.\1.mlp.fc2."),
    )
    # The head of a classifier, a pooler, the decoder of its training.
    not_the_encoder: ClassVar[re.Pattern[str]] = re.compile(
        r"^(?:vit\.)?(?:pooler|(?:\w+_)?classifier|decoder|lm_head)\b"
    )

    usual_features: ClassVar[FeatureChoice] = FeatureChoice()

    @classmethod
    def check(cls, config: PretrainedConfig, features: FeatureChoice) -> None:
        """Raises ValueError for another activation than GELU, too."""
        super().check(config, features)
        if config.hidden_act != "gelu":
            raise ValueError(f"vision_config.hidden_act is {config.hidden_act!r}; the ViT here has 'gelu'.")

    @classmethod
    def num_first_tokens(cls, config: PretrainedConfig) -> int:
        """The class token."""
        return 1

    def __init__(
        self, config: PretrainedConfig, layers: Layers, features: FeatureChoice, name: str = "vision_encoder"
    ) -> None:
        super().__init__(config, layers, features, name)
        width = config.hidden_size
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, width))
        positions = self.num_features(config, FeatureChoice())
        self.position_embedding = nn.Parameter(torch.zeros(1, positions, width))

    def embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The class token before the patches, and positions added to all."""
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)  # [N, patches, D]
        class_token = self.class_embedding.expand(len(patches), -1, -1)
        return torch.cat([class_token, patches], dim=1) + self.position_embedding

    def initialise_embeddings(self, config: PretrainedConfig) -> None:
        """As Transformers' ViT."""
        for embedding in (self.class_embedding, self.position_embedding):
            nn.init.trunc_normal_(embedding, std=config.initializer_range)
