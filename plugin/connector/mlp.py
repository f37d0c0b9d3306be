"""Linear, activation, Linear: LLaVA-1.5's connector (Liu et al. 2023, arXiv:2310.03744)."""

from typing import Any

import torch
from torch import nn

from qwen_vqa.plugin.layers import Layers

ACTIVATIONS = ("gelu",)  # the exact one
FIELDS = ("hidden_size", "activation")


class MlpConnector(nn.Module):
    """Image features to embeddings, one for each."""

    @staticmethod
    def check(fields: dict[str, Any]) -> None:
        """Raises ValueError for fields of config.json's `connector` that there are not."""
        if fields["activation"] not in ACTIVATIONS:
            raise ValueError(
                f"connector.activation is {fields['activation']!r}; it must be one of {', '.join(ACTIVATIONS)}."
            )
        if unknown := set(fields) - set(FIELDS):
            raise ValueError(f"connector has unknown fields {sorted(unknown)}; remove them from config.json.")

    @staticmethod
    def num_tokens(features: int) -> int:
        """How many embeddings so many features of a view become."""
        return features

    @staticmethod
    def split_sizes(fields: dict[str, Any]) -> dict[str, int]:
        """What has to be a multiple of the number of ranks, by its field."""
        return {"connector.hidden_size": fields["hidden_size"]}

    def __init__(
        self, width_in: int, width_out: int, fields: dict[str, Any], layers: Layers, name: str = "connector"
    ) -> None:
        super().__init__()
        middle = fields["hidden_size"]
        self.linear_1 = layers.column(width_in, middle, f"{name}.linear_1")
        self.activation = layers.activation(fields["activation"])
        self.linear_2 = layers.row(middle, width_out, f"{name}.linear_2")

    @property
    def dtype(self) -> torch.dtype:
        """What features have to be, where the layers are PyTorch's."""
        return next(self.parameters()).dtype

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features [..., vision width] to embeddings [..., text width]."""
        return self.linear_2(self.activation(self.linear_1(features)))
