"""What `serve` chooses on a CPU where the user chose nothing, and says why: threads, float type, memory."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping

import torch

from qwen_vqa.plugin.checkpoint_memory import DTYPE_BYTES, GIB, checkpoint_dtype, kv_bytes_per_token
from qwen_vqa.plugin.cpu.output_layout import FEW, LEAST_TABLE_BYTES, MIXED, OUTPUT_LAYERS, PACKED, SETTING, SHARED
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.adapters.adapter_slots import slot_bytes
from qwen_vqa.serving.checked_checkpoint import CheckedCheckpoint
from qwen_vqa.serving.cpu.cpu_memory import free_beside_weights, kv_cache_bytes, output_layer_bytes
from qwen_vqa.serving.cpu.engine_process import METHOD, may_copy
from qwen_vqa.serving.cpu.executor import ONE_PROCESS, choose_executor
from qwen_vqa.serving.cpu.linear_layers import add_linear_layers_flag, choose_linear_layers
from qwen_vqa.serving.cpu.threads import Machine, choose_threads
from qwen_vqa.serving.process.compile_cache import choose_compile_cache
from qwen_vqa.serving.startup.float_type import choose_float_type

KV_CACHE_SPACE = "VLLM_CPU_KVCACHE_SPACE"
# Only whole blocks of a prompt are found again: with vLLM's 128 on a CPU, a second question about the same picture
# finds half of its 220 tokens. The attention kernels take multiples of 32.
BLOCK_TOKENS = 32
# Tokens of one step of the engine, prompts' and answers' together. vLLM's 2,048 on a CPU are nine prompts with a
# picture, for all of which every answer waits. With fewer, prompts come in one or two at a time beside the answers'
# tokens, whose few rows alone would leave the cores waiting for the weights. benchmarks/README.md has what it is worth.
STEP_TOKENS = 512


def add_cpu_flags(parser: ArgumentParser) -> None:
    """The flags that vLLM does not have."""
    add_linear_layers_flag(parser)
    parser.add_argument(
        "--output-layer",
        choices=OUTPUT_LAYERS,
        help=f"on a CPU, with tied embeddings: {PACKED} beside the input embeddings, faster where several answers are "
        f"decoded at once, {SHARED} with them, or {MIXED}: {PACKED}, and up to four answers at once are decoded from "
        f"the input embeddings where these are 16 bits and float32 is served, and torch.compile is on (default: "
        f"{SHARED} with 4-bit checkpoints, else {MIXED})",
    )


def complete_for_cpu(
    args: Namespace, checkpoint: CheckedCheckpoint, environment: Mapping[str, str], say: Callable[[str], None]
) -> None:
    """Set `args.threads`, `engine_copied`, `dtype`, `output_layer`, `linear_layers`, `block_size` and
    `kv_cache_memory_bytes`.

    Args:
        environment: the user's, of which threads are chosen.

    Raises:
        UserError: there is too little memory.
    """
    check_no_speculation(args)
    choose_executor(args, say)
    args.threads = choose_threads(args, Machine.here(), environment)
    say(f"threads: {args.threads.reason}")
    alone = args.distributed_executor_backend == ONE_PROCESS and args.api_servers == 1
    args.engine_copied = alone and may_copy(args.threads, environment)
    if args.engine_copied:
        say(f"the engine's process is a copy of the API's, which has imported everything ({METHOD}=spawn: a new one)")
    max_model_len = args.max_model_len or checkpoint.config.text_config.max_position_embeddings
    if note := choose_output_layer(args, checkpoint):
        say(note)

    def beside_weights(dtype: str) -> int:
        slots = slot_bytes(args, checkpoint.config, DTYPE_BYTES[dtype])
        return slots + output_layer_bytes(checkpoint.config, checkpoint_dtype(checkpoint.folder), args.output_layer)

    def kv_cache(dtype: str, linear_layers: int = 0) -> int:
        beside = beside_weights(dtype) + linear_layers
        return kv_cache_bytes(checkpoint, max_model_len, dtype, beside_weights=beside)

    say(choose_float_type(args, checkpoint, torch.cpu.get_capabilities(), kv_cache))
    if note := few_answers_note(args, checkpoint):
        say(note)
    dtype = args.dtype
    free = free_beside_weights(checkpoint, dtype, beside_weights(dtype))
    note, linear_layers = choose_linear_layers(args, checkpoint, free)
    if note:
        say(note)
    if args.block_size is None:
        args.block_size = BLOCK_TOKENS
        say(f"prompts are cached in blocks of {BLOCK_TOKENS} tokens: further questions find theirs (--block-size)")
    if note := choose_step_tokens(args, checkpoint):
        say(note)
    if not args.kv_cache_memory_bytes and KV_CACHE_SPACE not in os.environ:
        args.kv_cache_memory_bytes = kv_cache(dtype, linear_layers)
        tokens = args.kv_cache_memory_bytes // kv_bytes_per_token(checkpoint.config, dtype)
        say(
            f"KV cache: {args.kv_cache_memory_bytes / GIB:.2f} GiB, {tokens:,} tokens: {tokens / max_model_len:.3g} "
            f"prompts of {max_model_len:,}, within half of the free memory (--kv-cache-memory-bytes)"
        )
    if args.enable_lora:
        say("torch.compile is off: vLLM does not compile with adapters on a CPU")
    elif not args.enforce_eager:
        say(f"torch.compile is on: {choose_compile_cache(os.environ)} (--enforce-eager turns it off)")


def check_no_speculation(args: Namespace) -> None:
    """Where the engine guesses tokens on a CPU and a request has a temperature, vLLM 0.32's sampler reads memory that
    nothing was written to (https://github.com/vllm-project/vllm/issues/55005): answers are wrong, or the engine dies.

    Raises:
        UserError: guessing is asked for.
    """
    if args.speculative_config:
        raise UserError(
            "--speculative-config: on a CPU, vLLM 0.32 answers wrongly with it or dies as soon as a request has a "
            "temperature (vLLM issue 55005). Leave it out."
        )


def choose_step_tokens(args: Namespace, checkpoint: CheckedCheckpoint) -> str | None:
    """Set `args.max_num_batched_tokens`; returns what is to be said, or None where the user chose."""
    if args.max_num_batched_tokens is not None or args.enable_chunked_prefill is False:
        return None
    # A step takes each answer's next token, and a picture whole.
    args.max_num_batched_tokens = max(STEP_TOKENS, args.max_num_seqs or 0, checkpoint.config.most_image_tokens)
    return (
        f"steps of up to {args.max_num_batched_tokens} tokens: new prompts and running answers share them, and neither "
        "waits long for the other (--max-num-batched-tokens)"
    )


def choose_output_layer(args: Namespace, checkpoint: CheckedCheckpoint) -> str | None:
    """Set `args.output_layer` and what tells the engine; returns what is to be said.

    Who serves 4 bits lacks memory: at 3B, the copy would be a fifth of what the weights take.
    """
    tied = checkpoint.config.text_config.tie_word_embeddings
    in_4_bits = checkpoint.scheme is not None and checkpoint.scheme.in_4_bits
    note = None
    if args.output_layer is None:
        args.output_layer = SHARED if tied and in_4_bits else MIXED
        if args.output_layer == SHARED:
            note = (
                f"output layer: {SHARED} with the input embeddings, to save memory; --output-layer {MIXED} decodes "
                "several answers at once faster"
            )
    args.additional_config = {SETTING: args.output_layer, **(args.additional_config or {})}
    return note


def few_answers_note(args: Namespace, checkpoint: CheckedCheckpoint) -> str | None:
    """What is to be said where a few answers are decoded from the input embeddings, once the float type is chosen."""
    text = checkpoint.config.text_config
    compiles = not args.enforce_eager and not args.enable_lora
    widened = args.dtype == "float32" and checkpoint_dtype(checkpoint.folder) != "float32"
    large = 2 * text.vocab_size * text.hidden_size >= LEAST_TABLE_BYTES
    if args.output_layer != MIXED or not (text.tie_word_embeddings and compiles and widened and large):
        return None
    return (
        f"output layer: up to {FEW} answers at once are decoded from the input embeddings, whose 16 bits are half as "
        f"long to read (--output-layer {PACKED}: none)"
    )
