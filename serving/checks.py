"""What `serve` looks at before it starts anything heavy, so that what is wrong is said plainly and at once."""

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import psutil
from transformers import AutoConfig

from qwen_vqa.plugin.checkpoint import adapter_folders, check_checkpoint
from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.quantization import SchemeFacts, quantization_config, scheme_of, why_not_served_here
from qwen_vqa.plugin.registration import VLLM_MODEL, register_all

GIB = 2**30
DTYPE_BYTES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2, "auto": 2}
# The server's processes, two on a CPU or three; the rest is room for activations.
OVERHEAD = 2 * GIB
# A cache for this many prompts of full length; more would only be held, not used, on most machines.
FULL_LENGTH_PROMPTS = 32


@dataclass(frozen=True)
class CheckedCheckpoint:
    """A checkpoint that can be served, and its adapters."""

    folder: Path
    config: QwenVqaConfig
    adapters: dict[str, Path]
    scheme: SchemeFacts | None = None


def checked_checkpoint(folder: Path) -> CheckedCheckpoint:
    """Look at the files and the config; no weight is read.

    Raises:
        UserError: the checkpoint cannot be served, and why.
    """
    check_checkpoint(folder)
    register_all()
    config = AutoConfig.from_pretrained(folder)
    return CheckedCheckpoint(folder, config, adapter_folders(folder), checked_scheme(folder))


def checked_scheme(folder: Path) -> SchemeFacts | None:
    """How the checkpoint is quantised; None when it is not.

    Raises:
        UserError: this machine cannot serve that.
    """
    config = quantization_config(folder)
    if config is None:
        return None
    scheme = scheme_of(config)
    if reason := why_not_served_here(scheme):
        raise UserError(f"{folder} cannot be served here: {reason}. {scheme.name} is served by: {scheme.served_by}.")
    return scheme


def check_plugin() -> None:
    """Import what vLLM will import: it only logs a plugin that fails, and then knows no such architecture.

    Raises:
        UserError: vLLM or the plugin cannot be imported, with the reason.
    """
    try:
        import_module("vllm")
    except ImportError as error:
        raise UserError(
            f"vLLM cannot be imported ({error}). Run `make setup`, or `pip install 'qwen-vqa[cpu]'` "
            "(`[cuda]` with a GPU)."
        ) from error
    module, name = VLLM_MODEL.split(":")
    try:
        getattr(import_module(module), name)
    except Exception as error:  # whatever it is, vLLM would hide it
        raise UserError(
            f"the vLLM plugin cannot be loaded: {type(error).__name__}: {error}. `qwen-vqa doctor` shows "
            "the installed versions; the README lists those that were tested."
        ) from error


def kv_cache_bytes(
    checkpoint: CheckedCheckpoint, max_model_len: int, dtype: str, available: int | None = None, adapters: int = 0
) -> int:
    """Bytes of KV cache to ask for on a CPU, where vLLM would otherwise take nearly all memory.

    Args:
        max_model_len: the longest prompt and answer, in tokens.
        dtype: of the cache: the weights'.
        available: free memory in bytes (default: what the engine will see, now).
        adapters: bytes of vLLM's adapter slots, which it takes whether or not an adapter lies in them.

    Raises:
        UserError: one prompt of full length does not fit beside the weights.
    """
    available = available_memory() if available is None else available
    weights = adapters + sum(path.stat().st_size for path in checkpoint.folder.glob("*.safetensors"))
    free = available - weights - OVERHEAD
    per_token = kv_bytes_per_token(checkpoint.config, dtype)
    needed = per_token * max_model_len
    if free < needed:
        fits = max(0, free // per_token)
        advice = (
            f"pass --max-model-len {fits}, or free memory" if fits >= 256 else "free memory or use a larger machine"
        )
        raise UserError(
            f"not enough memory for the KV cache: one prompt of {max_model_len} tokens needs {needed / GIB:.2f} GiB, "
            f"and of {available / GIB:.1f} GiB free, weights and adapters take {weights / GIB:.1f} and the processes "
            f"about {OVERHEAD / GIB:.1f}. To go on: {advice}."
        )
    return min(free // 2 if free // 2 >= needed else free, FULL_LENGTH_PROMPTS * needed)


def available_memory() -> int:
    """Free bytes, as vLLM counts them on a CPU: of the NUMA node where it computes, within the container's limit."""
    from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_memory_node_info

    node = get_memory_node_info(get_allowed_cpu_list()[0].numa_node)
    return min(psutil.virtual_memory().available, node.available_memory)


def kv_bytes_per_token(config: QwenVqaConfig, dtype: str) -> int:
    """Keys and values of all layers, for one token."""
    text = config.text_config
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * head_size * DTYPE_BYTES[dtype]


def checkpoint_dtype(folder: Path) -> str:
    """The dtype that config.json names, as vLLM's `--dtype auto` will take it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str(config.get("dtype") or config.get("torch_dtype") or "auto")
