"""Memory that a server of a checkpoint takes on a CPU, looked at before it is started."""

from argparse import Namespace
from pathlib import Path

import torch

from qwen_vqa.plugin.checkpoint_memory import checkpoint_dtype, weight_bytes
from qwen_vqa.plugin.command.host_memory import available_memory
from qwen_vqa.plugin.cpu.output_layout import PACKED
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.checked_checkpoint import checked_checkpoint
from qwen_vqa.serving.cpu.cpu_memory import OVERHEAD, output_layer_bytes
from qwen_vqa.serving.startup.float_type import choose_float_type


def served_dtype(folder: Path, dtype: str, kv_cache: int) -> str:
    """The float type that `serve` chooses on a CPU when nothing stands beside it."""

    def fits(name: str) -> int:
        if server_bytes(folder, name, kv_cache) > available_memory():
            raise UserError(f"no memory for {name}")
        return kv_cache

    chosen = Namespace(dtype=dtype, quantization=None)
    choose_float_type(chosen, checked_checkpoint(folder), torch.cpu.get_capabilities(), fits)
    return chosen.dtype


def server_bytes(folder: Path, dtype: str, kv_cache: int) -> int:
    """What a server of a checkpoint takes on a CPU, its cache of `kv_cache` bytes included."""
    checkpoint = checked_checkpoint(folder)
    packed = 0
    if checkpoint.scheme is None or not checkpoint.scheme.in_4_bits:  # whose output layer is shared
        packed = output_layer_bytes(checkpoint.config, checkpoint_dtype(folder), PACKED)
    return weight_bytes(folder, dtype) + packed + kv_cache + OVERHEAD
