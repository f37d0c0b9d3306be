"""Connectors in vLLM's layers: the reference's embeddings, from the same checkpoint, by the strict loader."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qwen_vqa.train.model.reference_checkpoint import load_reference
from tests.tiny import make_checkpoint

vllm = pytest.importorskip("vllm")

from vllm.config import VllmConfig  # noqa: E402 - only where vLLM is installed
from vllm.model_executor.model_loader.utils import process_weights_after_loading  # noqa: E402

from qwen_vqa.plugin.vllm_model.model import QwenVqaForConditionalGeneration  # noqa: E402

SHAPES: list[dict[str, Any]] = [
    {"num_layers": 1, "bias": False, "pixel_shuffle": 2},
    {"num_layers": 3},
    {"num_layers": 2, "bias": False},
]


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("connector"), vision_type="siglip", connector=request.param)


def test_the_served_embeddings_are_the_references(checkpoint: Path, vllm_config: VllmConfig) -> None:
    config = vllm_config.model_config.hf_config
    served = QwenVqaForConditionalGeneration(vllm_config=vllm_config)
    served.load_weights(load_file(checkpoint / "model.safetensors").items())
    process_weights_after_loading(served, vllm_config.model_config, torch.device("cpu"))
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    reference = load_reference(checkpoint)
    with torch.inference_mode():
        expected = reference.connector(reference.get_image_features(pixels))
        embeddings = served.embed_multimodal(pixel_values=pixels)
    assert expected.shape[1] == config.tokens_per_view
    torch.testing.assert_close(torch.stack(list(embeddings)), expected, atol=1e-4, rtol=0)


def test_adapters_are_told_the_encoders_tokens(checkpoint: Path, vllm_config: VllmConfig) -> None:
    config = vllm_config.model_config.hf_config
    vllm_config.compilation_config.static_forward_context.clear()
    served = QwenVqaForConditionalGeneration(vllm_config=vllm_config)
    counts = served.get_mm_lora_token_counts(modality="image", mm_kwargs=None, num_mm_embeds=2 * config.tokens_per_view)
    assert counts == (2 * config.features_per_view, 2 * config.tokens_per_view)
