"""The vision encoder in plain PyTorch: google/vit's architecture under names that stay put.

transformers renames its ViT's internals between releases; a checkpoint of ours must not move with them.
"""

import torch
from torch import nn
from torch.nn import functional
from transformers import ViTConfig

from qwen_vqa.plugin.config import square_sizes


class VisionEncoder(nn.Module):
    """A ViT without its pooler (Dosovitskiy et al. 2021, arXiv:2010.11929)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        size, patch = square_sizes(config)
        num_patches = (size // patch) ** 2
        self.patch_embedding = nn.Conv2d(config.num_channels, width, kernel_size=patch, stride=patch)
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embedding = nn.Parameter(torch.zeros(1, num_patches + 1, width))
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.final_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels [images, 3, size, size] to features [images, 1 + patches, width], CLS first."""
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)  # [N, patches, D]
        class_token = self.class_embedding.expand(len(patches), -1, -1)
        hidden = torch.cat([class_token, patches], dim=1) + self.position_embedding
        for layer in self.layers:
            hidden = layer(hidden)
        return self.final_norm(hidden)


class EncoderLayer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = EncoderAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = EncoderMLP(config)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.attention(self.attention_norm(hidden))
        return hidden + self.mlp(self.mlp_norm(hidden))


class EncoderAttention(nn.Module):
    """Bidirectional multi-head self-attention."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.q_proj = nn.Linear(width, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, width, bias=config.qkv_bias)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            projection(hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [N, heads, T, D / heads]
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class EncoderMLP(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.fc2(functional.gelu(self.fc1(hidden)))
