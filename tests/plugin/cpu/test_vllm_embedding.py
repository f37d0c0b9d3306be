"""Embeddings on a CPU: held once, in 16 bits where that is exact, and the answers stay the reference's."""

from pathlib import Path

import pytest
import torch
from torch import nn

from qwen_vqa.plugin.cpu.output_layout import MIXED, SETTING, SHARED
from qwen_vqa.train.model.reference_checkpoint import load_reference
from tests.plugin.engine import Answer, Engine, Request
from tests.tiny import make_checkpoint

pytestmark = pytest.mark.cpu

PROMPT = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
TOLERANCE = 1e-3


def embeddings(model: nn.Module) -> dict[str, tuple[int, torch.dtype]]:
    """Numbers that each embedding layer holds in Python's reach, and their type."""
    language_model = model.language_model
    layers = {"input": language_model.model.embed_tokens, "output": language_model.lm_head}
    return {name: (layer.weight.numel(), layer.weight.dtype) for name, layer in layers.items()}


@pytest.mark.parametrize(
    ("tied", "setting", "stored", "held"),
    [
        (True, MIXED, torch.bfloat16, {"input": (1, torch.bfloat16), "output": (0, torch.float32)}),
        (True, SHARED, torch.bfloat16, {"input": (1, torch.float32), "output": (1, torch.float32)}),
        (False, SHARED, torch.bfloat16, {"input": (1, torch.bfloat16), "output": (0, torch.float32)}),
    ],
)
def test_embeddings_are_held_once(tmp_path: Path, tied: bool, setting: str, stored: torch.dtype, held: dict):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", tied=tied, dtype=stored)
    reference = load_reference(checkpoint, torch.float32)
    table = reference.language_model.get_input_embeddings().weight
    with Engine(checkpoint, additional_config={SETTING: setting}) as engine:
        found = engine.apply_to_model(embeddings)
        assert engine.apply_to_model(few_are_multiplied_with) is None  # nothing is compiled
        answers = engine.generate([Request(PROMPT)] * 3)
    assert {name: (numbers / table.numel(), dtype) for name, (numbers, dtype) in found.items()} == held
    assert_as_reference(reference, answers)


def few_are_multiplied_with(model: nn.Module) -> torch.dtype | None:
    """The type of the table that a few answers meet, if they do not meet the packed one's weight."""
    inputs = getattr(model.language_model.lm_head.quant_method, "inputs", None)
    return None if inputs is None else inputs.weight.dtype


def assert_as_reference(reference: nn.Module, answers: list[Answer]) -> None:
    for answer in answers:
        ids = torch.tensor([answer.prompt_ids + answer.token_ids])
        with torch.inference_mode():
            expected = reference(input_ids=ids).logits[0, len(answer.prompt_ids) - 1 : -1].log_softmax(-1)
        assert answer.token_ids == expected.argmax(-1).tolist()
        for step, logprobs in zip(expected, answer.logprobs, strict=True):
            for token, logprob in logprobs.items():
                assert logprob == pytest.approx(step[token].item(), abs=TOLERANCE)
