"""The vision encoder from vLLM's parallel layers: train/model/reference_encoder.py's numbers and weight names."""

from collections.abc import Iterable

import torch
from torch import nn
from transformers.configuration_utils import PretrainedConfig

from qwen_vqa.plugin.vllm_model_api import (
    AutoWeightsLoader,
    ColumnParallelLinear,
    Conv2dLayer,
    MMEncoderAttention,
    QKVParallelLinear,
    QuantizationConfig,
    RowParallelLinear,
    WeightsMapper,
    divide,
    get_act_fn,
    get_tensor_model_parallel_world_size,
)


class VisionEncoder(nn.Module):
    """A ViT without its pooler (Dosovitskiy et al. 2021, arXiv:2010.11929), split by attention heads."""

    # The checkpoint keeps q, k and v apart; the layer that computes them holds them as one matrix.
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_stacked={
            ".q_proj": (".qkv_proj", "q"),
            ".k_proj": (".qkv_proj", "k"),
            ".v_proj": (".qkv_proj", "v"),
        }
    )

    def __init__(self, config: PretrainedConfig, quant_config: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        num_patches = (config.image_size // patch) ** 2
        self.patch_embedding = Conv2dLayer(config.num_channels, width, kernel_size=patch, stride=patch)
        self.class_embedding = nn.Parameter(torch.empty(1, 1, width))
        self.position_embedding = nn.Parameter(torch.empty(1, num_patches + 1, width))
        self.layers = nn.ModuleList(
            EncoderLayer(config, quant_config, f"{prefix}.layers.{index}") for index in range(config.num_hidden_layers)
        )
        self.final_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels [images, 3, size, size] to features [images, 1 + patches, width], CLS first."""
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)  # [N, patches, D]
        class_token = self.class_embedding.expand(len(patches), -1, -1)
        hidden = torch.cat([class_token, patches], dim=1) + self.position_embedding
        for layer in self.layers:
            hidden = layer(hidden)
        return self.final_norm(hidden)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Loads the checkpoint's weights; returns the names of the parameters that received one."""
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)


class EncoderLayer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: PretrainedConfig, quant_config: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = EncoderAttention(config, quant_config, f"{prefix}.attention")
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = EncoderMLP(config, quant_config, f"{prefix}.mlp")

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.attention(self.attention_norm(hidden))
        return hidden + self.mlp(self.mlp_norm(hidden))


class EncoderAttention(nn.Module):
    """Bidirectional multi-head self-attention; each rank computes its share of the heads."""

    def __init__(self, config: PretrainedConfig, quant_config: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        width, num_heads = config.hidden_size, config.num_attention_heads
        head_size = divide(width, num_heads)
        self.qkv_proj = QKVParallelLinear(
            hidden_size=width,
            head_size=head_size,
            total_num_heads=num_heads,
            bias=config.qkv_bias,
            quant_config=quant_config,
            prefix=f"{prefix}.qkv_proj",
        )
        self.attention = MMEncoderAttention(
            num_heads=divide(num_heads, get_tensor_model_parallel_world_size()),
            head_size=head_size,
            prefix=f"{prefix}.attention",
        )
        self.out_proj = RowParallelLinear(width, width, quant_config=quant_config, prefix=f"{prefix}.out_proj")

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        qkv, _ = self.qkv_proj(hidden)  # [N, T, 3 D / ranks]
        mixed = self.attention(*qkv.chunk(3, dim=-1))
        return self.out_proj(mixed)[0]


class EncoderMLP(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, config: PretrainedConfig, quant_config: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        self.fc1 = ColumnParallelLinear(
            config.hidden_size, config.intermediate_size, quant_config=quant_config, prefix=f"{prefix}.fc1"
        )
        self.activation = get_act_fn(config.hidden_act)
        self.fc2 = RowParallelLinear(
            config.intermediate_size, config.hidden_size, quant_config=quant_config, prefix=f"{prefix}.fc2"
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.fc1(hidden)
        return self.fc2(self.activation(hidden))[0]
