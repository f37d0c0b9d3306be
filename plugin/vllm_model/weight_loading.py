"""Loading that leaves nothing out: missing, unexpected and misshapen weights raise, with their names.

vLLM alone lets all three pass somewhere: it does not look for missing weights in Linear layers, drops
a bias that the model lacks, and takes the first rows of a matrix that is too large.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from qwen_vqa.plugin.vllm_model_api import (
    AutoWeightsLoader,
    BaseKVCacheMethod,
    LinearBase,
    MergedColumnParallelLinear,
    PPMissingLayer,
    QKVParallelLinear,
    StageMissingLayer,
    UnquantizedLinearMethod,
    VocabParallelEmbedding,
)

Weights = Iterable[tuple[str, torch.Tensor]]
_NAMES_SHOWN = 20


def load_all_weights(model: nn.Module, stacks: dict[str, list[str]], weights: Weights) -> set[str]:
    """Load a checkpoint's weights into a model.

    Args:
        model: the model, empty.
        stacks: layers that hold several of the checkpoint's: `qkv_proj` to `q_proj`, `k_proj`, `v_proj`.
        weights: names and tensors of the checkpoint.

    Returns:
        The names of the parameters that received a weight.

    Raises:
        ValueError: a parameter (or a part of a stacked one) without a weight, a weight without a place,
            or one of another shape than the config says. The message names them.
    """
    places = _Places(model, stacks)
    seen: list[str] = []
    remaining = iter(weights)

    def checked() -> Iterator[tuple[str, torch.Tensor]]:
        for name, weight in remaining:
            seen.append(name)
            places.check_shape(name, weight)
            yield name, weight

    try:
        loaded = AutoWeightsLoader(model).load_weights(checked())
    except (AssertionError, KeyError, ValueError) as error:
        if isinstance(error, WeightShapeError) or not seen or places.has(seen[-1]):
            raise ValueError(f"the checkpoint does not fit the model at {seen[-1:]}: {error}") from error
        unplaced = [name for name in (*seen, *(name for name, _ in remaining)) if not places.has(name)]
        raise ValueError(f"the model has no place for {_listed(unplaced)}. {error}") from error

    if missing := places.missing(set(seen), loaded):
        raise ValueError(
            f"the checkpoint lacks {_listed(missing)}. It was not saved completely, or config.json "
            "describes another model."
        )
    if ignored := [name for name in seen if places.ignores(name)]:
        raise ValueError(f"the model has no place for {_listed(ignored)}; config.json describes another model.")
    return loaded


class WeightShapeError(ValueError):
    """A weight of another shape than the model's."""


class _Places:
    """Which names of a checkpoint go to which parameters of the model."""

    def __init__(self, model: nn.Module, stacks: dict[str, list[str]]) -> None:
        self.modules = dict(model.named_modules())
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        self.required = [
            name
            for name, _ in model.named_parameters()
            # Scales of the KV cache have defaults; a checkpoint need not bring them.
            if not isinstance(getattr(self._owner(name), "quant_method", None), BaseKVCacheMethod)
        ]
        self.stacks = stacks
        self.stack_of = {part: stack for stack, parts in self.stacks.items() for part in parts}
        self.quantised = any(
            isinstance(module, LinearBase) and not isinstance(module.quant_method, UnquantizedLinearMethod)
            for module in self.modules.values()
        )

    def _owner(self, name: str) -> nn.Module | None:
        return self.modules.get(name.rpartition(".")[0])

    def stacked(self, name: str) -> tuple[str, str | None]:
        """`0.q_proj.weight` to (`0.qkv_proj.weight`, `q_proj`); what is not stacked to itself and None."""
        module, _, leaf = name.rpartition(".")
        parent, _, part = module.rpartition(".")
        if part not in self.stack_of or self._owner(name) is not None:
            return name, None
        return f"{parent}.{self.stack_of[part]}.{leaf}", part

    def unstacked(self, parameter: str) -> list[str]:
        """The names under which a checkpoint may bring a parameter: the reverse of `stacked`."""
        module, _, leaf = parameter.rpartition(".")
        parent, _, stack = module.rpartition(".")
        return [f"{parent}.{part}.{leaf}" for part in self.stacks.get(stack, ())] or [parameter]

    def has(self, name: str) -> bool:
        """Whether a weight has a parameter here, or belongs to a part that another rank or nobody holds."""
        if self.stacked(name)[0] in self.parameters:
            return True
        parents = name.split(".")
        return any(
            isinstance(self.modules.get(".".join(parents[:depth])), PPMissingLayer | StageMissingLayer)
            for depth in range(1, len(parents))
        )

    def ignores(self, name: str) -> bool:
        """Whether vLLM dropped this weight: a bias for a layer without one (GPTQ writes such, of zeros)."""
        owner = self._owner(self.stacked(name)[0])
        return not self.quantised and name.endswith(".bias") and owner is not None and not self.has(name)

    def missing(self, seen: set[str], loaded: set[str]) -> list[str]:
        """Names that the checkpoint should have brought."""
        absent = []
        for parameter in self.required:
            names = self.unstacked(parameter)
            # Loaded under none of its names: the language model's own code renames this weight.
            if parameter not in loaded or not seen.isdisjoint(names):
                absent += [name for name in names if name not in seen and parameter not in seen]
        return absent

    def check_shape(self, name: str, weight: torch.Tensor) -> None:
        """Raise WeightShapeError for an unquantised weight or bias of another shape than its layer's."""
        place, part = self.stacked(name)
        layer, leaf = self._owner(place), name.rpartition(".")[2]
        if place not in self.parameters or leaf not in ("weight", "bias"):
            return
        if isinstance(layer, LinearBase) and isinstance(layer.quant_method, UnquantizedLinearMethod):
            rows = _rows(layer, self.stacks[self.stack_of[part]].index(part) if part else None)
            expected = [rows, layer.input_size] if leaf == "weight" else [rows]
        elif isinstance(layer, VocabParallelEmbedding) and leaf == "weight":
            expected = [layer.org_vocab_size, layer.embedding_dim]
        else:
            return
        # Some language models (GPT2) keep their matrices transposed.
        if list(weight.shape) not in (expected, expected[::-1]):
            raise WeightShapeError(f"the weight is {list(weight.shape)}, config.json makes it {expected}")


def _rows(layer: LinearBase, part: int | None) -> int:
    """Output width of a layer over all ranks, or of one part of a stacked layer."""
    if isinstance(layer, QKVParallelLinear):
        # Not its output_size, which counts a KV head again for each rank that holds a copy.
        key_value = layer.total_num_kv_heads
        parts = (
            layer.total_num_heads * layer.head_size,
            key_value * layer.head_size,
            key_value * layer.v_head_size,
        )
        return sum(parts) if part is None else parts[part]
    if part is not None and isinstance(layer, MergedColumnParallelLinear):
        return layer.output_sizes[part]
    return layer.output_size


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{len(names)} weights: {', '.join(sorted(names)[:_NAMES_SHOWN])}{more}"
