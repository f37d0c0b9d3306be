"""What a checkpoint is put together from, once it is read: of the parts that people name, or of a whole checkpoint."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qwen_vqa.train.assembly.encoder_file import LoadedEncoder


@dataclass(frozen=True)
class LoadedParts:
    """The parts, and where each came from.

    Attributes:
        connector: its weights by our names; None for a fresh one.
        pixels: fields of our image processor that a whole checkpoint names.
        views: the view rule that a whole checkpoint has, as config.json has it.
        adapter: a LoRA's folder.
    """

    vision: LoadedEncoder
    vision_name: str
    connector: dict[str, torch.Tensor] | None
    connector_name: str
    language_model: PreTrainedModel
    language_model_name: str
    tokenizer: PreTrainedTokenizerBase
    pixels: dict[str, Any] = field(default_factory=dict)
    views: dict[str, Any] | None = None
    adapter: Path | None = None
