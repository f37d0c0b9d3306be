"""SigLIP (Zhai et al. 2023, arXiv:2303.15343), and SigLIP 2 of fixed resolution (arXiv:2502.14786)."""

import re
from typing import ClassVar

import torch
from torch import nn
from transformers.configuration_utils import PretrainedConfig

from qwen_vqa.plugin.layers import Layers
from qwen_vqa.plugin.vision.features import FeatureChoice
from qwen_vqa.plugin.vision.tower import VisionEncoder, square_sizes


class SiglipEncoder(VisionEncoder):
    """One feature a patch, and no class token."""

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

    # As SmolVLM has it; LLaVA-NeXT and others take layer -2 without the norm.
    usual_features: ClassVar[FeatureChoice] = FeatureChoice()

    @classmethod
    def check(cls, config: PretrainedConfig, features: FeatureChoice) -> None:
        """Any square: what is left of a row of pixels after the last whole patch is not looked at.

        Raises:
            ValueError: the class token is to be dropped, and there is none: LLaVA's select strategy "default" would
                drop a patch in its place.
        """
        features.depths(config.num_hidden_layers)
        square_sizes(config)
        if not features.class_token:
            raise ValueError("vision_features.class_token is false, and a SigLIP has no class token to drop.")

    @classmethod
    def num_first_tokens(cls, config: PretrainedConfig) -> int:
        """None."""
        return 0

    def __init__(
        self, config: PretrainedConfig, layers: Layers, features: FeatureChoice, name: str = "vision_encoder"
    ) -> None:
        super().__init__(config, layers, features, name)
        width = config.hidden_size
        self.position_embedding = nn.Parameter(torch.zeros(self.num_features(config, features), width))

    def embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Patches, and positions added to them."""
        return self.patch_embedding(pixel_values).flatten(2).transpose(1, 2) + self.position_embedding

    def initialise_embeddings(self, config: PretrainedConfig) -> None:
        """As Transformers' SigLIP, which goes by the width."""
        nn.init.normal_(self.position_embedding, std=config.hidden_size**-0.5)
