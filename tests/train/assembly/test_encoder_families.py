"""Every family's features are those of Transformers' own class, of any layer, with or without norm and class token."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedConfig

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.vision.encoders import ENCODERS
from qwen_vqa.plugin.vision.features import FeatureChoice
from qwen_vqa.train.assembly.encoder_file import load_vision_encoder
from qwen_vqa.train.model.torch_layers import TorchLayers
from tests.train.assembly.test_vision_encoder import randomised

SHAPE = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 56, "patch_size": 14}
MLP = {"intermediate_size": 80}
CONFIGS: dict[str, PreTrainedConfig] = {
    "vit": transformers.ViTConfig(**SHAPE, **MLP),
    "clip": transformers.CLIPVisionConfig(**SHAPE, **MLP),
    "clip, rows left over": transformers.CLIPVisionConfig(**SHAPE | {"image_size": 62}, **MLP),
    "siglip": transformers.SiglipVisionConfig(**SHAPE, **MLP),
    "siglip, rows left over": transformers.SiglipVisionConfig(**SHAPE | {"image_size": 62}, **MLP),
    "dinov2": transformers.Dinov2Config(**SHAPE),
    "dinov2 with registers": transformers.Dinov2WithRegistersConfig(**SHAPE, num_register_tokens=4),
}
CHOICES: list[dict[str, Any]] = [
    {},
    {"layers": [-1], "norm": True},
    {"layers": [-2], "norm": False},
    {"layers": [-2], "norm": True},
    {"layers": [0, 2, -1], "norm": False},
]


def transformers_encoder(name: str) -> torch.nn.Module:
    family = ENCODERS[CONFIGS[name].model_type]
    made = getattr(transformers, family.transformers_class)(CONFIGS[name], **family.transformers_arguments)
    return randomised(made)


def transformers_features(source: torch.nn.Module, features: FeatureChoice, first: int, pixels: torch.Tensor):
    """What LLaVA's own code takes: hidden states of the layers, the last norm applied where it is asked for."""
    norm = next(getattr(source, n) for n in ("layernorm", "post_layernorm") if hasattr(source, n))
    states = source(pixels, output_hidden_states=True).hidden_states
    chosen = [norm(states[layer]) if features.norm else states[layer] for layer in features.layers]
    return torch.cat(chosen, dim=-1)[:, 0 if features.class_token else first :]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_features_are_those_of_transformers(tmp_path: Path, name: str, choice: dict[str, Any]):
    source = transformers_encoder(name)
    source.save_pretrained(tmp_path)
    loaded = load_vision_encoder(str(tmp_path), choice)
    family, size = ENCODERS[loaded.config.model_type], loaded.config.image_size
    pixels = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        actual = loaded.encoder(pixels)
        expected = transformers_features(source, loaded.features, family.num_first_tokens(loaded.config), pixels)
    assert actual.shape[1] == family.num_features(loaded.config, loaded.features)
    assert actual.shape[2] == family.width(loaded.config, loaded.features)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert loaded.ignored == []
    assert len(loaded.encoder.layers) == max(loaded.features.depths(3))


@pytest.mark.parametrize("name", CONFIGS)
def test_usually_as_the_family_is_used(tmp_path: Path, name: str):
    """ViT: everything. CLIP: LLaVA-1.5's. SigLIP and DINOv2: the last hidden state, of the patches."""
    source = transformers_encoder(name)
    source.save_pretrained(tmp_path)
    encoder = load_vision_encoder(str(tmp_path)).encoder
    size = CONFIGS[name].image_size
    pixels = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        out = source(pixels, output_hidden_states=True)
        expected = {
            "vit": out.last_hidden_state,
            "clip_vision_model": out.hidden_states[-2][:, 1:],
            "siglip_vision_model": out.last_hidden_state,
            "dinov2": out.last_hidden_state[:, 1:],
            "dinov2_with_registers": out.last_hidden_state[:, 5:],
        }[CONFIGS[name].model_type]
        torch.testing.assert_close(encoder(pixels), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model", ["CLIP", "Siglip"])
def test_the_vision_side_of_a_model_with_text(tmp_path: Path, model: str):
    text = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 80}
    text |= {"vocab_size": 99}
    vision = CONFIGS[model.lower()].to_dict()
    config = getattr(transformers, f"{model}Config")(text_config=text, vision_config=vision)
    source = randomised(getattr(transformers, f"{model}Model")(config))
    source.save_pretrained(tmp_path)
    loaded = load_vision_encoder(str(tmp_path), {"layers": [-1], "norm": False})
    pixels = torch.randn(1, 3, 56, 56)
    with torch.inference_mode():
        expected = source.vision_model(pixels, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(loaded.encoder(pixels)[:, -16:], expected[:, -16:], atol=1e-5, rtol=1e-5)
    assert loaded.ignored == []


def test_as_many_features_as_the_releases_have():
    large = {"num_hidden_layers": 24}
    for model_type, config, features in (
        ("clip_vision_model", transformers.CLIPVisionConfig(image_size=336, patch_size=14, **large), 576),
        ("siglip_vision_model", transformers.SiglipVisionConfig(image_size=384, patch_size=14), 729),
        ("dinov2", transformers.Dinov2Config(image_size=518, patch_size=14), 1369),
        ("vit", transformers.ViTConfig(image_size=384, patch_size=32), 145),
    ):
        family = ENCODERS[model_type]
        family.check(config, family.usual_features)
        assert family.num_features(config, family.usual_features) == features


@pytest.mark.parametrize(
    ("name", "choice", "said"),
    [
        ("siglip", {"class_token": False}, "no class token"),
        ("clip", {"layers": [-5]}, "the encoder has 3 layers"),
        ("clip", {"layers": []}, "vision_features.layers"),
        ("clip", {"layer": [-1]}, "unknown fields"),
    ],
)
def test_what_cannot_be_taken_is_said(tmp_path: Path, name: str, choice: dict[str, Any], said: str):
    transformers_encoder(name).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=said):
        load_vision_encoder(str(tmp_path), choice)


@pytest.mark.parametrize("name", CONFIGS)
def test_new_embeddings_are_as_large_as_transformers_makes_them(name: str):
    torch.manual_seed(0)
    config = CONFIGS[name]
    family = ENCODERS[config.model_type]
    ours = family(config, TorchLayers(), family.usual_features)
    ours.initialise_embeddings(config)
    theirs = getattr(transformers, family.transformers_class)(config, **family.transformers_arguments).state_dict()
    [position] = [tensor for weight, tensor in theirs.items() if "position_embedding" in weight]
    assert ours.position_embedding.std().item() == pytest.approx(position.std().item(), rel=0.25)
