"""The reference model and its processor, in and out of a checkpoint folder."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, GenerationConfig

from qwen_vqa.plugin.chat.chat_format import CHATML
from qwen_vqa.plugin.checkpoint_files import check_checkpoint
from qwen_vqa.plugin.command.file_mode import give_usual_mode
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.train.model.bitsandbytes_weights import bitsandbytes_config
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration


def load_reference(
    folder: str | Path, dtype: torch.dtype | str = "auto", load_in: str = "full"
) -> QwenVqaForConditionalGeneration:
    """The reference model of a checkpoint folder, in eval mode on the CPU.

    `load_in` "8bit" or "4bit" holds the language model so (on the GPU where there is one); it computes in `dtype`.

    Raises:
        UserError: a file is missing, or weights are missing, unexpected or of another shape (by name).
    """
    folder = Path(folder)
    check_checkpoint(folder)
    loaded: Any = QwenVqaForConditionalGeneration.from_pretrained(
        folder,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        quantization_config=bitsandbytes_config(load_in, dtype if isinstance(dtype, torch.dtype) else None),
    )
    model: QwenVqaForConditionalGeneration
    model, loading = loaded
    problems = [
        f"{label} {', '.join(sorted(str(name) for name in loading[key]))}"
        for key, label in (
            ("missing_keys", "missing:"),
            ("unexpected_keys", "unexpected:"),
            ("mismatched_keys", "of another shape than config.json says:"),
        )
        if loading[key]
    ]
    if problems:
        raise UserError(f"the weights in {folder} do not fit its config.json; {'; '.join(problems)}.")
    # Where `save_checkpoint` takes it from: what is trained from a checkpoint decodes as it did.
    model.language_model.generation_config = model.generation_config
    return model.eval()


def load_processor(folder: str | Path) -> QwenVqaProcessor:
    """The processor of a checkpoint folder: the one that serving uses, too."""
    check_checkpoint(Path(folder))
    return AutoProcessor.from_pretrained(folder)


def save_checkpoint(
    folder: str | Path,
    model: QwenVqaForConditionalGeneration,
    processor: QwenVqaProcessor,
    max_shard_size: str = "4GB",
) -> None:
    """Write config, weights, generation config, tokenizer, image processor and chat template."""
    model.generation_config = chat_generation_config(model.language_model.generation_config, processor)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    processor.save_pretrained(folder)
    give_usual_mode(Path(folder))


def chat_generation_config(base: GenerationConfig, processor: QwenVqaProcessor) -> GenerationConfig:
    """The language model's own generation defaults, ending at `<|im_end|>` whatever else they end at."""
    config = GenerationConfig.from_dict(base.to_dict())
    turn_end = processor.tokenizer.convert_tokens_to_ids(CHATML.turn_end)
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    config.eos_token_id = [turn_end, *(token for token in ends if token not in (None, turn_end))]
    config.pad_token_id = processor.tokenizer.pad_token_id
    return config
