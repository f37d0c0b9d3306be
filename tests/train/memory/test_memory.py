"""The arithmetic of training's memory against what torch allocates, on a scaled model."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import Qwen2Config, Qwen3Config, ViTConfig

from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.train.memory.__main__ import main
from qwen_vqa.train.memory.memory_check import CASES, measured_and_predicted
from qwen_vqa.train.memory.memory_estimate import GIB, full_model, layer_bytes, memory_of, parts_of
from qwen_vqa.train.model.reference_checkpoint import load_reference
from qwen_vqa.train.training_config import LOAD_IN, TrainingConfig
from tests.tiny import REPOSITORY

# Of each release's config.json: width, layers, heads, key and value heads, the MLP's width, vocabulary, tied.
RELEASES = {
    "0.5B": (896, 24, 14, 2, 4864, 151936, True),
    "1.5B": (1536, 28, 12, 2, 8960, 151936, True),
    "3B": (2048, 36, 16, 2, 11008, 151936, True),
    "7B": (3584, 28, 28, 4, 18944, 152064, False),
}
FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
)


@pytest.mark.parametrize("case", ["LoRA on attention", "LoRA on both", "not checkpointed", "long answers"])
def test_a_steps_peak_is_as_predicted(case: str):
    measured, predicted = measured_and_predicted(**CASES[case])
    assert 0.85 < measured / predicted < 1.2


def test_logits_at_few_positions_take_a_fraction_of_those_at_all():
    few, _ = measured_and_predicted(vocabulary=10_000, length=128)
    everywhere, _ = measured_and_predicted(vocabulary=10_000, length=128, everywhere=True)
    assert few < everywhere / 5


@pytest.mark.parametrize("load_in", ["full", "8bit", "4bit"])
def test_the_weights_take_what_is_predicted(tiny_checkpoint: Path, load_in: str):
    model = load_reference(tiny_checkpoint, "bfloat16", load_in)
    predicted = memory_of(model.config, TrainingConfig(rank=0, load_in=load_in), 64, 8).weights
    connector = sum(weight.numel() for weight in model.connector.parameters())
    assert model.get_memory_footprint() == pytest.approx(predicted + 2 * connector, rel=0.03)


def test_the_full_model_has_the_published_number_of_weights():
    parts = parts_of(full_model(), TrainingConfig())
    language_model = parts.roundable + parts.whole - 87_000_000
    assert language_model == pytest.approx(3.09e9, rel=0.005)  # Qwen2.5-3B's model card: 3.09 billion
    assert parts.trained == 29_491_200 + 768 * 2048 + 2048 + 2048 * 2048 + 2048


def test_heads_have_the_size_that_the_config_says():
    """Qwen3-0.6B: 16 heads of 128 at a width of 1,024."""
    sizes = {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8, "num_hidden_layers": 2}
    vision = ViTConfig(image_size=384, patch_size=32)
    config = QwenVqaConfig(vision, Qwen3Config(head_dim=128, vocab_size=1000, intermediate_size=3072, **sizes))
    training = TrainingConfig(dropout=0)
    parts = parts_of(config, training)
    kept = layer_bytes(config, training, parts, 64)
    queries, keys, mask, mlp = 2 * 2 * 16 * 128, 2 * 2 * 8 * 128, 2 * 64, 3 * 2 * 3072
    assert kept == 2 * 4 * 1024 + queries + keys + mask + mlp + 2 * parts.lora_inputs


def test_the_command_says_what_fits(capsys):
    main(["--length", "2048", "--card", "8"])
    rows = capsys.readouterr().out.splitlines()[-3:]
    assert [row.endswith("does not fit") for row in rows] == [True, False, False]


@pytest.mark.parametrize("name", RELEASES)
def test_the_readmes_table_is_this_arithmetic(name: str):
    text = Qwen2Config(**dict(zip(FIELDS, RELEASES[name], strict=True)))
    config = replace_text(full_model(), text)
    training = TrainingConfig(gradient_checkpointing=True)
    found = [memory_of(config, replace(training, load_in=load_in), 1024, 256) for load_in in LOAD_IN]
    cache = 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * text.hidden_size / text.num_attention_heads
    numbers = [f"{one.weights / GIB:.1f}" for one in found], [f"{one.total / GIB:.1f}" for one in found]
    row = f"| {name} | {', '.join(numbers[0])} | {1000 * cache / GIB:.2f} | {', '.join(numbers[1])} |"
    assert re.search(rf"^{re.escape(row)}$", (REPOSITORY / "README.md").read_text(), re.MULTILINE), row


def replace_text(config: QwenVqaConfig, text: Qwen2Config) -> QwenVqaConfig:
    """The same encoder before another language model."""
    return QwenVqaConfig(
        config.vision_config, text, {"hidden_size": text.hidden_size}, image_token_id=5, vision_in_float32=True
    )
