"""The float types of a run: frozen weights in its precision, trained ones in float32; the export loses nothing."""

from pathlib import Path

import pytest
import torch
from torch import nn

from qwen_vqa.serving.cli import main
from qwen_vqa.train.model.reference_checkpoint import load_reference
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration
from qwen_vqa.train.train import train
from qwen_vqa.train.trainer import load_for_training
from qwen_vqa.train.training_arguments import training_arguments
from qwen_vqa.train.training_config import TrainingConfig
from tests.tiny import make_checkpoint
from tests.train import releases

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
STEP = {"rank": 4, "dropout": 0.0, "max_steps": 1, "batch_size": 2, "accumulation": 1, "warmup_ratio": 0.0}


def loaded(base: Path, config: TrainingConfig) -> QwenVqaForConditionalGeneration:
    """As `train` loads it on a GPU; the Trainer's arguments for float16 cannot be made without one."""
    arguments = training_arguments(TrainingConfig(precision="float32"), "unused")
    arguments.bf16, arguments.fp16 = config.precision == "bfloat16", config.precision == "float16"
    return load_for_training(base, config, arguments)


def types_of(model: QwenVqaForConditionalGeneration, trained: bool) -> set[torch.dtype]:
    weights = [weight for weight in model.parameters() if weight.requires_grad == trained]
    assert weights
    return {weight.dtype for weight in weights}


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_frozen_has_the_precision_and_what_is_trained_float32(
    tmp_path: Path, precision: str, stored: torch.dtype
):
    base = make_checkpoint(tmp_path / "base", dtype=stored)
    model = loaded(base, TrainingConfig(**STEP, precision=precision))
    assert types_of(model, trained=False) == {PRECISIONS[precision]}
    assert types_of(model, trained=True) == {torch.float32}
    assert model.get_input_embeddings().weight.dtype == PRECISIONS[precision]


def test_a_language_model_that_is_trained_whole_is_not_rounded_first(tiny_checkpoint: Path):
    whole = {"full_language_model": True, "rank": 0}
    model = loaded(tiny_checkpoint, TrainingConfig(**(STEP | whole), precision="float16"))
    expected = load_reference(tiny_checkpoint, torch.float32).state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_rounded_language_model_computes_in_the_precision(tiny_checkpoint: Path, precision: str, load_in: str):
    import bitsandbytes as bnb

    model = loaded(tiny_checkpoint, TrainingConfig(**STEP, precision=precision, load_in=load_in))
    dtype = PRECISIONS[precision]
    rounded = [module for module in model.modules() if isinstance(module, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt))]
    assert len(rounded) == 2 * 7
    if load_in == "4bit":
        assert {layer.compute_dtype for layer in rounded} == {dtype}
    assert model.get_input_embeddings().weight.dtype == dtype
    assert types_of(model, trained=True) == {torch.float32}


def test_the_gradient_scaler_of_float16_takes_the_gradients(tiny_checkpoint: Path):
    """As accelerate calls it; it refuses gradients in float16."""
    model = loaded(tiny_checkpoint, TrainingConfig(**STEP, precision="float16")).train()
    ids = torch.arange(8)[None]

    def scaled_step() -> list[nn.Parameter]:
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer, scaler = torch.optim.AdamW(trained, lr=1e-3), torch.amp.GradScaler("cpu", init_scale=8.0)
        with torch.autocast("cpu", torch.float16):
            loss = model(input_ids=ids, labels=ids).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        return trained

    before = [weight.detach().clone() for weight in model.parameters() if weight.requires_grad]
    after = scaled_step()
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    model.language_model.half()
    with pytest.raises(ValueError, match="FP16 gradients"):
        scaled_step()


def test_float16_without_a_gpu_says_what_to_take(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ["train", str(tiny_checkpoint), "--data", releases.write_llava(tmp_path), "-o", str(tmp_path / "run")]
    assert main([*words, "--precision", "float16"]) == 2
    error = capsys.readouterr().err
    assert "float16 needs a GPU" in error and "bfloat16 or float32" in error


def test_a_run_in_16_bits_leaves_the_bases_other_weights_as_they_were(tiny_checkpoint: Path, tmp_path: Path):
    words = ["train", str(tiny_checkpoint), "--data", releases.write_llava(tmp_path), "-o", str(tmp_path / "run")]
    steps = ["--precision", "bfloat16", "--rank", "4", "--max-steps", "3", "--target-modules", "q_proj"]
    assert main([*words, *steps, "--learning-rate", "0.01"]) == 0
    base, left = load_reference(tiny_checkpoint).state_dict(), load_reference(tmp_path / "run/model").state_dict()
    changed = {name for name in base if not torch.equal(base[name], left[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "linear_1", "linear_2"}
    assert {weight.dtype for weight in left.values()} == {torch.float32}


def test_a_run_trains_in_the_types_that_were_loaded(tiny_checkpoint: Path, tmp_path: Path):
    dataset = releases.prepare(tmp_path / "run", releases.write_llava(tmp_path))
    trainer = train(tiny_checkpoint, dataset, tmp_path / "run", TrainingConfig(**STEP, precision="bfloat16"))
    model = trainer.accelerator.unwrap_model(trainer.model)
    assert types_of(model, trained=False) == {torch.bfloat16}
    assert types_of(model, trained=True) == {torch.float32}
