"""A LoRA folder onto the reference's language model, whichever of the known shapes its names have."""

from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from transformers import PreTrainedModel

from qwen_vqa.plugin.adapter_names import language_model_name, layer_prefix
from qwen_vqa.plugin.errors import UserError


def attach_adapter(language_model: PreTrainedModel, folder: str | Path) -> PeftModel:
    """The language model with the adapter in place, in eval mode.

    Raises:
        UserError: tensors of the adapter found no place.
    """
    config = PeftConfig.from_pretrained(str(folder))
    weights = adapter_weights(language_model, folder)
    model = get_peft_model(language_model, config)
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
