"""What the alternatives are given is what they expect."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from qwen_vqa.benchmarks.alternatives.gguf_checkpoint import gguf_name
from qwen_vqa.benchmarks.alternatives.transformers_serve import link_into
from qwen_vqa.benchmarks.alternatives.vllm_llava import llava_checkpoint
from qwen_vqa.benchmarks.machine.read_bandwidth import read_bandwidth
from qwen_vqa.serving import DEMO_CHECKPOINT


def test_llava_has_the_names_that_vllm_reads(tmp_path: Path) -> None:
    folder = llava_checkpoint("demo", tmp_path / "llava")
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        names = set(tensors.keys())
    assert "vision_tower.vision_model.embeddings.patch_embedding.weight" in names
    assert not any(name.startswith("vision_tower.embeddings") for name in names)


def test_every_tensor_of_the_language_model_has_a_gguf_name() -> None:
    with safe_open(DEMO_CHECKPOINT / "model.safetensors", "pt") as tensors:
        names = [name for name in tensors.keys() if name.startswith("language_model.")]  # noqa: SIM118
    found = {gguf_name(name) for name in names}
    assert len(found) == len(names) > 20
    assert {"token_embd.weight", "output_norm.weight", "blk.0.attn_q.bias", "blk.1.ffn_down.weight"} <= found
    assert gguf_name("vision_encoder.class_embedding") is None
    with pytest.raises(KeyError):
        gguf_name("language_model.model.layers.0.unheard_of.weight")


def test_a_checkpoint_is_found_in_the_hubs_cache(tmp_path: Path) -> None:
    from huggingface_hub import scan_cache_dir, try_to_load_from_cache

    name = link_into(tmp_path, DEMO_CHECKPOINT)
    assert [repository.repo_id for repository in scan_cache_dir(tmp_path).repos] == [name]
    config = try_to_load_from_cache(name, "config.json", cache_dir=tmp_path)
    assert Path(str(config)).read_text() == (DEMO_CHECKPOINT / "config.json").read_text()


def test_the_bandwidth_is_the_best_of_every_way_and_the_threads_are_as_before() -> None:
    threads = torch.get_num_threads()
    found = read_bandwidth(turns=1, seconds=0.01, size=2**22)
    assert found["best"] == max(way["best"] for way in found["ways"].values()) > 1e8
    assert torch.get_num_threads() == threads
