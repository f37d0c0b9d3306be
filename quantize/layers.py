"""Which Linear layers are quantised: their names, shapes and tensors in a checkpoint folder."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig

from qwen_vqa.plugin.checkpoint_files import weight_files
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration

LANGUAGE_MODEL, ENCODER, CONNECTOR = "language_model", "vision_encoder", "connector"
OUTPUT_LAYER = "language_model.lm_head"


@dataclass(frozen=True)
class Selection:
    """What is quantised and what is not.

    Attributes:
        shapes: Linear layers to quantise, name to [out, in].
        skipped: modules whose Linear layers stay as they are, named as in vLLM.
    """

    shapes: dict[str, tuple[int, int]]
    skipped: tuple[str, ...]

    def layer_of(self, tensor_name: str) -> str | None:
        """The layer whose weight this is, or None for a tensor that stays as it is."""
        layer, _, leaf = tensor_name.rpartition(".")
        return layer if leaf == "weight" and layer in self.shapes else None


def select_layers(folder: Path, encoder: bool = False) -> Selection:
    """All Linear layers of the language model's blocks, and those of the vision encoder's with `encoder`."""
    skipped = (CONNECTOR, OUTPUT_LAYER) if encoder else (ENCODER, CONNECTOR, OUTPUT_LAYER)
    shapes = {
        name: (module.out_features, module.in_features)
        for name, module in meta_model(folder).named_modules()
        if isinstance(module, torch.nn.Linear) and not name.startswith(skipped)
    }
    return Selection(shapes, skipped)


def meta_model(folder: Path) -> QwenVqaForConditionalGeneration:
    """A checkpoint's model without its weights."""
    with torch.device("meta"):
        return QwenVqaForConditionalGeneration(AutoConfig.from_pretrained(folder))


def tensor_sizes(folder: Path) -> dict[str, int]:
    """Bytes of every tensor, from the files' headers alone."""
    sizes = {}
    for path in weight_files(folder):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                sizes[name] = end - begin
    return sizes


def tensors_of(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors, one in memory at a time."""
    for path in weight_files(folder):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                yield name, file.get_tensor(name)
