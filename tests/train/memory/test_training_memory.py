"""What saves memory changes nothing, or only what it says: checkpointing, cached features, rounded weights."""

from pathlib import Path

import pytest
import torch

from qwen_vqa.serving.cli import main
from qwen_vqa.train.data.collator import ConversationCollator
from qwen_vqa.train.model.reference_checkpoint import load_reference
from qwen_vqa.train.train import train
from qwen_vqa.train.trainer import prepare_model
from qwen_vqa.train.training_config import TrainingConfig
from tests.tiny import tiny_config, tiny_model, tiny_processor
from tests.train import releases

SETTINGS = {
    "batch_size": 2, "accumulation": 1, "rank": 4, "alpha": 8, "dropout": 0.0, "learning_rate": 1e-3,
    "connector_learning_rate": 2e-3, "max_steps": 3, "precision": "float32",
}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    return [releases.write_llava(tmp_path), releases.write_textvqa_parquet(tmp_path)]


def trained(checkpoint: Path, data: list[str], output: Path, **changes: object):
    dataset = releases.prepare(output, *data)
    return train(checkpoint, dataset, output, TrainingConfig(**(SETTINGS | changes)))


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("rank", [0, 4])
def test_gradient_checkpointing_changes_no_loss(tiny_checkpoint: Path, data: list[str], tmp_path: Path, rank: int):
    whole = trained(tiny_checkpoint, data, tmp_path / "whole", rank=rank)
    saving = trained(tiny_checkpoint, data, tmp_path / "saving", rank=rank, gradient_checkpointing=True)
    layers = saving.model.get_submodule("language_model").get_decoder().layers
    assert all(layer.gradient_checkpointing for layer in layers)
    assert losses(saving) == pytest.approx(losses(whole), rel=1e-6)
    assert losses(whole)[0] != losses(whole)[-1]


def test_cached_features_are_what_the_encoder_gives(tiny_checkpoint: Path, data: list[str], tmp_path: Path):
    whole = trained(tiny_checkpoint, data, tmp_path / "whole", rank=0)
    cached = trained(tiny_checkpoint, data, tmp_path / "cached", rank=0, cache_features=True)
    assert losses(cached) == pytest.approx(losses(whole), rel=1e-5)
    assert (tmp_path / "cached/image_features.bin").stat().st_size == 6 * 5 * 64 * 4


@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
def test_a_lora_is_trained_on_rounded_weights_and_exported_on_whole_ones(
    tiny_checkpoint: Path, data: list[str], tmp_path: Path, load_in: str
):
    sources = [word for text in data for word in ("--data", text)]
    flags = ["--load-in", load_in, "--rank", "4", "--max-steps", "2", "--learning-rate", "0.01"]
    assert main(["train", str(tiny_checkpoint), *sources, "-o", str(tmp_path / "run"), *flags]) == 0
    model = load_reference(tmp_path / "run/model")
    base = load_reference(tiny_checkpoint)
    assert torch.equal(model.language_model.lm_head.weight, base.language_model.lm_head.weight)
    assert not torch.equal(model.connector.linear_1.weight, base.connector.linear_1.weight)


@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
def test_only_the_language_model_is_rounded(tiny_checkpoint: Path, load_in: str):
    model = load_reference(tiny_checkpoint, load_in=load_in)
    whole = load_reference(tiny_checkpoint)
    assert model.get_memory_footprint() < 0.8 * whole.get_memory_footprint()
    assert torch.equal(model.vision_encoder.layers[0].mlp.fc1.weight, whole.vision_encoder.layers[0].mlp.fc1.weight)
    assert torch.equal(model.connector.linear_2.weight, whole.connector.linear_2.weight)


def test_the_frozen_encoders_outputs_have_no_graph(tiny_checkpoint: Path):
    model = load_reference(tiny_checkpoint).requires_grad_(False)
    model.connector.requires_grad_(True)
    assert model.get_image_features(torch.zeros(1, 3, 64, 64)).grad_fn is None


@pytest.mark.parametrize("at_once", [256, 4])
@pytest.mark.parametrize("num_items", [None, 7])
def test_the_loss_is_the_language_models_own_with_logits_at_every_position(
    num_items: int | None, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("qwen_vqa.train.model.reference_model.LOGITS_AT_ONCE", at_once)
    processor = tiny_processor()
    dataset = releases.prepare(tmp_path, releases.write_llava(tmp_path), releases.write_textvqa(tmp_path))
    batch = ConversationCollator(processor)([dataset[index] for index in range(3)])
    assert (batch["attention_mask"] == 0).any()  # padding among them

    def gradients(of_all_positions: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = tiny_model(tiny_config(processor)).train()
        prepare_model(model, TrainingConfig(rank=4, dropout=0, target_modules=("attention", "mlp")))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.01)
        inputs = dict(batch)
        if of_all_positions:
            embeddings = model.embed(inputs.pop("input_ids"), inputs.pop("pixel_values"))
            output = model.language_model(inputs_embeds=embeddings, num_items_in_batch=num_items, **inputs)
            assert output.logits.shape[:2] == batch["labels"].shape
        else:
            output = model(**inputs, num_items_in_batch=num_items)
            assert output.logits is None
        output.loss.backward()
        return output.loss, {name: value.grad for name, value in model.named_parameters() if value.requires_grad}

    (expected, whole), (actual, counted) = gradients(True), gradients(False)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    assert len(whole) > 4 and all(bool(gradient.any()) for gradient in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(
            counted[name],
            gradient,
            rtol=1e-4,
            atol=1e-6 * float(gradient.abs().max()),
            msg=lambda m, n=name: f"{n}: {m}",
        )
