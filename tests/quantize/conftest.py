"""Quantised tiny checkpoints, each made once by the command's own code, and data to calibrate with."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from qwen_vqa.quantize.options import Options
from qwen_vqa.quantize.run import quantise
from tests.tiny import picture

COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of twelve questions about pictures, as users have it."""
    folder = tmp_path_factory.mktemp("questions")
    lines = []
    for number in range(12):
        picture(number).save(folder / f"{number}.png")
        content = [{"type": "image", "image": f"{number}.png"}, {"type": "text", "text": "What color is it?"}]
        answer = {"role": "assistant", "content": COLOURS[number % 4]}
        lines.append(json.dumps({"id": str(number), "messages": [{"role": "user", "content": content}, answer]}))
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
def quantised(with_adapter: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes the tiny checkpoint in a scheme; the same call gives the same folder."""

    @cache
    def make(scheme: str, encoder: bool = False) -> Path:
        output = tmp_path_factory.mktemp(scheme) / scheme
        more = {"group_size": 64, "samples": 4, "iterations": 3, "data": str(questions), "elsewhere": scheme == "fp8"}
        quantise(Options(with_adapter, output, scheme, encoder=encoder, adapter_bound=100.0, **more))
        return output

    return make
