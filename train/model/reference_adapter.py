"""A LoRA folder onto the reference's language model, whichever of the known shapes its names have."""

import re
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from peft.utils.other import get_pattern_key
from transformers import PreTrainedModel

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.lora.adapter_names import language_model_name, layer_prefix

_LORA_A = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?:embedding_)?A(?:\.weight)?")


def attach_adapter(language_model: PreTrainedModel, folder: str | Path) -> PeftModel:
    """The language model with the adapter in place, in eval mode.

    Raises:
        UserError: tensors of the adapter found no place.
    """
    weights = adapter_weights(language_model, folder)
    model = get_peft_model(language_model, adapter_config(language_model, folder))
    strangers = set_peft_model_state_dict(model, weights).unexpected_keys  # type: ignore[attr-defined] # torch's
    if strangers:
        raise UserError(f"the adapter {folder} has tensors without a place: {strangers[:4]}.")
    return model.eval()


def adapter_weights(language_model: PreTrainedModel, folder: str | Path) -> dict[str, torch.Tensor]:
    """An adapter's tensors, under the names that PEFT gives them on this language model."""
    prefix = layer_prefix(name for name, _ in language_model.named_modules())
    return {
        f"base_model.model.{language_model_name(name, prefix)}": tensor
        for name, tensor in load_peft_weights(str(folder), device="cpu").items()
    }


def adapter_config(language_model: PreTrainedModel, folder: str | Path) -> PeftConfig:
    """An adapter's config, with the language model's own names for its modules.

    A script that trained a module with the language model in it may say which of its layers are meant by a regular
    expression, and give some of them a rank or an alpha of their own, all by the names that they have there.
    """
    config: Any = PeftConfig.from_pretrained(str(folder))
    prefix = layer_prefix(name for name, _ in language_model.named_modules())
    modules = {
        match["module"]: language_model_name(match["module"], prefix)
        for name in load_peft_weights(str(folder), device="cpu")
        if (match := _LORA_A.fullmatch(name))
    }
    if isinstance(config.target_modules, str):
        config.target_modules = sorted(modules.values())
    for field in ("rank_pattern", "alpha_pattern"):
        pattern = getattr(config, field) or {}
        keys = {ours: get_pattern_key(list(pattern), theirs) for theirs, ours in modules.items()}
        setattr(config, field, {re.escape(ours): pattern[key] for ours, key in keys.items() if key in pattern})
    return config
