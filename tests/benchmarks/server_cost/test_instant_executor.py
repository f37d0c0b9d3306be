"""A server whose engine answers at once: whole answers, of one token over and over."""

import base64
from pathlib import Path

import pytest

from qwen_vqa.benchmarks.server_cost.server_work import INSTANT
from tests.image_server import png
from tests.server import serving

pytestmark = pytest.mark.cpu


def test_every_prompt_is_read_and_gets_as_many_tokens_as_it_asks_for(tiny_checkpoint: Path, tmp_path: Path):
    flags = ["--distributed-executor-backend", INSTANT, "--max-num-batched-tokens", "256", "--max-model-len", "1024"]
    flags += ["--served-model-name", "tiny"]
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png()).decode()}"}}
    long = {"type": "text", "text": "what is this " * 100}  # more than one step reads
    with serving(tmp_path / "log", str(tiny_checkpoint), *flags) as server:
        for content, tokens in (([picture, long], 5), ([picture], 1), ("Hello", 7)):
            answer = server.client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": content}], max_tokens=tokens
            )
            assert answer.choices[0].message.content == "a" * tokens
            assert answer.usage is not None and answer.usage.completion_tokens == tokens
