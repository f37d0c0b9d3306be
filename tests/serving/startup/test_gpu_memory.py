"""What does not fit on a GPU is said before anything loads; the decision, with the numbers that it gets."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest

from qwen_vqa.plugin import quantization
from qwen_vqa.plugin.checkpoint_memory import kv_bytes_per_token, weight_bytes
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.quantization import FACTS, why_not_served_here
from qwen_vqa.serving.checked_checkpoint import CheckedCheckpoint, checked_checkpoint
from qwen_vqa.serving.startup.gpu_memory import GpuMemory, check_gpu_memory

ARGS = {
    "gpu_memory_utilization": 0.5, "tensor_parallel_size": 1, "pipeline_parallel_size": 1, "dtype": "bfloat16",
    "quantization": None, "max_model_len": 1024, "kv_cache_memory_bytes": None, "kv_cache_dtype": "auto",
    "enable_lora": False, "max_loras": 1, "max_lora_rank": 16,
}  # fmt: skip


@pytest.fixture
def checkpoint(tiny_checkpoint: Path) -> CheckedCheckpoint:
    return checked_checkpoint(tiny_checkpoint)


def checked(checkpoint: CheckedCheckpoint, left: float, **changes: object) -> None:
    """With so many bytes for the server, which are half of the GPU, all of it free."""
    check_gpu_memory(Namespace(**(ARGS | changes)), checkpoint, GpuMemory(int(2 * left), int(2 * left)))


def test_what_fits_passes(checkpoint: CheckedCheckpoint):
    needed = weight_bytes(checkpoint.folder, "bfloat16") + 1024 * kv_bytes_per_token(checkpoint.config, "bfloat16")
    checked(checkpoint, needed)
    with pytest.raises(UserError, match="for the KV cache"):
        checked(checkpoint, needed - 1024)


def test_a_gpu_that_others_use_is_said_with_the_share_that_is_free(checkpoint: CheckedCheckpoint):
    with pytest.raises(
        UserError, match=r"claims 90% of 10\.0 GiB, and 4\.6 are free.*--gpu-memory-utilization 0\.45\."
    ):
        check_gpu_memory(
            Namespace(**(ARGS | {"gpu_memory_utilization": 0.9})), checkpoint, GpuMemory(int(4.6 * 2**30), 10 * 2**30)
        )


def test_weights_that_do_not_fit_are_named(checkpoint: CheckedCheckpoint):
    weights = weight_bytes(checkpoint.folder, "bfloat16")
    with pytest.raises(UserError, match=r"for the weights: .* in bfloat16.*qwen-vqa quantize.*--tensor-parallel-size"):
        checked(checkpoint, weights - 1024)
    checked(checkpoint, weights, tensor_parallel_size=2)


def test_adapters_that_do_not_fit_are_named(checkpoint: CheckedCheckpoint):
    weights = weight_bytes(checkpoint.folder, "bfloat16")
    many = {"enable_lora": True, "max_loras": 100, "max_lora_rank": 256}
    with pytest.raises(UserError, match=r"for the adapters: 100 slots of rank 256 .* smaller --max-loras"):
        checked(checkpoint, weights + 2**20, **many)


def test_a_kv_cache_that_does_not_fit_says_what_does(checkpoint: CheckedCheckpoint):
    weights, per_token = weight_bytes(checkpoint.folder, "bfloat16"), kv_bytes_per_token(checkpoint.config, "bfloat16")
    left = weights + 600 * per_token
    with pytest.raises(UserError, match=r"one prompt of 1024 tokens .* pass --max-model-len 600 or less"):
        checked(checkpoint, left)
    checked(checkpoint, left, max_model_len=600)
    checked(checkpoint, left, kv_cache_dtype="fp8")
    checked(checkpoint, left, max_model_len=-1)  # vLLM finds out
    with pytest.raises(UserError, match="use a larger GPU or smaller weights"):
        checked(checkpoint, weights + 100 * per_token)


@pytest.mark.parametrize(
    ("scheme", "place"),
    [
        ("int8", "compressed_tensors_w8a8_int8:CompressedTensorsW8A8Int8"),
        ("int4", "compressed_tensors_wNa16:CompressedTensorsWNA16"),
        ("fp8", "compressed_tensors_w8a8_fp8:CompressedTensorsW8A8Fp8"),
    ],
)
def test_the_least_cards_are_vllms_own(scheme: str, place: str):
    from importlib import import_module

    module, name = place.split(":")
    schemes = "vllm.model_executor.layers.quantization.compressed_tensors.schemes"
    needed = getattr(import_module(f"{schemes}.{module}"), name).get_min_capability()
    assert FACTS[scheme].capability == (needed // 10, needed % 10)


def test_a_card_that_cannot_serve_a_scheme_is_told_which_it_can(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(quantization, "_cuda_capability", lambda: (7, 5))
    assert why_not_served_here(FACTS["fp8"]) == "fp8 needs CUDA capability 8.9, and this GPU has 7.5"
    shutil.copytree(tiny_checkpoint, tmp_path / "fp8")
    config = json.loads((tmp_path / "fp8/config.json").read_text())
    weights = {"type": "float", "num_bits": 8}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    config["quantization_config"] = {"quant_method": "compressed-tensors", "config_groups": groups}
    (tmp_path / "fp8/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"this GPU has 7\.5\. .* Served here: int8, int4, .*16 bits"):
        checked_checkpoint(tmp_path / "fp8")
