"""What `serve` chooses on a CPU where the user chose nothing, and says why: threads, float type, KV cache."""

import os
from argparse import Namespace
from collections.abc import Callable

import torch

from qwen_vqa.serving.adapter_slots import slot_bytes
from qwen_vqa.serving.checks import CheckedCheckpoint, checkpoint_dtype
from qwen_vqa.serving.float_type import choose_float_type
from qwen_vqa.serving.memory import DTYPE_BYTES, GIB, kv_bytes_per_token, kv_cache_bytes
from qwen_vqa.serving.threads import Machine, choose_threads

KV_CACHE_SPACE = "VLLM_CPU_KVCACHE_SPACE"


def complete_for_cpu(args: Namespace, checkpoint: CheckedCheckpoint, say: Callable[[str], None]) -> None:
    """Set `args.threads`, `dtype` and `kv_cache_memory_bytes`.

    Raises:
        UserError: there is too little memory.
    """
    args.threads = choose_threads(args, Machine.here(), os.environ)
    say(f"threads: {args.threads.reason}")
    max_model_len = args.max_model_len or checkpoint.config.text_config.max_position_embeddings

    def kv_cache(dtype: str) -> int:
        adapters = slot_bytes(args, checkpoint.config, DTYPE_BYTES[dtype])
        return kv_cache_bytes(checkpoint, max_model_len, dtype, adapters=adapters)

    if note := choose_float_type(args, checkpoint, torch.cpu.get_capabilities(), kv_cache):
        say(note)
    if not args.kv_cache_memory_bytes and KV_CACHE_SPACE not in os.environ:
        dtype = checkpoint_dtype(checkpoint.folder) if args.dtype == "auto" else args.dtype
        args.kv_cache_memory_bytes = kv_cache(dtype)
        tokens = args.kv_cache_memory_bytes // kv_bytes_per_token(checkpoint.config, dtype)
        say(
            f"KV cache: {args.kv_cache_memory_bytes / GIB:.2f} GiB, {tokens:,} tokens: {tokens / max_model_len:.3g} "
            f"prompts of {max_model_len:,}, within half of the free memory (--kv-cache-memory-bytes)"
        )
    if not args.enable_lora and not args.enforce_eager:
        say("torch.compile is on: faster answers after a longer start (--enforce-eager turns it off)")
