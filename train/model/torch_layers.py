"""The components' layers in plain PyTorch: for training, and as what serving is held against."""

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import ACT2FN

from qwen_vqa.plugin.layers import Layers


class TorchLayers(Layers):
    """Unsplit: `column`, `row` and `replicated` are all an nn.Linear."""

    def column(self, inputs: int, outputs: int, name: str, bias: bool = True) -> nn.Linear:
        return nn.Linear(inputs, outputs, bias)

    row = replicated = column

    def attention(self, width: int, heads: int, name: str, qkv_bias: bool = True) -> nn.Module:
        return SelfAttention(width, heads, qkv_bias)

    def convolution(self, channels: int, width: int, patch: int, bias: bool = True) -> nn.Conv2d:
        return nn.Conv2d(channels, width, kernel_size=patch, stride=patch, bias=bias)

    def activation(self, name: str) -> nn.Module:
        return ACT2FN[name]


class SelfAttention(nn.Module):
    """`Layers.attention` with one Linear for each of query, key and value."""

    def __init__(self, width: int, heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=qkv_bias)
        self.k_proj = nn.Linear(width, width, bias=qkv_bias)
        self.v_proj = nn.Linear(width, width, bias=qkv_bias)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, T, width] to the same."""
        query, key, value = (
            projection(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [N, heads, T, width / heads]
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))
