"""CLIP's vision side (Radford et al. 2021, arXiv:2103.00020), as LLaVA-1.5 has it: openai/clip-vit-*, laion's."""

import re
from typing import ClassVar

import torch
from torch import nn
from transformers.configuration_utils import PretrainedConfig

from qwen_vqa.plugin.layers import Layers
from qwen_vqa.plugin.vision.features import FeatureChoice
from qwen_vqa.plugin.vision.tower import VisionEncoder, square_sizes


class ClipEncoder(VisionEncoder):
    """Usually the layer before the last, without the last norm (which CLIP gives the class token alone)."""

    model_type: ClassVar[str] = "clip_vision_model"
    example: ClassVar[str] = "openai/clip-vit-large-patch14-336"
    transformers_class: ClassVar[str] = "CLIPVisionModel"
    # With "vision_model." before them up to transformers 4.x; the first norm's name is spelt so there.
    weight_names: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^(?:vision_model\.)?embeddings\.class_embedding$", "class_embedding"),
        (r"^(?:vision_model\.)?embeddings\.patch_embedding\.", "patch_embedding."),
        (r"^(?:vision_model\.)?embeddings\.position_embedding\.weight$", "position_embedding"),
        (r"^(?:vision_model\.)?pre_layrnorm\.", "first_norm."),
        (r"^(?:vision_model\.)?post_layernorm\.", "final_norm."),
        (r"^(?:vision_model\.)?encoder\.layers\.(\d+)\.layer_norm1\.", r"layers.\1.attention_norm."),
        (r"^(?:vision_model\.)?encoder\.layers\.(\d+)\.layer_norm2\.", r"layers.\1.mlp_norm."),
        (r"^(?:vision_model\.)?encoder\.layers\.(\d+)\.self_attn\.", r"layers.\1.attention."),
        (r"^(?:vision_model\.)?encoder\.layers\.(\d+)\.mlp\.", r"layers.\1.mlp."),
    )
    # The projections, and the side of the text.
    not_the_encoder: ClassVar[re.Pattern[str]] = re.compile(r"^(?:text_model|\w+_projection|logit_\w+)\b")
    patch_bias: ClassVar[bool] = False
    usual_features: ClassVar[FeatureChoice] = FeatureChoice((-2,), norm=False, class_token=False)

    @classmethod
    def check(cls, config: PretrainedConfig, features: FeatureChoice) -> None:
        """Any square: what is left of a row of pixels after the last whole patch is not looked at."""
        features.depths(config.num_hidden_layers)
        square_sizes(config)

    @classmethod
    def num_first_tokens(cls, config: PretrainedConfig) -> int:
        """The class token."""
        return 1

    def __init__(
        self, config: PretrainedConfig, layers: Layers, features: FeatureChoice, name: str = "vision_encoder"
    ) -> None:
        super().__init__(config, layers, features, name)
        width = config.hidden_size
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.position_embedding = nn.Parameter(torch.zeros(self.num_features(config, FeatureChoice()), width))
        self.first_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The class token before the patches, positions added to all, and a norm."""
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)  # [N, patches, D]
        class_token = self.class_embedding.expand(len(patches), 1, -1)
        return self.first_norm(torch.cat([class_token, patches], dim=1) + self.position_embedding)

    def initialise_embeddings(self, config: PretrainedConfig) -> None:
        """As Transformers' CLIP."""
        nn.init.normal_(self.class_embedding, std=config.hidden_size**-0.5 * config.initializer_factor)
        nn.init.normal_(self.position_embedding, std=config.initializer_range * config.initializer_factor)
