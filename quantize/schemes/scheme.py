"""The interface of a scheme: a Linear layer's weight to what the checkpoint holds in its place, and back."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from importlib import import_module
from typing import Any, ClassVar

import torch

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.quantization import FACTS, scheme_of

Tensors = dict[str, torch.Tensor]
GROUP_SIZES = (32, 64, 128)
_CLASSES = {
    "int8": "qwen_vqa.quantize.schemes.int8:Int8",
    "int4": "qwen_vqa.quantize.schemes.int4:Int4",
    "nf4": "qwen_vqa.quantize.schemes.nf4:NF4",
    "int8-bnb": "qwen_vqa.quantize.schemes.int8_bnb:Int8BitsAndBytes",
    "fp8": "qwen_vqa.quantize.schemes.fp8:FP8",
}


class Scheme(ABC):
    """How one Linear layer is stored in 8 or 4 bits.

    Tensors of a layer are named by what follows the layer's name in the checkpoint: `weight`, `weight_scale`, ...
    """

    name: ClassVar[str]
    # Of storage for each weight, with the scales that groups or blocks share; those of whole rows are left out.
    bits: float
    # Whether `quantise` is only the starting point of a calibration.
    calibrated: ClassVar[bool] = False

    def check_shapes(self, shapes: dict[str, tuple[int, int]]) -> None:  # noqa: B027 - most schemes take any shape
        """Raise UserError for layers (name to [out, in]) that the scheme, or what serves it, cannot have."""

    @abstractmethod
    def quantise(self, weight: torch.Tensor) -> Tensors:
        """A weight [out, in] to the tensors that replace it, by rounding to nearest."""

    @abstractmethod
    def dequantise(self, tensors: Tensors) -> torch.Tensor:
        """The weight [out, in] in float32 that the tensors stand for."""

    @abstractmethod
    def tensor_names(self) -> tuple[str, ...]:
        """Beginnings of the names that `dequantise` needs, `weight` first."""

    @abstractmethod
    def config(self, skipped: Iterable[str]) -> dict[str, Any]:
        """config.json's `quantization_config`; `skipped` are modules whose Linear layers stay as they are."""

    def round_activations(self, inputs: torch.Tensor) -> torch.Tensor:
        """A layer's input [..., in] as the server's kernel sees it: weight-only schemes leave it alone."""
        return inputs


def largest_group_size(shapes: dict[str, tuple[int, int]]) -> int:
    """The largest group size that divides the inputs of all layers (name to [out, in]).

    Where none does it is the smallest, at which `check_shapes` says so.
    """
    widths = {width for _, width in shapes.values()}
    return max((size for size in GROUP_SIZES if not any(width % size for width in widths)), default=GROUP_SIZES[0])


def make_scheme(name: str, group_size: int = 128) -> Scheme:
    """The scheme of a name; `group_size` is for those that have groups."""
    module, class_name = _CLASSES[name].split(":")
    scheme = getattr(import_module(module), class_name)
    return scheme(group_size) if name == "int4" else scheme()


def scheme_from_config(config: dict[str, Any]) -> Scheme:
    """The scheme that a checkpoint's `quantization_config` describes.

    Raises:
        UserError: it is none of ours.
    """
    facts = scheme_of(config)
    group_size = 128
    if facts.name == "int4":
        group_size = next(iter(config["config_groups"].values()))["weights"]["group_size"]
    return make_scheme(facts.name, group_size)


def check_scheme(name: str) -> None:
    """Raises UserError for an unknown scheme."""
    if name not in FACTS:
        raise UserError(f"--scheme {name}: it must be one of {', '.join(FACTS)}.")


def compressed_tensors_config(
    weights: dict[str, Any], activations: dict[str, Any] | None, layout: str, skipped: Iterable[str]
) -> dict[str, Any]:
    """A `quantization_config` of compressed-tensors for all Linear layers but those in `skipped` modules."""
    ignore = [rf"re:^{re.escape(name)}($|\..*)" for name in skipped]
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"dynamic": False, "symmetric": True, **weights},
                "input_activations": activations,
                "output_activations": None,
                "format": layout,
            }
        },
        "ignore": ignore,
        "kv_cache_scheme": None,
    }
