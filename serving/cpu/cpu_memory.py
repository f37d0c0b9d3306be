"""Memory on a CPU: what is free beside the weights, and how large a KV cache is to be asked for."""

from qwen_vqa.plugin.checkpoint_memory import DTYPE_BYTES, GIB, kv_bytes_per_token, weight_bytes
from qwen_vqa.plugin.command.host_memory import available_memory
from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.plugin.cpu.output_layout import SHARED
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.checked_checkpoint import CheckedCheckpoint

# The server's processes, two on a CPU or three; the rest is room for activations.
OVERHEAD = 2 * GIB
# A cache for so many prompts of full length, but of long ones no more than so many tokens: vLLM writes to all of it
# when it starts, and holds it. A prompt with a picture has some 220 tokens.
PROMPTS = 32
TOKENS = 2**17
LONG_PROMPTS = 4


def kv_cache_bytes(
    checkpoint: CheckedCheckpoint,
    max_model_len: int,
    dtype: str,
    available: int | None = None,
    node_available: int | None = None,
    beside_weights: int = 0,
) -> int:
    """Bytes of KV cache to ask for on a CPU, where vLLM would otherwise take nearly all memory.

    Args:
        max_model_len: the longest prompt and answer, in tokens.
        dtype: of the weights and of the cache.
        available: free memory in bytes (default: this machine's, now).
        node_available: of it, what vLLM sees: it counts the NUMA node where it computes (default: asked, now).
        beside_weights: more bytes that are taken in any case: vLLM's adapter slots, a second copy of a layer.

    Raises:
        UserError: one prompt of full length does not fit beside the weights.
    """
    available = available_memory() if available is None else available
    weights = beside_weights + weight_bytes(checkpoint.folder, dtype)
    free = free_beside_weights(checkpoint, dtype, beside_weights, available)
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
    node_available = node_memory() if node_available is None else node_available
    half = min(free, node_available - weights) // 2
    wished = max(min(PROMPTS * max_model_len, TOKENS), LONG_PROMPTS * max_model_len)
    return max(needed, min(half, per_token * wished))


def free_beside_weights(
    checkpoint: CheckedCheckpoint, dtype: str, beside_weights: int, available: int | None = None
) -> int:
    """Bytes that weights and processes leave for the KV cache, and others; the arguments are `kv_cache_bytes`'s."""
    available = available_memory() if available is None else available
    return available - weight_bytes(checkpoint.folder, dtype) - beside_weights - OVERHEAD


def output_layer_bytes(config: QwenVqaConfig, stored: str, output_layer: str) -> int:
    """What a packed output layer takes beside input embeddings that are the same numbers.

    Those numbers are then held once as the engine computes and once as they are stored, or in 16 bits twice
    (plugin/cpu/embedding.py).
    """
    text = config.text_config
    if output_layer == SHARED or not text.tie_word_embeddings:
        return 0
    return text.vocab_size * text.hidden_size * DTYPE_BYTES.get(stored, 4)


def node_memory() -> int:
    """Free bytes, as vLLM counts them before it takes the KV cache: of the NUMA node where its first thread runs."""
    from qwen_vqa.serving.vllm_server_api import get_allowed_cpu_list, get_memory_node_info

    return get_memory_node_info(get_allowed_cpu_list()[0].numa_node).available_memory
