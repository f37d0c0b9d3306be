"""Encoders in vLLM's layers: transformers' own numbers, from a checkpoint of ours, loaded by the strict loader."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from qwen_vqa.train.assembly.encoder_file import renamed_weights
from tests.tiny import make_checkpoint

vllm = pytest.importorskip("vllm")

from vllm.config import VllmConfig  # noqa: E402 - only where vLLM is installed
from vllm.model_executor.model_loader.utils import process_weights_after_loading  # noqa: E402

from qwen_vqa.plugin.vllm_model.model import QwenVqaForConditionalGeneration  # noqa: E402

VISION = "vision_encoder."


@pytest.fixture(scope="module", params=["vit", "clip", "siglip", "dinov2"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp(request.param), vision_type=request.param)


def test_the_served_features_are_those_of_transformers(checkpoint: Path, vllm_config: VllmConfig) -> None:
    weights, config = load_file(checkpoint / "model.safetensors"), vllm_config.model_config.hf_config
    family, features = config.vision_family, config.features
    theirs = getattr(transformers, family.transformers_class)(config.vision_config, **family.transformers_arguments)
    with torch.no_grad():
        for name, tensor in theirs.eval().state_dict().items():
            for ours in renamed_weights(family, {name: tensor}):
                if VISION + ours in weights:
                    tensor.copy_(weights[VISION + ours])
    vllm_config.compilation_config.static_forward_context.clear()
    served = QwenVqaForConditionalGeneration(vllm_config=vllm_config)
    served.load_weights(weights.items())
    process_weights_after_loading(served, vllm_config.model_config, torch.device("cpu"))
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        out = theirs(pixels, output_hidden_states=True)
        expected = out.last_hidden_state if features.norm else out.hidden_states[features.layers[0]]
        first = 0 if features.class_token else family.num_first_tokens(config.vision_config)
        torch.testing.assert_close(served.vision_encoder(pixels), expected[:, first:], atol=1e-4, rtol=0)
        embeddings = served.embed_multimodal(pixel_values=pixels)
    assert [tuple(image.shape) for image in embeddings] == [(config.most_image_tokens, 128)] * 3
