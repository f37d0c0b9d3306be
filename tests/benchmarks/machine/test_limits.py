"""Limits are counted per part: what quantising leaves in 16 or 32 bits is read and multiplied in those."""

import math
from functools import partial
from pathlib import Path

import pytest
from safetensors import safe_open

from qwen_vqa.benchmarks.machine.flop_counts import WORK, Work
from qwen_vqa.benchmarks.machine.machine_limits import (
    MATRICES,
    arithmetic_seconds,
    decode_share,
    limits,
    matmul_rates,
    prefill_share,
    share_lines,
)
from qwen_vqa.benchmarks.machine.part_formats import SCHEMES, scheme_of
from qwen_vqa.serving import DEMO_CHECKPOINT

# Width 4 everywhere, 8 between; 100 tokens in the vocabulary; an image of 2 tokens and 3 of text.
SMALL = Work(2, 4, 1, 8, 4, 4, 1, 2, 2, 8, 100, 3)
RATES = {"float32": 1e3, "bfloat16": 2e3, "int8": 8e3}
LAYERS, OUTPUT = 4 * 4 * 4 + 3 * 4 * 8, 400
# Two tokens through one layer of width 4 and the connector's two matrices of 4 x 4.
ENCODER = 2 * (2 * (4 * 16 + 2 * 32) + 4 * 2 * 4 + 2 * 32)


def sizes(folder: Path, part: str) -> int:
    """Weights of the matrices whose names have the part."""
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    return sum(math.prod(shape) for name, shape in shapes.items() if part in name and len(shape) == 2)


def test_weights_are_as_many_as_the_checkpoint_has() -> None:
    work = WORK["demo"]
    assert work.body_parameters == sizes(DEMO_CHECKPOINT, "language_model.model.layers.")
    assert work.output_parameters == sizes(DEMO_CHECKPOINT, "embed_tokens")


def test_parts_are_counted() -> None:
    assert (SMALL.body_parameters, SMALL.output_parameters, SMALL.encoder) == (LAYERS, OUTPUT, ENCODER)


@pytest.mark.parametrize(
    ("scheme", "layer", "around"),
    [
        ("float32", 4, 4),
        ("bfloat16", 2, 2),
        ("int8", 1, 2),
        ("16-bit-f32", 2, 2),
        ("int8-f32", 1, 2),
        ("int4", 0.515625, 2),
        ("nf4", 0.515869140625, 2),
        ("q8_0", 1.0625, 1.0625),
    ],
)
def test_a_decoded_token_reads_each_part_in_its_own_type(scheme: str, layer: float, around: float) -> None:
    row = next(row for row in limits(SMALL, 1e6, RATES, 32) if row["scheme"] == scheme)
    assert row["decode_tokens_per_second"] == pytest.approx(1e6 / (LAYERS * layer + OUTPUT * around))


@pytest.mark.parametrize(
    ("scheme", "layer", "around"),
    [("float32", 1e3, 1e3), ("int8", 8e3, 2e3), ("int8-f32", 8e3, 1e3), ("int4", 2e3, 2e3), ("nf4", 2e3, 2e3)],
)
def test_each_part_is_multiplied_at_its_own_rate(scheme: str, layer: float, around: float) -> None:
    row = next(row for row in limits(SMALL, 1e6, RATES, 3) if row["scheme"] == scheme)
    # Five tokens of a prompt, whose last one alone meets the output layer; two more steps make three tokens.
    first = 2 * LAYERS * 5 / layer + (ENCODER + 2 * OUTPUT) / around
    assert row["prefill_tokens_per_second"] == pytest.approx(5 / first)
    request = first + 2 * (2 * LAYERS / layer + 2 * OUTPUT / around)
    assert row["requests_per_second"] == pytest.approx(1 / request)


def test_text_alone_needs_no_encoder() -> None:
    with_image, without = (arithmetic_seconds(SMALL, SCHEMES["float32"], RATES, 5, image=image) for image in (1, 0))
    assert with_image - without == pytest.approx(ENCODER / 1e3)


def test_shares_are_of_the_medians() -> None:
    summary = {
        "tpot": {"p50": 25.0},
        "ttft": {"p50": 8000.0},
        "prompt_tokens": 20,
        "completed": 4,
        "cached_token_share": 0.2,
    }
    assert decode_share(summary, {"decode_tokens_per_second": 50.0}) == 0.8
    # Four tokens of five were computed.
    at_best = (2 * LAYERS * 4 + ENCODER + 2 * OUTPUT) / 1e3
    assert prefill_share(summary, SMALL, SCHEMES["float32"], RATES) == pytest.approx(at_best / 8)
    assert prefill_share(summary | {"prompt_tokens": 0}, SMALL, SCHEMES["float32"], RATES) is None


def test_a_load_result_is_told_with_prefill_where_pictures_are_new() -> None:
    work = WORK["demo"]
    rates = {"float32": 1e9, "bfloat16": 1e9, "int8": 1e9}
    limit = {"scheme": "float32", "decode_tokens_per_second": 80.0, "requests_per_second": 4.0}
    summary = {
        "requests_per_second": 2.0,
        "tpot": {"p50": 25.0},
        "ttft": {"p50": 4000 * arithmetic_seconds(work, SCHEMES["float32"], rates, work.prompt_tokens)},
        "prompt_tokens": 10 * work.prompt_tokens,
        "completed": 10,
        "cached_token_share": None,
        "later_turns": None,
    }
    one, eight = {"concurrency": 1}, {"concurrency": 8}
    cells = [
        {"label": "1 user", "cache": "cold", "arrivals": one, "summary": summary},
        {"label": "1 user", "cache": "warm", "arrivals": one, "summary": summary},
        {"label": "8 users", "cache": "cold", "arrivals": eight, "summary": summary},
    ]
    assert share_lines({"cells": cells}, "demo", "float32", [limit], rates) == [
        "1 user, cold: 50% of the limit in requests, 50% in decode, 25% in prefill",
        "1 user, warm: 50% of the limit in requests, 50% in decode",
        "8 users, cold: 50% of the limit in requests",
    ]


def test_what_this_server_reads_in_16_bits_is_what_it_was_told() -> None:
    command = ["python", "-m", "qwen_vqa.serving.cli", "serve", "folder", "--dtype"]
    assert scheme_of({"scheme": "int8", "command": [*command, "float32"]}) == "int8-f32"
    assert scheme_of({"scheme": "int8", "command": [*command, "bfloat16"]}) == "int8"
    assert scheme_of({"scheme": "float32", "command": [*command, "float32"]}) == "16-bit-f32"
    assert scheme_of({"scheme": "bfloat16", "command": [*command, "bfloat16"]}) == "bfloat16"
    others = ["python", "-m", "qwen_vqa.benchmarks.alternatives.transformers_server", "folder", "--dtype", "float32"]
    assert scheme_of({"scheme": "float32", "command": others}) == "float32"


@pytest.mark.parametrize(
    ("int8", "expected"), [(9.0, [MATRICES[0]]), (11.0, list(MATRICES))], ids=["emulated", "in the processor"]
)
def test_a_type_that_is_emulated_is_multiplied_at_the_smallest_size_alone(
    int8: float, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large ones take minutes there. It cannot be slower than float32, which a server may take in its place."""
    asked: dict[str, list[int]] = {"float32": [], "bfloat16": [], "int8": []}
    rates = {"float32": 100.0, "bfloat16": 200.0, "int8": int8}

    def rate(operations: float, product: partial, seconds: float) -> float:
        left = product.args[0]
        name = str(left.dtype).removeprefix("torch.")
        asked[name].append(len(left))
        assert operations == 2 * len(left) ** 3
        return rates[name]

    monkeypatch.setattr("qwen_vqa.benchmarks.machine.machine_limits.best_rate", rate)
    assert matmul_rates() == {"float32": 100.0, "bfloat16": 200.0, "int8": 100.0}
    assert asked == {"float32": list(MATRICES), "bfloat16": list(MATRICES), "int8": expected}
