"""Our encoder is transformers' ViT, under stable names."""

from pathlib import Path

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.vision.vit import VitEncoder
from qwen_vqa.train.assembly.encoder_file import load_vision_encoder, renamed_weights
from qwen_vqa.train.model.torch_layers import TorchLayers

CONFIG = ViTConfig(
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=80,
    image_size=96,
    patch_size=32,
    initializer_range=0.3,
)


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.mark.parametrize("model_class", [ViTModel, ViTForImageClassification])
def test_the_features_are_those_of_transformers(tmp_path: Path, model_class: type):
    source = randomised(model_class(CONFIG))
    source.save_pretrained(tmp_path)
    loaded = load_vision_encoder(str(tmp_path))
    config, encoder = loaded.config, loaded.encoder
    pixels = torch.randn(2, 3, 96, 96)
    vit = source if model_class is ViTModel else source.vit
    with torch.inference_mode():
        expected = vit(pixels).last_hidden_state
        actual = encoder(pixels)
    assert actual.shape == (2, 10, 48)
    assert config.hidden_size == 48
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_the_names_of_older_releases_are_known():
    names = {
        "embeddings.cls_token": "class_embedding",
        "embeddings.position_embeddings": "position_embedding",
        "embeddings.patch_embeddings.projection.weight": "patch_embedding.weight",
        "encoder.layer.11.attention.attention.query.weight": "layers.11.attention.q_proj.weight",
        "encoder.layer.0.attention.attention.value.bias": "layers.0.attention.v_proj.bias",
        "encoder.layer.0.attention.output.dense.weight": "layers.0.attention.out_proj.weight",
        "encoder.layer.0.intermediate.dense.weight": "layers.0.mlp.fc1.weight",
        "encoder.layer.0.output.dense.bias": "layers.0.mlp.fc2.bias",
        "encoder.layer.0.layernorm_before.weight": "layers.0.attention_norm.weight",
        "encoder.layer.0.layernorm_after.weight": "layers.0.mlp_norm.weight",
        "layernorm.bias": "final_norm.bias",
    }
    zero = torch.zeros(1)
    assert set(renamed_weights(VitEncoder, dict.fromkeys(names, zero))) == set(names.values())


def test_every_weight_of_the_installed_release_has_a_place():
    renamed = renamed_weights(VitEncoder, ViTModel(CONFIG, add_pooling_layer=False).state_dict())
    assert renamed.keys() == VitEncoder(CONFIG, TorchLayers(), VitEncoder.usual_features).state_dict().keys()


def test_an_unknown_name_is_an_error():
    with pytest.raises(UserError, match=r"embeddings\.mask_token"):
        renamed_weights(VitEncoder, {"embeddings.mask_token": torch.zeros(1)})


def test_another_encoder_is_refused(tmp_path: Path):
    from transformers import BeitConfig

    BeitConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a beit; this version takes vit, clip_vision_model"):
        load_vision_encoder(str(tmp_path))


def test_no_encoder_at_all_is_said(tmp_path: Path):
    with pytest.raises(UserError, match=r"no vision encoder at .*nowhere"):
        load_vision_encoder(str(tmp_path / "nowhere"))
