"""Memory and float type on a CPU: counted before anything loads."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.checks import CheckedCheckpoint, checked_checkpoint
from qwen_vqa.serving.float_type import choose_float_type
from qwen_vqa.serving.memory import GIB, OVERHEAD, kv_bytes_per_token, kv_cache_bytes, node_memory, weight_bytes

OLD_XEON = {"architecture": "x86_64", "avx512_vnni": True, "avx512_bf16": False, "amx_bf16": False}


def test_the_kv_cache_is_sized_from_the_free_memory(tiny_checkpoint: Path):
    checkpoint = checked_checkpoint(tiny_checkpoint)
    per_token = kv_bytes_per_token(checkpoint.config, "bfloat16")
    assert per_token == 2 * 2 * 2 * 32 * 2  # keys and values, layers, heads, head size, bytes
    plenty = kv_cache_bytes(checkpoint, 1024, "bfloat16", available=64 * GIB, node_available=64 * GIB)
    assert plenty == 32 * 1024 * per_token
    sizes = [
        kv_cache_bytes(checkpoint, longest, "bfloat16", available=64 * GIB, node_available=64 * GIB) // per_token
        for longest in (4096, 2**15, 2**17)
    ]
    assert sizes == [2**17, 2**17, 2**19]
    weights = weight_bytes(tiny_checkpoint, "bfloat16")
    tight = OVERHEAD + weights + 1024 * per_token
    assert kv_cache_bytes(checkpoint, 1024, "bfloat16", available=tight) == 1024 * per_token
    assert kv_cache_bytes(checkpoint, 1024, "bfloat16", available=tight + 999, beside_weights=999) == 1024 * per_token


def test_too_little_memory_for_the_kv_cache_says_what_would_fit(tiny_checkpoint: Path):
    checkpoint = checked_checkpoint(tiny_checkpoint)
    weights = weight_bytes(tiny_checkpoint, "auto")
    per_token = kv_bytes_per_token(checkpoint.config, "float32")
    with pytest.raises(
        UserError, match=r"not enough memory for the KV cache: one prompt of 1024.*--max-model-len 1000"
    ):
        kv_cache_bytes(checkpoint, 1024, "float32", available=OVERHEAD + weights + 1000 * per_token)
    with pytest.raises(UserError, match="free memory or use a larger machine"):
        kv_cache_bytes(checkpoint, 1024, "float32", available=GIB)


def test_of_the_nodes_memory_no_more_than_half_is_asked_for(tiny_checkpoint: Path):
    """vLLM refuses a KV cache that is larger than what is free where it computes, whatever the machine has."""
    checkpoint = checked_checkpoint(tiny_checkpoint)
    weights = weight_bytes(tiny_checkpoint, "bfloat16")
    needed = 1024 * kv_bytes_per_token(checkpoint.config, "bfloat16")
    asked = [
        kv_cache_bytes(checkpoint, 1024, "bfloat16", available=64 * GIB, node_available=weights + node)
        for node in (20 * needed, 0)
    ]
    assert asked == [10 * needed, needed]
    assert node_memory() > 0


def test_weights_are_counted_in_the_type_that_they_are_served_in(tmp_path: Path):
    tensors = {"a": torch.zeros(10, 3, dtype=torch.bfloat16), "b": torch.zeros(7, dtype=torch.int8)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert [weight_bytes(tmp_path, dtype) for dtype in ("auto", "bfloat16", "float32")] == [67, 67, 127]


@pytest.mark.parametrize(
    ("processor", "flags", "dtype", "said"),
    [
        (OLD_XEON, {}, "float32", "float type: float32: this processor has no bfloat16 arithmetic"),
        ({**OLD_XEON, "avx512_bf16": True}, {}, "auto", None),
        ({**OLD_XEON, "amx_bf16": True}, {}, "auto", None),
        ({"architecture": "aarch64"}, {}, "auto", None),
        (OLD_XEON, {"dtype": "bfloat16"}, "bfloat16", None),
        (OLD_XEON, {"quantization": "bitsandbytes"}, "auto", None),
    ],
)
def test_float32_where_16_bits_are_imitated(demo: CheckedCheckpoint, processor, flags, dtype, said):
    args = Namespace(**{"dtype": "auto", "quantization": None, **flags})
    note = choose_float_type(args, demo, processor, lambda _: 1)
    assert args.dtype == dtype
    assert (note or "").startswith(said or "")
    assert (note is None) == (said is None)


def test_16_bits_where_float32_does_not_fit(demo: CheckedCheckpoint):
    def no_room(_: str) -> int:
        raise UserError("not enough memory")

    args = Namespace(dtype="auto", quantization=None)
    note = choose_float_type(args, demo, OLD_XEON, no_room)
    assert args.dtype == "auto"
    assert "bfloat16, slowly" in str(note)


def test_a_checkpoint_in_float32_stays(tiny_checkpoint: Path):
    args = Namespace(dtype="auto", quantization=None)
    assert choose_float_type(args, checked_checkpoint(tiny_checkpoint), OLD_XEON, lambda _: 1) is None
    assert args.dtype == "auto"


@pytest.fixture
def demo(demo_checkpoint: Path) -> CheckedCheckpoint:
    """The bundled demo, which is in bfloat16."""
    return checked_checkpoint(demo_checkpoint)
