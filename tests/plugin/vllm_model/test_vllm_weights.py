"""The model's parts in vLLM's layers, without an engine: equal numbers, and no weight left out silently."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.train.model.reference_checkpoint import load_reference
from tests.tiny import make_checkpoint

vllm = pytest.importorskip("vllm")

from vllm.config import VllmConfig  # noqa: E402 - only where vLLM is installed
from vllm.model_executor.model_loader.utils import process_weights_after_loading  # noqa: E402

from qwen_vqa.plugin.vllm_model.model import QwenVqaForConditionalGeneration, check_tensor_parallel  # noqa: E402

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("weights"), request.param, tied=request.param == "qwen2")


@pytest.fixture
def empty(vllm_config: VllmConfig) -> QwenVqaForConditionalGeneration:
    """The model before loading."""
    # Every model enters its attention layers here, and finds those of the one before.
    vllm_config.compilation_config.static_forward_context.clear()
    return QwenVqaForConditionalGeneration(vllm_config=vllm_config)


@pytest.fixture
def weights(checkpoint: Path) -> Weights:
    return load_file(checkpoint / "model.safetensors")


def test_all_images_of_a_step_are_encoded_at_once_as_by_the_reference(
    empty: QwenVqaForConditionalGeneration, weights: Weights, checkpoint: Path, vllm_config: VllmConfig
) -> None:
    empty.load_weights(weights.items())
    process_weights_after_loading(empty, vllm_config.model_config, torch.device("cpu"))
    calls: list[int] = []
    empty.vision_encoder.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    pixels = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    reference = load_reference(checkpoint, torch.float32)
    with torch.inference_mode():
        features = empty.vision_encoder(pixels)
        embeddings = empty.embed_multimodal(pixel_values=pixels)
        assert torch.allclose(features, reference.vision_encoder(pixels), atol=1e-4, rtol=0)
        assert torch.allclose(
            torch.stack(list(embeddings)), reference.connector(reference.vision_encoder(pixels)), atol=1e-4, rtol=0
        )
    assert calls == [5, 5]
    assert [tuple(image.shape) for image in embeddings] == [(5, 128)] * 5


def test_pixels_of_another_canvas_are_refused(empty: QwenVqaForConditionalGeneration) -> None:
    with pytest.raises(ValueError, match="pixel_values"):
        empty.embed_multimodal(pixel_values=torch.zeros(1, 3, 96, 96))


@pytest.mark.parametrize(
    "name",
    [
        "vision_encoder.class_embedding",
        "vision_encoder.layers.1.attention.k_proj.bias",
        "vision_encoder.layers.0.mlp.fc1.weight",
        "vision_encoder.final_norm.weight",
        "connector.linear_2.bias",
        "language_model.model.layers.0.self_attn.k_proj.weight",
        "language_model.model.layers.1.mlp.up_proj.weight",
        "language_model.model.layers.1.mlp.down_proj.weight",
        "language_model.model.norm.weight",
        "language_model.model.embed_tokens.weight",
    ],
)
def test_a_missing_weight_is_named(empty: QwenVqaForConditionalGeneration, weights: Weights, name: str) -> None:
    del weights[name]
    with pytest.raises(ValueError, match=f"the checkpoint lacks 1 weights: {name}"):
        empty.load_weights(weights.items())


def test_all_missing_weights_are_named(empty: QwenVqaForConditionalGeneration, weights: Weights) -> None:
    gone = sorted(name for name in weights if ".layers.1.self_attn." in name or name.startswith("connector."))
    with pytest.raises(ValueError, match=f"lacks {len(gone)} weights: {', '.join(gone)}"):
        empty.load_weights((name, tensor) for name, tensor in weights.items() if name not in gone)


@pytest.mark.parametrize(
    "name",
    [
        "vision_encoder.pooler.dense.weight",
        "vision_encoder.layers.2.mlp.fc1.weight",
        "vision_encoder.layers.0.attention.qkv.weight",
        "connector.linear_3.weight",
        "language_model.model.layers.2.mlp.up_proj.weight",
        "language_model.model.layers.0.self_attn.o_proj.bias",
        "language_model.model.norm.bias",
        "model.visual.weight",
    ],
)
def test_an_unexpected_weight_is_named(empty: QwenVqaForConditionalGeneration, weights: Weights, name: str) -> None:
    with pytest.raises(ValueError, match=f"the model has no place for 1 weights: {name}"):
        empty.load_weights([*weights.items(), (name, torch.zeros(1))])


@pytest.mark.parametrize(
    "name",
    [
        "vision_encoder.patch_embedding.weight",
        "vision_encoder.position_embedding",
        "vision_encoder.layers.0.attention.q_proj.weight",
        "vision_encoder.layers.0.mlp.fc1.bias",
        "connector.linear_1.weight",
        "language_model.model.layers.0.self_attn.v_proj.weight",
        "language_model.model.layers.0.mlp.gate_proj.weight",
        "language_model.model.layers.0.mlp.down_proj.weight",
        "language_model.model.embed_tokens.weight",
    ],
)
def test_a_weight_of_another_shape_is_named(
    empty: QwenVqaForConditionalGeneration, weights: Weights, name: str
) -> None:
    weights[name] = torch.cat([weights[name], weights[name]], dim=-1)
    with pytest.raises(ValueError, match=rf"the checkpoint does not fit the model at \['{name}'\]"):
        empty.load_weights(weights.items())


def test_tied_embeddings_may_come_twice(
    empty: QwenVqaForConditionalGeneration, weights: Weights, vllm_config: VllmConfig
) -> None:
    if not vllm_config.model_config.hf_config.text_config.tie_word_embeddings:
        assert "language_model.lm_head.weight" in weights
        return
    assert "language_model.lm_head.weight" not in weights
    weights["language_model.lm_head.weight"] = weights["language_model.model.embed_tokens.weight"]
    empty.load_weights(weights.items())


@pytest.mark.parametrize(
    ("field", "ranks"),
    [("vision_config.num_attention_heads 2", 4), ("vision_config.intermediate_size 96", 5)],
)
def test_ranks_that_do_not_divide_the_vision_side_are_refused(vllm_config: VllmConfig, field: str, ranks: int) -> None:
    config: QwenVqaConfig = vllm_config.model_config.hf_config
    if "intermediate" in field:
        config.vision_config.num_attention_heads = ranks
    with pytest.raises(ValueError, match=f"--tensor-parallel-size {ranks} does not divide {field}"):
        check_tensor_parallel(config, ranks)
    if "heads" in field:
        check_tensor_parallel(config, ranks, encoder_whole=True)
    config.vision_config.num_attention_heads = 2
