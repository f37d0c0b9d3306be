"""Memory for comparing two checkpoints' answers, looked at before either is loaded."""

import gc
import resource
import sys
from pathlib import Path

import torch
from transformers import AutoConfig

from qwen_vqa.plugin.checkpoint_memory import DTYPE_BYTES, checkpoint_dtype, weight_bytes
from qwen_vqa.plugin.command.host_memory import available_memory
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.registration import register_for_transformers
from qwen_vqa.train.model.compute_device import CPU, GIB, device_with_room

# Activations of a batch and a few layers' weights in float32, beside a model.
ROOM = GIB


def comparison_device(original: Path, asked: str) -> torch.device:
    """Where answers are compared: the device of a `--device`, or with "auto" the CPU where a GPU has not the memory.

    Raises:
        UserError: there is no such device, or it has not the memory.
    """
    return device_with_room(asked, comparison_bytes(original, checkpoint_dtype(original)), "comparing answers")


def comparison_dtype(original: Path, device: torch.device = CPU) -> torch.dtype:
    """As what answers are compared: float32 where one model fits into memory so, else as the checkpoint is stored.

    Raises:
        UserError: not even that fits.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    stored = checkpoint_dtype(original)
    for name in ("float32", stored):
        needed = comparison_bytes(original, name)
        if needed <= free:
            if name != "float32":
                print(f"answers are compared in {name}: there is no memory for float32", flush=True)
            return getattr(torch, name)
    raise UserError(
        f"not enough memory to compare answers: {needed / GIB:.1f} GiB are needed (one model at a time in {stored}), "
        f"and {free / GIB:.1f} are free. Free some, or measure on a larger machine."
    )


def comparison_bytes(original: Path, dtype: str) -> int:
    """A model in a dtype, and beside it the output layer of the other."""
    register_for_transformers()
    text = AutoConfig.from_pretrained(original).text_config
    return weight_bytes(original, dtype) + text.vocab_size * text.hidden_size * DTYPE_BYTES[dtype] + ROOM


def free_gpu_memory() -> None:
    """Give back what models that are no more took of a GPU: servers come after them."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def most_memory_bytes() -> int:
    """What this process has held at most since it started, by getrusage."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib if sys.platform == "darwin" else 1024 * kib
