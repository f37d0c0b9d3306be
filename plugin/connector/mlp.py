"""One to three Linear layers with GELU between them: LLaVA's `linear` and `mlpNx_gelu` connectors.

LLaVA-1.5's has two (Liu et al. 2023, arXiv:2310.03744); nanoVLM's and SmolVLM's have one, without a bias, behind a
pixel shuffle.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qwen_vqa.plugin.connector.pixel_shuffle import grid_side, pixel_shuffle
from qwen_vqa.plugin.layers import Layers

ACTIVATIONS = ("gelu",)  # the exact one
LINEARS = ("linear_1", "linear_2", "linear_3")
# What the layers are called by others: in an nn.Sequential with an activation after each, and alone.
WEIGHT_NAMES = (
    (r"^(?:(?:modality_projection\.)?proj\.)?(weight|bias)$", r"linear_1.\1"),  # SmolVLM, nanoVLM, LLaVA's `linear`
    (r"^0\.(weight|bias)$", r"linear_1.\1"),
    (r"^2\.(weight|bias)$", r"linear_2.\1"),
    (r"^4\.(weight|bias)$", r"linear_3.\1"),
)


@dataclass(frozen=True)
class ConnectorShape:
    """`connector` of config.json.

    Attributes:
        hidden_size: width between the Linear layers.
        activation: between them.
        num_layers: Linear layers, 1 to 3.
        bias: whether they have one.
        pixel_shuffle: side of the squares of features that are joined into one; 1 for none.
    """

    hidden_size: int
    activation: str = "gelu"
    num_layers: int = 2
    bias: bool = True
    pixel_shuffle: int = 1

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "ConnectorShape":
        """From config.json.

        Raises:
            ValueError: an unknown field, or a value that there is not.
        """
        if unknown := set(fields) - set(cls.__dataclass_fields__):
            raise ValueError(f"connector has unknown fields {sorted(unknown)}; remove them from config.json.")
        shape = cls(**fields)
        for name, value, fitting in (
            ("activation", shape.activation, ACTIVATIONS),
            ("num_layers", shape.num_layers, range(1, len(LINEARS) + 1)),
            ("bias", shape.bias, (True, False)),
        ):
            if value not in fitting:
                raise ValueError(f"connector.{name} is {value!r}; it must be one of {', '.join(map(str, fitting))}.")
        for name in ("hidden_size", "pixel_shuffle"):
            value = getattr(shape, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"connector.{name} is {value!r}; it must be a positive integer.")
        return shape

    def as_fields(self) -> dict[str, Any]:
        """For config.json: without defaults that older checkpoints do not have."""
        defaults = type(self)(self.hidden_size)
        written = {"hidden_size", "activation"}
        return {
            name: value for name, value in vars(self).items() if name in written or value != getattr(defaults, name)
        }

    def num_tokens(self, features: int) -> int:
        """How many embeddings so many features of a view become.

        Raises:
            ValueError: they are no square grid that the pixel shuffle divides.
        """
        if self.pixel_shuffle == 1:
            return features
        return (grid_side(features, self.pixel_shuffle) // self.pixel_shuffle) ** 2

    def describe(self, width_in: int, width_out: int) -> str:
        """In a few words, for people."""
        shuffle = f"pixel shuffle {self.pixel_shuffle}, " if self.pixel_shuffle > 1 else ""
        bias = "" if self.bias else ", without bias"
        return f"{shuffle}{' to '.join(map(str, self.widths(width_in, width_out)))}{bias}"

    def widths(self, width_in: int, width_out: int) -> list[int]:
        """Of what goes into the first layer, and of what comes out of each."""
        return [width_in * self.pixel_shuffle**2, *[self.hidden_size] * (self.num_layers - 1), width_out]

    @property
    def split_sizes(self) -> dict[str, int]:
        """What has to be a multiple of the number of ranks, by its field."""
        return {"connector.hidden_size": self.hidden_size} if self.num_layers > 1 else {}


class MlpConnector(nn.Module):
    """A view's features to embeddings. With tiles it learns what ends a row of their features, too."""

    image_newline: nn.Parameter | None

    def __init__(
        self,
        width_in: int,
        width_out: int,
        shape: ConnectorShape,
        layers: Layers,
        has_newline: bool = False,
        name: str = "connector",
    ) -> None:
        super().__init__()
        self.shape = shape
        widths = shape.widths(width_in, width_out)
        # Two layers are split between the ranks together; one that is left over is not split.
        split = [layers.column, layers.row] if shape.num_layers > 1 else []
        makers = [*split, *[layers.replicated] * (shape.num_layers - len(split))]
        for index, make in enumerate(makers):
            linear = LINEARS[index]
            self.add_module(linear, make(widths[index], widths[index + 1], f"{name}.{linear}", shape.bias))
        self.activation = layers.activation(shape.activation)
        # As LLaVA-NeXT draws it.
        self.image_newline = nn.Parameter(torch.randn(width_out) * width_out**-0.5) if has_newline else None

    @property
    def dtype(self) -> torch.dtype:
        """What features have to be, where the layers are PyTorch's."""
        return next(self.parameters()).dtype

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features [views, features, vision width] to embeddings [views, tokens, text width]."""
        hidden = pixel_shuffle(features, self.shape.pixel_shuffle)
        for index, linear in enumerate(LINEARS[: self.shape.num_layers]):
            hidden = getattr(self, linear)(self.activation(hidden) if index else hidden)
        return hidden
