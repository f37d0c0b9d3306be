"""Memory and float type on a CPU: counted before anything loads."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qwen_vqa.plugin.checkpoint_memory import GIB, checkpoint_dtype, kv_bytes_per_token, weight_bytes
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.checked_checkpoint import CheckedCheckpoint, checked_checkpoint
from qwen_vqa.serving.cpu.cpu_memory import OVERHEAD, kv_cache_bytes, node_memory
from qwen_vqa.serving.startup.float_type import choose_float_type, choose_gpu_float_type
from tests.tiny import make_checkpoint

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


def test_a_vision_side_in_float32_is_counted_so(tmp_path: Path):
    names = ("vision_encoder.a", "connector.b", "language_model.c")
    save_file({name: torch.zeros(5, dtype=torch.float32) for name in names}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"vision_in_float32": true}')
    assert [weight_bytes(tmp_path, dtype) for dtype in ("auto", "bfloat16", "float32")] == [60, 50, 60]


@pytest.mark.parametrize(
    ("processor", "flags", "dtype", "said"),
    [
        (OLD_XEON, {}, "float32", "float type: float32: this processor has no bfloat16 arithmetic"),
        ({**OLD_XEON, "avx512_bf16": True}, {}, "bfloat16", "float type: bfloat16, the checkpoint's"),
        ({**OLD_XEON, "amx_bf16": True}, {}, "bfloat16", "float type: bfloat16, the checkpoint's"),
        ({"architecture": "aarch64"}, {}, "bfloat16", "float type: bfloat16, the checkpoint's"),
        (OLD_XEON, {"dtype": "bfloat16"}, "bfloat16", "float type: bfloat16 (--dtype)"),
        (OLD_XEON, {"dtype": "half"}, "float16", "float type: float16 (--dtype)"),
        (OLD_XEON, {"quantization": "bitsandbytes"}, "bfloat16", "float type: bfloat16, the checkpoint's"),
    ],
)
def test_float32_where_16_bits_are_imitated(demo: CheckedCheckpoint, processor, flags, dtype, said):
    args = Namespace(**{"dtype": "auto", "quantization": None, **flags})
    note = choose_float_type(args, demo, processor, lambda _: 1)
    assert args.dtype == dtype
    assert note.startswith(said)


def test_16_bits_where_float32_does_not_fit(demo: CheckedCheckpoint):
    def no_room(_: str) -> int:
        raise UserError("not enough memory")

    args = Namespace(dtype="auto", quantization=None)
    note = choose_float_type(args, demo, OLD_XEON, no_room)
    assert args.dtype == "bfloat16"
    assert "bfloat16, slowly" in note


@pytest.mark.parametrize("processor", [OLD_XEON, {**OLD_XEON, "avx512_bf16": True}])
def test_a_checkpoint_in_float32_is_not_left_to_vllm_which_would_round_it(tiny_checkpoint: Path, processor):
    args = Namespace(dtype="auto", quantization=None)
    choose_float_type(args, checked_checkpoint(tiny_checkpoint), processor, lambda _: 1)
    assert args.dtype == "float32"


AMPERE, TURING = ("bfloat16", "float16", "float32"), ("float16", "float32")


@pytest.mark.parametrize(
    ("stored", "card", "dtype", "said"),
    [
        ("float32", AMPERE, "float32", "float32, the checkpoint's"),
        ("bfloat16", AMPERE, "bfloat16", "bfloat16, the checkpoint's"),
        ("float16", TURING, "float16", "float16, the checkpoint's"),
        ("bfloat16", TURING, "float16", "no bfloat16 arithmetic"),
        ("float32", TURING, "float32", "float32, the checkpoint's"),
    ],
)
def test_a_gpu_serves_the_stored_type_too(tmp_path: Path, stored: str, card, dtype: str, said: str):
    made = make_checkpoint(tmp_path, dtype=getattr(torch, stored))
    args = Namespace(dtype="auto", quantization=None)
    assert said in choose_gpu_float_type(args, checked_checkpoint(made), card)
    assert args.dtype == dtype


def test_a_config_without_a_float_type_is_looked_up_in_the_weights(tmp_path: Path):
    made = make_checkpoint(tmp_path, dtype=torch.float16)
    config = json.loads((made / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part.pop("dtype", None)
    (made / "config.json").write_text(json.dumps(config))
    assert checkpoint_dtype(made) == "float16"


@pytest.fixture
def demo(demo_checkpoint: Path) -> CheckedCheckpoint:
    """The bundled demo, which is in bfloat16."""
    return checked_checkpoint(demo_checkpoint)
