"""A LoRA folder against the language model it is meant for, by names and shapes, before anything heavy.

vLLM answers "Success" to an adapter whose names match nothing, and serves the base model unchanged.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM

from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.plugin.errors import reason_of
from qwen_vqa.plugin.lora.adapter_names import OTHER_PART, OUTPUT_LAYER, language_model_name, layer_prefix
from qwen_vqa.plugin.lora.adapter_settings import (
    CONFIG_FILE,
    AdapterError,
    rank_of,
    read_settings,
    trained_on,
    unsupported,
)

WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")

# PEFT's copy of the base model's own output layer, beside an adapter on it.
_BASE_LAYER = ".base_layer."
_TENSOR_NAME = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_EXAMPLES = 3


@dataclass(frozen=True)
class AdapterSummary:
    """What an adapter holds.

    Attributes:
        name: its folder's name, under which it is served.
        rank: the highest rank in it.
        alpha: its scaling before division by the rank.
        target_modules: kinds of Linear layers it changes, such as `q_proj`.
        num_tensors: tensors in its file.
    """

    name: str
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    num_tensors: int


Layers = Mapping[str, tuple[int, int]]


def check_adapter(adapter_dir: str | Path, config: QwenVqaConfig, layers: Layers | None = None) -> AdapterSummary:
    """Compare every tensor of an adapter with the language model's Linear layers.

    Reads the whole file: a value that is no number would be served as nonsense.

    Args:
        layers: `linear_layers(config)`, by who has them at hand.

    Raises:
        AdapterError: files are missing or unreadable, the adapter is of a kind that vLLM does not serve,
            a tensor has no place, another shape or values that are no numbers, or the adapter would change nothing.
    """
    folder = Path(adapter_dir)
    settings = read_settings(folder)
    if problems := list(unsupported(settings)):
        raise AdapterError(
            f"the adapter {folder} has {' and '.join(problems)}, which vLLM does not serve. `qwen-vqa assemble "
            "--adapter` merges it into the language model; or train a plain LoRA."
        )
    shapes, changes_something, broken = _contents(folder)
    pairs = _pairs(folder, shapes)
    layers = linear_layers(config) if layers is None else layers
    _check_names(folder, settings, pairs, layers)
    prefix = layer_prefix(layers)
    for module, pair in pairs.items():
        _check_pair(folder, settings, module, pair, layers[language_model_name(module, prefix)])
    if broken:
        raise AdapterError(
            f"the adapter {folder} holds values that are no numbers (NaN or infinite) in {broken}: its training "
            "diverged, or the file is broken. Take an earlier checkpoint."
        )
    if not changes_something:
        raise AdapterError(
            f"the adapter {folder} would change nothing: every lora_B in it is zero, as before its first "
            "training step. Save it again after training."
        )
    return summary_of(folder, settings, shapes)


def summary_of(folder: Path, settings: Mapping[str, Any], names: Iterable[str]) -> AdapterSummary:
    """What an adapter with these settings and tensor names holds."""
    names = list(names)
    modules = {match["module"] for name in names if (match := _TENSOR_NAME.fullmatch(name))}
    return AdapterSummary(
        name=folder.name,
        rank=max([settings["r"], *(settings.get("rank_pattern") or {}).values()]),
        alpha=settings["lora_alpha"],
        target_modules=tuple(sorted({module.rpartition(".")[2] for module in modules})),
        num_tensors=len(names),
    )


def linear_layers(config: QwenVqaConfig) -> dict[str, tuple[int, int]]:
    """Names of the language model's Linear layers, and their widths (in, out). No memory is taken."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config.text_config)
    return {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def _contents(folder: Path) -> tuple[dict[str, tuple[int, ...]], bool, str | None]:
    """Shapes of the file's tensors by name, whether any lora_B holds something other than zero, and the name of a
    tensor that holds values which are no numbers.
    """
    path = weight_file(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    changes_something, broken = False, None
    try:
        for name, tensor in _tensors(path):
            shapes[name] = tuple(tensor.shape)
            changes_something |= ".lora_B." in name and bool(tensor.any())
            if broken is None and not bool(tensor.isfinite().all()):
                broken = name
    except (SafetensorError, UnpicklingError, OSError, RuntimeError, ValueError, AttributeError) as error:
        raise AdapterError(f"{path} cannot be read: {reason_of(error)}. Copy the adapter again.") from error
    return shapes, changes_something, broken


def weight_file(folder: Path) -> Path:
    """An adapter's file of tensors.

    Raises:
        AdapterError: there is none.
    """
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise AdapterError(f"the adapter {folder} has no weights: {' or '.join(WEIGHT_FILES)} is missing.")
    return path


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """A weight file's tensors, of a safetensors file one at a time."""
    if path.suffix == ".bin":
        yield from torch.load(path, map_location="cpu", weights_only=True).items()
        return
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
            yield name, file.get_tensor(name)


def _pairs(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Module names as in the file, each with the shapes of its "A" and "B"."""
    pairs: dict[str, dict[str, tuple[int, ...]]] = {}
    strange = []
    for name, shape in shapes.items():
        if match := _TENSOR_NAME.fullmatch(name):
            pairs.setdefault(match["module"], {})[match["side"]] = shape
        elif _BASE_LAYER not in name:
            strange.append(name)
    if strange:
        raise AdapterError(
            f"the adapter {folder} has {len(strange)} tensors that are no lora_A or lora_B of a Linear "
            f"layer, such as {_examples(strange)}; they cannot be served."
        )
    if not pairs:
        raise AdapterError(f"the adapter {folder} is empty: its file holds no tensors.")
    for module, pair in pairs.items():
        for side in "AB":
            if side not in pair:
                raise AdapterError(f"the adapter {folder} has no lora_{side} for {module}. Save it again.")
    return pairs


def _check_names(folder: Path, settings: Mapping[str, Any], pairs: Mapping[str, Any], layers: Layers) -> None:
    prefix = layer_prefix(layers)
    if any(language_model_name(module, prefix) == OUTPUT_LAYER for module in pairs):
        raise AdapterError(
            f"the adapter {folder} changes {OUTPUT_LAYER}, which vLLM serves without adapters. `qwen-vqa assemble "
            "--adapter` merges it into the language model; or train one without it."
        )
    layers = {name: widths for name, widths in layers.items() if name != OUTPUT_LAYER}
    unmatched = [module for module in pairs if language_model_name(module, prefix) not in layers]
    if not unmatched:
        return
    kinds = {module.rpartition(".")[2] for module in unmatched}
    expected = [f"base_model.model.{name}" for name in layers if name.rpartition(".")[2] in kinds]
    expected = expected or [f"base_model.model.{name}" for name in layers]
    others = [module for module in unmatched if OTHER_PART.search(module.removeprefix("base_model.model."))]
    if len(others) == len(unmatched):
        why = "They belong to another part of the model; only the language model's adapter is taken."
    else:
        why = trained_on(settings)
    raise AdapterError(
        f"{len(unmatched)} of {len(pairs)} layers in the adapter {folder} do not exist in the language "
        f"model. Found: {_examples(unmatched)}. Expected names such as: {_examples(expected)}. {why}"
    )


def _check_pair(
    folder: Path,
    settings: Mapping[str, Any],
    module: str,
    pair: Mapping[str, tuple[int, ...]],
    layer: tuple[int, int],
) -> None:
    """A must be [rank, in], B [out, rank]."""
    width_in, width_out = layer
    rank = rank_of(settings, module.removeprefix("base_model.model."))
    found, expected = (pair["A"], pair["B"]), ((rank, width_in), (width_out, rank))
    if found == expected:
        return
    rank_free = (pair["A"][1:], pair["B"][:1]) == ((width_in,), (width_out,))
    if rank_free:
        raise AdapterError(
            f"the adapter {folder} says rank {rank} for {module}, but its lora_A is {list(pair['A'])} and "
            f"its lora_B {list(pair['B'])}: {CONFIG_FILE} belongs to other weights."
        )
    raise AdapterError(
        f"the adapter {folder} does not fit at {module}: lora_A {list(found[0])} and lora_B "
        f"{list(found[1])}, where the language model takes {list(expected[0])} and {list(expected[1])}. "
        f"{trained_on(settings)}"
    )


def _examples(names: list[str]) -> str:
    more = ", ..." if len(names) > _EXAMPLES else ""
    return ", ".join(names[:_EXAMPLES]) + more
