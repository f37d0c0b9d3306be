"""Memory on a GPU: what certainly does not fit is refused before anything is loaded, with the flag that helps.

Only what is known beforehand is counted: weights, adapter slots, and the KV cache of one prompt of full length. What
activations, CUDA graphs and CUDA itself take comes on top, and vLLM measures it; so what passes here may still fail
there, and nothing is refused that would have run.
"""

from argparse import Namespace
from dataclasses import dataclass

from qwen_vqa.plugin.checkpoint_memory import DTYPE_BYTES, GIB, kv_bytes_per_token, weight_bytes
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.adapters.adapter_slots import slot_bytes
from qwen_vqa.serving.checked_checkpoint import CheckedCheckpoint

LEAST_LENGTH = 256  # tokens, of which a shorter prompt and answer are of no use


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of the GPU that the server would use, and those that are free."""

    free: int
    total: int


def gpu_memory() -> GpuMemory | None:
    """Asked without starting CUDA in this process, from which servers are forked; None where it cannot be asked."""
    from qwen_vqa.serving.vllm_server_api import current_platform, import_pynvml

    if not current_platform.is_cuda():
        return None
    nvml = import_pynvml()
    try:
        nvml.nvmlInit()
        number = current_platform.device_id_to_physical_device_id(0)
        info = nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(number))
        nvml.nvmlShutdown()
    except nvml.NVMLError:
        return None
    return GpuMemory(info.free, info.total)


def check_gpu_memory(args: Namespace, checkpoint: CheckedCheckpoint, memory: GpuMemory) -> None:
    """Look whether the server fits; its layers are split between `--tensor-parallel-size` GPUs.

    Raises:
        UserError: it does not; the message says what is too large, and what helps.
    """
    share = args.gpu_memory_utilization
    claimed = share * memory.total
    if memory.free < claimed and args.kv_cache_memory_bytes is None:
        fits = int(100 * memory.free / memory.total) / 100
        raise UserError(
            f"not enough GPU memory: the server claims {share:.0%} of {memory.total / GIB:.1f} GiB, and "
            f"{memory.free / GIB:.1f} are free. End what else runs there, or pass --gpu-memory-utilization {fits:g}."
        )
    parts = args.tensor_parallel_size * args.pipeline_parallel_size
    weights = weight_bytes(checkpoint.folder, args.dtype) / parts
    if args.quantization is not None and checkpoint.scheme is None:
        return  # rounded while they are loaded; by how much is the method's affair
    if weights > claimed:
        smaller = "" if checkpoint.scheme is not None else "make them smaller (`qwen-vqa quantize`), "
        raise UserError(
            f"not enough GPU memory for the weights: they take {weights / GIB:.1f} GiB in {args.dtype}, and the server "
            f"has {claimed / GIB:.1f} ({share:.0%} of the GPU, --gpu-memory-utilization). To go on: {smaller}split "
            "them between GPUs (--tensor-parallel-size), or use a larger GPU."
        )
    slots = slot_bytes(args, checkpoint.config, DTYPE_BYTES[args.dtype]) / parts
    if weights + slots > claimed:
        raise UserError(
            f"not enough GPU memory for the adapters: {args.max_loras} slots of rank {args.max_lora_rank} take "
            f"{slots / GIB:.1f} GiB, and beside the weights {(claimed - weights) / GIB:.1f} are left. Pass a smaller "
            "--max-loras or --max-lora-rank."
        )
    _check_kv_cache(args, checkpoint, claimed - weights - slots, parts)


def _check_kv_cache(args: Namespace, checkpoint: CheckedCheckpoint, left: float, parts: int) -> None:
    length = checkpoint.config.text_config.max_position_embeddings if args.max_model_len is None else args.max_model_len
    if length < 1:  # vLLM is to find out what fits
        return
    per_token = kv_bytes_per_token(checkpoint.config, args.dtype) / parts
    if args.kv_cache_dtype.startswith("fp8"):
        per_token /= DTYPE_BYTES[args.dtype]
    left = left if args.kv_cache_memory_bytes is None else args.kv_cache_memory_bytes
    if per_token * length <= left:
        return
    fits = int(left / per_token)
    advice = f"pass --max-model-len {fits} or less" if fits >= LEAST_LENGTH else "use a larger GPU or smaller weights"
    raise UserError(
        f"not enough GPU memory for the KV cache: one prompt of {length} tokens needs {per_token * length / GIB:.2f} "
        f"GiB, and {left / GIB:.2f} are left. To go on: {advice}, or --kv-cache-dtype fp8, which halves it."
    )
