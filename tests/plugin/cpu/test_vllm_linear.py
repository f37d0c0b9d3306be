"""Linear layers held in float32 and in 16 bits: the answers stay the reference's, compiled and not."""

from pathlib import Path

import pytest
import torch
from torch import nn

from qwen_vqa.plugin.cpu import linear, small_batch_matmul
from qwen_vqa.plugin.cpu.linear_layout import LEAST_MATRIX_BYTES, MIXED, PACKED, SETTING
from qwen_vqa.plugin.cpu.output_layout import FEW, LEAST_TABLE_BYTES
from qwen_vqa.train.model.reference_adapter import attach_adapter
from qwen_vqa.train.model.reference_checkpoint import load_reference
from tests.plugin.cpu.test_vllm_embedding import PROMPT, TOLERANCE, assert_as_reference, few_are_multiplied_with
from tests.plugin.engine import Engine, Request
from tests.tiny import make_adapter, make_checkpoint

pytestmark = pytest.mark.cpu

HIDDEN = 128
# Of gate and up together, which are one matrix here, just large enough; all others are smaller.
INTERMEDIATE = LEAST_MATRIX_BYTES // (2 * 2 * HIDDEN)


def mixed(model: nn.Module) -> list[tuple[torch.dtype, list[int]]]:
    """What is held in 16 bits beside the packed weight."""
    return [(layer.weight_16.dtype, list(layer.weight_16.shape)) for layer in linear.mixed_layers(model.language_model)]


def compiled_products(_: nn.Module) -> int:
    """So far in the engine's process."""
    return small_batch_matmul.compiled_products()


def forget_halves(model: nn.Module) -> None:
    for layer in linear.mixed_layers(model.language_model):
        layer.weight_16.zero_()


@pytest.mark.parametrize("compiles", [True, False])
def test_a_few_rows_meet_the_16_bits(tmp_path: Path, compiles: bool):
    """And the table of the output layer, where it is as large as that is worth, and models are compiled: one engine is
    compiled for both."""
    large = {"vocabulary": LEAST_TABLE_BYTES // (2 * HIDDEN)} if compiles else {}
    checkpoint = make_checkpoint(tmp_path / "checkpoint", dtype=torch.bfloat16, intermediate=INTERMEDIATE, **large)
    reference = load_reference(checkpoint, torch.float32)
    layers = reference.config.text_config.num_hidden_layers
    products = FEW * (2 if compiles else 1)
    options = {"additional_config": {SETTING: MIXED}, "enforce_eager": not compiles}
    with Engine(checkpoint, {"TORCHDYNAMO_DISABLE": "0"} if compiles else None, **options) as engine:
        assert engine.apply_to_model(mixed) == [(torch.bfloat16, [2 * INTERMEDIATE, HIDDEN])] * layers
        assert engine.apply_to_model(few_are_multiplied_with) == (torch.bfloat16 if compiles else None)
        assert engine.apply_to_model(compiled_products) == products
        for count in (1, FEW, FEW + 1):
            assert_as_reference(reference, engine.generate([Request(PROMPT + "a" * n) for n in range(count)]))
        assert engine.apply_to_model(compiled_products) == products, "an answer has waited for the compiler"
        # Without the 16 bits, as many answers as are not few stay right, and one goes wrong.
        engine.apply_to_model(forget_halves)
        assert_as_reference(reference, engine.generate([Request(PROMPT + "b" * n) for n in range(FEW + 1)]))
        [one] = engine.generate([Request(PROMPT + "c")])
        with pytest.raises(AssertionError):
            assert_as_reference(reference, [one])


def test_an_adapter_acts_on_the_16_bits(tmp_path: Path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", dtype=torch.bfloat16, intermediate=INTERMEDIATE)
    adapter = make_adapter(checkpoint, tmp_path / "adapter")
    reference = load_reference(checkpoint, torch.float32)
    adapted = load_reference(checkpoint, torch.float32)
    adapted.language_model = attach_adapter(adapted.language_model, adapter)
    options = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 2}
    with Engine(checkpoint, additional_config={SETTING: MIXED}, **options) as engine:
        assert len(engine.apply_to_model(mixed)) == reference.config.text_config.num_hidden_layers
        plain, other = engine.generate([Request(PROMPT), Request(PROMPT, adapter=adapter)])
    assert_as_reference(reference, [plain])
    assert_as_reference(adapted, [other])
    assert other.logprobs[0] != pytest.approx(plain.logprobs[0], abs=10 * TOLERANCE)


@pytest.mark.parametrize(
    ("stored", "setting"), [(torch.float32, {SETTING: MIXED}), (torch.bfloat16, {SETTING: PACKED})]
)
def test_layers_are_held_once(tmp_path: Path, stored: torch.dtype, setting: dict[str, str]):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", dtype=stored, intermediate=INTERMEDIATE)
    reference = load_reference(checkpoint, torch.float32)
    with Engine(checkpoint, additional_config=setting) as engine:
        assert engine.apply_to_model(mixed) == []
        assert_as_reference(reference, engine.generate([Request(PROMPT)]))
