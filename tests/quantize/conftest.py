"""Quantised tiny checkpoints, each made once by the command's own code, and data to calibrate with."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from qwen_vqa.quantize.quantize import quantise
from tests.quantize.anywhere import anywhere
from tests.tiny import make_adapter, make_checkpoint, picture

COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of twelve questions about pictures, as users have it; of four people, three give the target."""
    folder = tmp_path_factory.mktemp("questions")
    lines = []
    for number in range(12):
        picture(number).save(folder / f"{number}.png")
        content = [{"type": "image", "image": f"{number}.png"}, {"type": "text", "text": "What color is it?"}]
        answer = {"role": "assistant", "content": COLOURS[number % 4]}
        messages = [{"role": "user", "content": content}, answer]
        people = [answer["content"]] * 3 + ["none"]
        lines.append(json.dumps({"id": str(number), "messages": messages, "answers": people}))
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "questions.jsonl"


@pytest.fixture(scope="session")
def with_adapter(tiny_checkpoint: Path, tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with an adapter in its folder."""
    folder = tmp_path_factory.mktemp("source") / "tiny"
    shutil.copytree(tiny_checkpoint, folder)
    shutil.copytree(tiny_adapter, folder / "adapters" / "tiny-lora")
    return folder


@pytest.fixture(scope="session")
def in_16_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint as `assemble` makes it: language model in bfloat16, vision side in float32; its widths
    are multiples of 128; with an adapter.
    """
    folder = tmp_path_factory.mktemp("source") / "tiny-bf16"
    make_checkpoint(folder, dtype=torch.bfloat16, intermediate=256, vision_in_float32=True)
    make_adapter(folder, folder / "adapters" / "tiny-lora")
    return folder


@pytest.fixture(scope="session")
def quantised(
    with_adapter: Path, in_16_bits: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Makes a tiny checkpoint in a scheme, from float32 in groups of 64 or from bfloat16 in groups of 128; the same
    call gives the same folder.
    """

    @cache
    def make(scheme: str, encoder: bool = False, from_16_bits: bool = False) -> Path:
        output = tmp_path_factory.mktemp(scheme) / scheme
        source, group_size = (in_16_bits, 128) if from_16_bits else (with_adapter, 64)
        more = {"samples": 4, "iterations": 3, "data": str(questions)}
        quantise(anywhere(source, output, scheme, encoder, group_size, adapter_bound=100.0, **more))
        return output

    return make
