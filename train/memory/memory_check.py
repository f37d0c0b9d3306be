"""What a training step really takes, on a scaled model on the CPU: torch's own allocator, watched by its profiler."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2Config, ViTConfig

from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.train.memory.memory_estimate import memory_of
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration
from qwen_vqa.train.trainer import prepare_model
from qwen_vqa.train.training_config import TrainingConfig

IMAGE_TOKEN = 1


def scaled_model(hidden: int, layers: int, intermediate: int, vocabulary: int) -> QwenVqaForConditionalGeneration:
    """Random bfloat16 weights in the shape of Qwen2.5 behind a small encoder of 17 tokens."""
    heads = hidden // 64
    text = Qwen2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 8),
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
    )
    vision = ViTConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128, image_size=64)
    config = QwenVqaConfig(vision, text, {"hidden_size": hidden}, image_token_id=IMAGE_TOKEN)
    torch.manual_seed(0)
    return QwenVqaForConditionalGeneration(config).to(torch.bfloat16).train()


def batch_of(model: QwenVqaForConditionalGeneration, samples: int, length: int, labelled: int) -> dict:
    """Random samples with a picture first and answers of `labelled` tokens at the end."""
    config = model.config
    ids = torch.randint(2, config.text_config.vocab_size, (samples, length))
    ids[ids == config.image_token_id] = 0
    ids[:, : config.tokens_per_view] = config.image_token_id
    labels = ids.clone()
    labels[:, : length - labelled] = -100
    features = torch.randn(samples, config.features_per_view, config.feature_width)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0  # padding, as in most batches: attention takes another kernel without
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "image_features": features}


def measured_step(
    model: QwenVqaForConditionalGeneration, config: TrainingConfig, batch: dict, everywhere: bool = False
) -> int:
    """Peak bytes of forward and backward above what stands between steps (weights and the optimiser's moments).

    With `everywhere` the loss is transformers' own, with logits at all positions.
    """
    prepare_model(model, config)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = _loss_everywhere(model, **batch) if everywhere else model(**batch).loss
        loss.backward()

    step()  # what is allocated once
    model.zero_grad()
    return peak_bytes(step)


def _loss_everywhere(model: QwenVqaForConditionalGeneration, input_ids: Any, image_features: Any, **inputs: Any) -> Any:
    embeddings = model.embed(input_ids, image_features=image_features)
    return model.language_model(inputs_embeds=embeddings, use_cache=False, **inputs).loss


def peak_bytes(act: Callable[[], None]) -> int:
    """The most that torch's CPU allocator held during `act`, above what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        act()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    memory = [event["args"] for event in events if event.get("name") == "[memory]"]
    first = min(memory, key=lambda one: one["Ev Idx"])
    before = first["Total Allocated"] - first["Bytes"]  # not 0 where an earlier profile's tensors were freed after it
    return max(one["Total Allocated"] for one in memory) - before


CASES: dict[str, dict] = {
    "LoRA on attention": {},
    "LoRA on both": {"target_modules": ("attention", "mlp")},
    "no dropout": {"dropout": 0.0},
    "not checkpointed": {"gradient_checkpointing": False},
    "connector alone": {"rank": 0},
    "long answers": {"labelled": 200, "vocabulary": 20_000},
}


def measured_and_predicted(
    labelled: int = 8, vocabulary: int = 4_000, length: int = 256, everywhere: bool = False, **changes: Any
) -> tuple[int, int]:
    """Bytes of a step's peak above weights and moments, on the scaled model."""
    training = TrainingConfig(**{"rank": 16, "alpha": 32, "gradient_checkpointing": True} | changes)
    model = scaled_model(128, 4, 688, vocabulary)
    predicted = memory_of(model.config, training, length, labelled, mask_bytes=4)
    batch = batch_of(model, training.batch_size, length, labelled)
    measured = measured_step(model, training, batch, everywhere)
    return measured, predicted.gradients + predicted.activations + predicted.logits


def check() -> str:
    """A row a case: measured and predicted megabytes, and how they compare."""
    lines = [f"{'peak of a step, above what stands':<34}{'measured':>10}{'predicted':>11}{'ratio':>7}"]
    for name, changes in CASES.items():
        measured, predicted = measured_and_predicted(**changes)
        lines.append(f"{name:<34}{measured / 1e6:>7.1f} MB{predicted / 1e6:>8.1f} MB{measured / predicted:>7.2f}")
    everywhere, _ = measured_and_predicted(everywhere=True, **CASES["long answers"])
    lines.append(f"{'the same, logits at all positions':<34}{everywhere / 1e6:>7.1f} MB")
    return "\n".join(lines)
