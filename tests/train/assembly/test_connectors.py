"""Connectors of LLaVA, transformers, SmolVLM and nanoVLM give the embeddings here that they give there."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionConfig, Idefics3Config, LlamaConfig, LlavaConfig, SiglipVisionConfig
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.plugin.connector.mlp import ConnectorShape, MlpConnector
from qwen_vqa.plugin.connector.pixel_shuffle import pixel_shuffle
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.assembly.connector_file import connector_shape, load_connector, save_connector
from qwen_vqa.train.model.torch_layers import TorchLayers

VISION, TEXT = 32, 48
TEXT_CONFIG = LlamaConfig(hidden_size=TEXT, num_attention_heads=4)
FEATURES = torch.randn(2, 36, VISION, generator=torch.Generator().manual_seed(0))


def ours(path: Path, factor: int = 1) -> MlpConnector:
    """The connector of a file, as `qwen-vqa assemble` makes it."""
    weights = load_connector(path)
    connector = MlpConnector(VISION, TEXT, connector_shape(weights, VISION, TEXT, factor, path), TorchLayers())
    connector.load_state_dict(weights)
    return connector


def llava_projector(kind: str) -> nn.Module:
    """As LLaVA's builder makes them (its multimodal_projector/builder.py): `linear`, or `mlpNx_gelu`."""
    if kind == "linear":
        return nn.Linear(VISION, TEXT)
    layers: list[nn.Module] = [nn.Linear(VISION, TEXT)]
    for _ in range(1, int(kind[3])):
        layers += [nn.GELU(), nn.Linear(TEXT, TEXT)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("kind", ["linear", "mlp1x_gelu", "mlp2x_gelu", "mlp3x_gelu"])
def test_llavas_projectors(tmp_path: Path, kind: str):
    theirs = llava_projector(kind)
    torch.save({f"model.mm_projector.{k}": v for k, v in theirs.state_dict().items()}, tmp_path / "mm_projector.bin")
    torch.testing.assert_close(ours(tmp_path)(FEATURES), theirs(FEATURES))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layers", [[-2], [-2, -1]])
def test_transformers_llava(tmp_path: Path, bias: bool, layers: list[int]):
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=VISION // len(layers), num_attention_heads=4),
        text_config=TEXT_CONFIG,
        vision_feature_layer=layers,
        multimodal_projector_bias=bias,
    )
    theirs = LlavaMultiModalProjector(config)
    save_file({f"multi_modal_projector.{k}": v for k, v in theirs.state_dict().items()}, tmp_path / "model.safetensors")
    torch.testing.assert_close(ours(tmp_path)(FEATURES), theirs(FEATURES))


@pytest.mark.parametrize("factor", [2, 3, 6])
@pytest.mark.parametrize("prefix", ["model.connector.", "connector."])
def test_smolvlms_connector(tmp_path: Path, factor: int, prefix: str):
    config = Idefics3Config(vision_config={"hidden_size": VISION}, text_config=TEXT_CONFIG, scale_factor=factor)
    theirs = Idefics3Connector(config)
    save_file({prefix + k: v for k, v in theirs.state_dict().items()}, tmp_path / "model.safetensors")
    expected = theirs(FEATURES)
    assert expected.shape[1] == ConnectorShape(TEXT, pixel_shuffle=factor).num_tokens(36)
    torch.testing.assert_close(ours(tmp_path, factor)(FEATURES), expected)


def test_nanovlms_connector(tmp_path: Path):
    theirs = Idefics3Connector(
        Idefics3Config(vision_config={"hidden_size": VISION}, text_config=TEXT_CONFIG, scale_factor=3)
    )
    save_file({"MP.proj.weight": theirs.modality_projection.proj.weight.detach()}, tmp_path / "model.safetensors")
    torch.testing.assert_close(ours(tmp_path, 3)(FEATURES), theirs(FEATURES))


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_what_is_exported_is_read_again(tmp_path: Path, num_layers: int, bias: bool):
    shape = ConnectorShape(TEXT, num_layers=num_layers, bias=bias)
    connector = MlpConnector(VISION, TEXT, shape, TorchLayers())
    save_connector(connector.state_dict(), tmp_path / "final_connector.pth")
    assert next(iter(torch.load(tmp_path / "final_connector.pth"))) == "0.weight"
    again = ours(tmp_path / "final_connector.pth")
    assert again.shape == shape
    assert torch.equal(again(FEATURES), connector(FEATURES))


@pytest.mark.parametrize(
    ("width", "advice"), [(4 * VISION, "--pixel-shuffle 2.*--feature-layer with 4"), (3 * VISION, "with 3 layers")]
)
def test_a_wider_connector_says_what_it_may_join(tmp_path: Path, width: int, advice: str):
    torch.save(nn.Linear(width, TEXT).state_dict(), tmp_path / "c.pth")
    with pytest.raises(UserError, match=advice):
        ours(tmp_path / "c.pth")


def test_a_connector_for_two_scales_says_so(tmp_path: Path):
    torch.save(nn.Linear(2 * VISION, TEXT).state_dict(), tmp_path / "c.pth")
    with pytest.raises(UserError, match=r"--views s2.*--feature-layer with 2"):
        ours(tmp_path / "c.pth")
    torch.save(nn.Linear(5 * VISION, TEXT).state_dict(), tmp_path / "c.pth")
    with pytest.raises(UserError, match=r"--views s2 --pooling space-to-depth.*--feature-layer with 5"):
        ours(tmp_path / "c.pth")


@pytest.mark.parametrize("tiles", [True, False])
def test_a_connector_trained_with_tiles_or_without_says_so(tmp_path: Path, tiles: bool):
    connector = MlpConnector(VISION, TEXT, ConnectorShape(TEXT), TorchLayers(), has_newline=tiles)
    save_connector(connector.state_dict(), tmp_path / "c.pth")
    weights = load_connector(tmp_path / "c.pth")
    assert ("image_newline" in weights) == tiles
    assert connector_shape(weights, VISION, TEXT, 1, "c.pth", tiles) == ConnectorShape(TEXT)
    with pytest.raises(UserError, match=f"--views {'tiles' if tiles else 'whole'}"):
        connector_shape(weights, VISION, TEXT, 1, "c.pth", not tiles)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_layers": 4}, "num_layers is 4"),
        ({"bias": "yes"}, "bias is 'yes'"),
        ({"pixel_shuffle": 0}, "pixel_shuffle is 0"),
        ({"pixel_shuffle": 2}, "27|729.*3, 9, 27"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'"),
    ],
)
def test_a_config_that_cannot_be_is_refused(fields: dict, said: str):
    with pytest.raises(ValueError, match=said):
        QwenVqaConfig(SiglipVisionConfig(image_size=384, patch_size=14), LlamaConfig(), fields)


def test_a_class_token_has_no_place_in_a_square():
    with pytest.raises(ValueError, match="145 features"):
        QwenVqaConfig(None, LlamaConfig(), {"pixel_shuffle": 2})


def test_so400m_takes_81_tokens_with_a_pixel_shuffle_of_3():
    config = QwenVqaConfig(SiglipVisionConfig(image_size=384, patch_size=14), LlamaConfig(), {"pixel_shuffle": 3})
    assert (config.features_per_view, config.tokens_per_view, config.most_image_tokens) == (729, 81, 81)


def test_a_shuffle_of_one_is_none():
    assert pixel_shuffle(FEATURES, 1) is FEATURES
