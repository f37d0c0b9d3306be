"""An adapter merged into the language model's weights, by PEFT's own arithmetic, in float32.

That takes adapters that vLLM does not serve: DoRA, trained biases, modules_to_save, the output layer.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from qwen_vqa.plugin.errors import first_line_of
from qwen_vqa.plugin.lora.adapter import AdapterSummary, summary_of, weight_file
from qwen_vqa.plugin.lora.adapter_settings import AdapterError, read_settings
from qwen_vqa.train.model.reference_adapter import adapter_config, adapter_weights

# What cannot be written into the weights once and for all, or changes the base model's weights before training.
_NOT_MERGED = {
    "alora_invocation_tokens": "is active after some tokens only (aLoRA)",
    "layer_replication": "repeats layers",
}
_OTHER_BASES = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True)
class Merged:
    """A language model with an adapter in its weights.

    Attributes:
        model: the language model, in its own float type.
        adapter: what was merged.
        lost: what rounding to that float type took, as a share of what the adapter changes (0 in float32).
    """

    model: PreTrainedModel
    adapter: AdapterSummary
    lost: float


def merge_adapter(language_model: PreTrainedModel, folder: Path) -> Merged:
    """Merge a LoRA folder; where it changes tied embeddings on one side alone, they are parted.

    Raises:
        AdapterError: it does not fit this language model, holds no numbers, or cannot be merged.
    """
    settings = read_settings(folder)
    for field, what in _NOT_MERGED.items():
        if settings.get(field):
            raise AdapterError(f"the adapter {folder} {what}, and cannot be merged into the weights.")
    init = settings.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_OTHER_BASES):
        raise AdapterError(
            f"the adapter {folder} began with init_lora_weights {init!r}, which changes the base model, too. Save it "
            "with PEFT's path_initial_model_for_weight_conversion, which makes a plain LoRA of it."
        )
    weight_file(folder)  # without one, PEFT would look for it on the hub
    try:
        weights, config = adapter_weights(language_model, folder), adapter_config(language_model, folder)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise AdapterError(f"the adapter {folder} cannot be read: {first_line_of(error)}.") from error
    tied = _part_embeddings(language_model)
    try:
        with torch.random.fork_rng(devices=[]):  # on the CPU
            model = get_peft_model(language_model, config)
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # what PEFT raises for settings that fit nothing
        raise AdapterError(f"the adapter {folder} does not fit the language model: {first_line_of(error)}.") from error
    _place(model, weights, folder)
    changes_modules = any(isinstance(module, AuxiliaryTrainingWrapper) for module in model.modules())
    merged, changed, lost = merge_in_place(model, str(folder))
    if not changed and not changes_modules:
        raise AdapterError(
            f"the adapter {folder} would change nothing: every lora_B in it is zero, as before its first training "
            "step. Save it again after training."
        )
    if tied:
        _tie_if_equal(merged)
    return Merged(merged, summary_of(folder, settings, weights), lost)


def merge_in_place(model: PeftModel, name: str) -> tuple[PreTrainedModel, bool, float]:
    """The language model with its adapter in its weights: each layer is merged in float32, and rounded once.

    Args:
        name: the adapter's, for messages.

    Returns:
        The language model in the float type that its own layers had, whether a layer changed, and what rounding took
        of the change.
    """
    base: Any = model.get_base_model()
    dtype = base.get_input_embeddings().weight.dtype
    changed, rounded = _merge_layers(model, name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All adapters are already merged")  # each was, in float32
        merged = model.merge_and_unload()
    return merged.to(dtype), bool(changed), math.sqrt(rounded / changed) if changed else 0.0


def _place(model: PeftModel, weights: dict[str, torch.Tensor], folder: Path) -> None:
    try:
        result: Any = set_peft_model_state_dict(model, weights)
    except (RuntimeError, KeyError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise AdapterError(f"the adapter {folder} does not fit the language model: {' '.join(lines[:3])}") from error
    if strangers := list(result.unexpected_keys):
        raise AdapterError(
            f"{len(strangers)} tensors of the adapter {folder} have no place in the language model, such as "
            f"{strangers[0]}."
        )
    missing = [name for name in result.missing_keys if "lora_" in name or "modules_to_save" in name]
    if missing:
        raise AdapterError(f"the adapter {folder} lacks {len(missing)} tensors, such as {missing[0]}. Save it again.")


def _merge_layers(model: PeftModel, adapter: str) -> tuple[float, float]:
    """Sums of squares: of what the layers' weights changed by, and of what rounding them moved them by."""
    changed = rounded = 0.0
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        base: Any = layer.get_base_layer()
        dtype, before = base.weight.dtype, base.weight.detach().float()
        _hold(base, torch.float32)
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:  # PEFT's: values that are not numbers
            raise AdapterError(f"the adapter {adapter} cannot be merged at {name}: {error}") from error
        exact = base.weight.detach()
        _hold(base, dtype)
        changed += float((exact - before).double().square().sum())
        rounded += float((base.weight.detach().float() - exact).double().square().sum())
    return changed, rounded


def _hold(layer: nn.Module, dtype: torch.dtype) -> None:
    """New tensors, so that a weight which another layer shares stays as it is."""
    for name, parameter in layer.named_parameters(recurse=False):
        setattr(layer, name, nn.Parameter(parameter.detach().to(dtype, copy=True), requires_grad=False))


def _part_embeddings(model: PreTrainedModel) -> bool:
    """Give the output layer numbers of its own where it shares the input embeddings'; whether it did."""
    output: Any = model.get_output_embeddings()
    embeddings: Any = model.get_input_embeddings()
    if output is None or output.weight is not embeddings.weight:
        return False
    output.weight = nn.Parameter(output.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    return True


def _tie_if_equal(model: PreTrainedModel) -> None:
    output: Any = model.get_output_embeddings()
    embeddings: Any = model.get_input_embeddings()
    if torch.equal(output.weight, embeddings.weight):
        output.weight = embeddings.weight
        model.config.tie_word_embeddings = True
