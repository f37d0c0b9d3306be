"""The connector from vLLM's parallel layers: image features to the language model's width."""

import torch
from torch import nn

from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.plugin.vllm_model_api import (
    ColumnParallelLinear,
    QuantizationConfig,
    RowParallelLinear,
    get_act_fn,
)


class Connector(nn.Module):
    """Linear, activation, Linear, split between the ranks along the width in the middle."""

    def __init__(self, config: QwenVqaConfig, quant_config: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        middle = config.connector["hidden_size"]
        self.linear_1 = ColumnParallelLinear(
            config.vision_config.hidden_size, middle, quant_config=quant_config, prefix=f"{prefix}.linear_1"
        )
        self.activation = get_act_fn(config.connector["activation"])
        self.linear_2 = RowParallelLinear(
            middle, config.text_config.hidden_size, quant_config=quant_config, prefix=f"{prefix}.linear_2"
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features [images, tokens, D_vision] to embeddings [images, tokens, D_text]."""
        hidden, _ = self.linear_1(features)
        return self.linear_2(self.activation(hidden))[0]
