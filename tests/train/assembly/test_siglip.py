"""Our SigLIP is transformers' own, from a checkpoint of it alone and from one with its text side."""

from pathlib import Path

import pytest
import torch
from transformers import SiglipConfig, SiglipModel, SiglipTextConfig, SiglipVisionConfig, SiglipVisionModel

from qwen_vqa.plugin.vision.siglip import SiglipEncoder
from qwen_vqa.train.assembly.encoder_file import load_vision_encoder
from qwen_vqa.train.model.torch_layers import TorchLayers
from tests.train.assembly.test_vision_encoder import randomised

# As google/siglip-so400m-patch14-384: patches that do not cover the last rows of the canvas.
CONFIG = SiglipVisionConfig(
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=80,
    image_size=62,
    patch_size=14,
)
TEXT = SiglipTextConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=4, intermediate_size=80, vocab_size=99)


def siglip_vision(alone: bool) -> torch.nn.Module:
    if alone:
        return randomised(SiglipVisionModel(CONFIG))
    return randomised(SiglipModel(SiglipConfig(text_config=TEXT.to_dict(), vision_config=CONFIG.to_dict())))


@pytest.mark.parametrize("alone", [True, False])
def test_the_features_are_those_of_transformers(tmp_path: Path, alone: bool):
    source = siglip_vision(alone)
    source.save_pretrained(tmp_path)
    loaded = load_vision_encoder(str(tmp_path))
    pixels = torch.randn(2, 3, 62, 62)
    vision = source if alone else source.vision_model
    with torch.inference_mode():
        expected = vision(pixels).last_hidden_state
        actual = loaded.encoder(pixels)
    assert actual.shape == (2, SiglipEncoder.num_features(loaded.config), 48) == (2, 16, 48)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert loaded.ignored == []


def test_as_many_features_as_the_release_has():
    so400m = SiglipVisionConfig(image_size=384, patch_size=14)
    SiglipEncoder.check(so400m)
    assert SiglipEncoder.num_features(so400m) == 729


def test_a_new_encoder_starts_as_transformers_does():
    torch.manual_seed(0)
    ours = SiglipEncoder(CONFIG, TorchLayers())
    ours.initialise_embeddings(CONFIG)
    theirs = SiglipVisionModel(CONFIG).state_dict()
    [name] = [name for name in theirs if name.endswith("position_embedding.weight")]
    assert ours.position_embedding.std().item() == pytest.approx(theirs[name].std().item(), rel=0.2)
