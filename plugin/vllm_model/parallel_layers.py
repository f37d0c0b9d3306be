"""The components' layers by vLLM: split between the ranks of tensor parallelism, and quantised where asked."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from qwen_vqa.plugin.layers import Layers
from qwen_vqa.plugin.vllm_model_api import (
    AutoWeightsLoader,
    ColumnParallelLinear,
    Conv2dLayer,
    MMEncoderAttention,
    QKVParallelLinear,
    QuantizationConfig,
    ReplicatedLinear,
    RowParallelLinear,
    WeightsMapper,
    divide,
    get_act_fn,
    get_tensor_model_parallel_world_size,
)


class ParallelLayers(Layers):
    """Each rank has its share of a `column`'s outputs, a `row`'s inputs and an attention's heads.

    Args:
        quant_config: how the checkpoint says that its layers are quantised.
        prefix: where the model lies, for what vLLM knows by name.
        whole: each rank has all of each layer, and computes some of the images (`--mm-encoder-tp-mode data`).
    """

    def __init__(self, quant_config: QuantizationConfig | None, prefix: str, whole: bool = False) -> None:
        self.quant_config = quant_config
        self.whole = whole
        self.prefix = f"{prefix}." if prefix else ""

    def column(self, inputs: int, outputs: int, name: str, bias: bool = True) -> nn.Module:
        return ColumnParallelLinear(inputs, outputs, bias, disable_tp=self.whole, **self._common(name))

    def row(self, inputs: int, outputs: int, name: str, bias: bool = True) -> nn.Module:
        return RowParallelLinear(inputs, outputs, bias, disable_tp=self.whole, **self._common(name))

    def replicated(self, inputs: int, outputs: int, name: str, bias: bool = True) -> nn.Module:
        return ReplicatedLinear(inputs, outputs, bias, **self._common(name))

    def _common(self, name: str) -> dict[str, Any]:
        return {"quant_config": self.quant_config, "prefix": self.prefix + name, "return_bias": False}

    def attention(self, width: int, heads: int, name: str, qkv_bias: bool = True) -> nn.Module:
        return ParallelSelfAttention(width, heads, qkv_bias, self, name)

    def convolution(self, channels: int, width: int, patch: int, bias: bool = True) -> nn.Module:
        return Conv2dLayer(channels, width, kernel_size=patch, stride=patch, bias=bias)

    def activation(self, name: str) -> nn.Module:
        return get_act_fn(name)


class ParallelSelfAttention(nn.Module):
    """`Layers.attention` with query, key and value as one matrix; each rank computes its share of the heads."""

    # The checkpoint keeps the three apart. Names come with a dot before them: "v_proj" alone is in "qkv_proj", too.
    weight_names = WeightsMapper(
        orig_to_new_stacked={f".{part}_proj": ("qkv_proj", part) for part in "qkv"}, orig_to_new_prefix={".": ""}
    )

    def __init__(self, width: int, heads: int, qkv_bias: bool, layers: ParallelLayers, name: str) -> None:
        super().__init__()
        head_size, prefix = divide(width, heads), layers.prefix + name
        self.qkv_proj = QKVParallelLinear(
            hidden_size=width,
            head_size=head_size,
            total_num_heads=heads,
            bias=qkv_bias,
            quant_config=layers.quant_config,
            prefix=f"{prefix}.qkv_proj",
            return_bias=False,
            disable_tp=layers.whole,
        )
        self.attention = MMEncoderAttention(
            num_heads=divide(heads, 1 if layers.whole else get_tensor_model_parallel_world_size()),
            head_size=head_size,
            prefix=f"{prefix}.attention",
        )
        self.out_proj = layers.row(width, width, f"{name}.out_proj")

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, T, width] to the same."""
        qkv = self.qkv_proj(hidden)  # [N, T, 3 width / ranks]
        return self.out_proj(self.attention(*qkv.chunk(3, dim=-1)))

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Loads the checkpoint's weights; returns the names of the parameters that received one."""
        dotted = ((f".{name}", weight) for name, weight in weights)
        return AutoWeightsLoader(self).load_weights(dotted, mapper=self.weight_names)
