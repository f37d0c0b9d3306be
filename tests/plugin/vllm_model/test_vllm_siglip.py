"""SigLIP in vLLM's layers: transformers' own numbers, from a checkpoint of ours, loaded by the strict loader."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import SiglipVisionModel

from qwen_vqa.plugin.vision.siglip import SiglipEncoder
from qwen_vqa.train.assembly.encoder_file import renamed_weights
from tests.tiny import make_checkpoint

vllm = pytest.importorskip("vllm")

from vllm.config import VllmConfig  # noqa: E402 - only where vLLM is installed
from vllm.model_executor.model_loader.utils import process_weights_after_loading  # noqa: E402

from qwen_vqa.plugin.vllm_model.model import QwenVqaForConditionalGeneration  # noqa: E402

VISION = "vision_encoder."


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("siglip"), vision_type="siglip")


def test_the_served_features_are_those_of_transformers(checkpoint: Path, vllm_config: VllmConfig) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    theirs = SiglipVisionModel(vllm_config.model_config.hf_config.vision_config).eval()
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            for ours in renamed_weights(SiglipEncoder, {name: tensor}):
                tensor.copy_(weights[VISION + ours])
    served = QwenVqaForConditionalGeneration(vllm_config=vllm_config)
    served.load_weights(weights.items())
    process_weights_after_loading(served, vllm_config.model_config, torch.device("cpu"))
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(served.vision_encoder(pixels), theirs(pixels).last_hidden_state, atol=1e-4, rtol=0)
        embeddings = served.embed_multimodal(pixel_values=pixels)
    assert [tuple(image.shape) for image in embeddings] == [(16, 128)] * 3
    assert vllm_config.model_config.hf_config.most_image_tokens == 16
