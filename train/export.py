"""What a run leaves: the original's pair of files, and a checkpoint folder that `serve` takes."""

import shutil
from pathlib import Path

import torch
from peft import PeftModel

from qwen_vqa.plugin.checkpoint_files import ADAPTER_FOLDER
from qwen_vqa.plugin.command.file_mode import give_usual_mode
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.train.assembly.connector_file import save_connector
from qwen_vqa.train.model.adapter_merging import merge_in_place
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference, save_checkpoint
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration
from qwen_vqa.train.trainer import load_trained, prepare_model
from qwen_vqa.train.training_config import TrainingConfig

ADAPTER_NAME = "final_lora_model"
CONNECTOR_NAME = "final_connector.pth"
CHECKPOINT_NAME = "model"
RESULTS = (ADAPTER_NAME, CONNECTOR_NAME, CHECKPOINT_NAME)


def export(
    model: QwenVqaForConditionalGeneration, processor: QwenVqaProcessor, output: Path, merge_adapter: bool = True
) -> Path:
    """Write `final_connector.pth`, `final_lora_model/`, and `model/`, which `serve` takes.

    Args:
        merge_adapter: `model/` has the adapter in its weights, and answers as trained by its own name; otherwise it
            has the base's weights, and the adapter beside them in adapters/.
    """
    save_connector(model.connector.state_dict(), output / CONNECTOR_NAME)
    folder = output / CHECKPOINT_NAME
    if isinstance(model.language_model, PeftModel):
        model.language_model.save_pretrained(str(output / ADAPTER_NAME))
        give_usual_mode(output / ADAPTER_NAME)
        if merge_adapter:
            model.config.trained_adapter = None
            model.language_model, _, lost = merge_in_place(model.language_model, ADAPTER_NAME)
            if lost:
                print(f"merged the adapter: rounding moved the weights by {lost:.1%} of what it changes", flush=True)
        else:
            model.language_model = model.language_model.unload()
            model.config.trained_adapter = ADAPTER_NAME
            shutil.copytree(output / ADAPTER_NAME, folder / ADAPTER_FOLDER / ADAPTER_NAME, dirs_exist_ok=True)
    model.to_float_type(_stored_type(model))
    save_checkpoint(folder, model, processor)
    return folder


def export_run(base: Path, last_checkpoint: Path, config: TrainingConfig, output: Path) -> Path:
    """Export what a run's checkpoint holds, on the base's own weights, which a run rounds to its precision."""
    torch.manual_seed(config.seed)
    model = load_reference(base)
    prepare_model(model, config)
    load_trained(model, last_checkpoint)
    return export(model, load_processor(base), output, config.merge_adapter)


def _stored_type(model: QwenVqaForConditionalGeneration) -> torch.dtype:
    """The base checkpoint's float type; in a run that trains the language model whole, that is in float32 by now."""
    named = model.config.dtype
    return getattr(torch, named) if isinstance(named, str) else named or model.dtype
