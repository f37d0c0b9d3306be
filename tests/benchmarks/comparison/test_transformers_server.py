"""The baseline answers what the reference answers, alone and in a batch."""

import json
import threading
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient

from qwen_vqa.benchmarks.alternatives.transformers_server import Worker, application
from qwen_vqa.benchmarks.load_generator.sample_images import SampleImage
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference


def body(seed: int, text: str, tokens: int) -> dict:
    content = [
        {"type": "image_url", "image_url": {"url": SampleImage(seed, 90, 60).url()}},
        {"type": "text", "text": text},
    ]
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": tokens}


def answer(client: TestClient, request: dict) -> tuple[str, int]:
    """The streamed text and the number of tokens."""
    lines = client.post("/v1/chat/completions", json=request).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert lines[-2] == "data: [DONE]"
    text = "".join(event["choices"][0]["delta"]["content"] for event in events)
    return text, events[-1]["usage"]["completion_tokens"]


def test_one_at_a_time_is_the_references_generate(tiny_checkpoint: Path) -> None:
    client = TestClient(application(Worker(tiny_checkpoint, torch.float32, 1), "tiny"))
    request = {"model": "tiny", "messages": [{"role": "user", "content": "what is it?"}], "max_tokens": 7}
    processor, model = load_processor(tiny_checkpoint), load_reference(tiny_checkpoint, torch.float32).eval()
    messages = [{"role": "user", "content": [{"type": "text", "text": "what is it?"}]}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=7, min_new_tokens=7, do_sample=False)
    tokens = expected[0, inputs["input_ids"].shape[1] :]
    assert answer(client, request) == (processor.tokenizer.decode(tokens), 7)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_answers_each_as_if_it_were_alone(tiny_checkpoint: Path, batch: int) -> None:
    requests = [body(1, "what?", 5), body(2, "how many are there?", 9), body(3, "a", 3)]
    alone = TestClient(application(Worker(tiny_checkpoint, torch.float32, 1), "tiny"))
    expected = [answer(alone, request) for request in requests]
    client = TestClient(application(Worker(tiny_checkpoint, torch.float32, batch), "tiny"))
    found: dict[int, tuple[str, int]] = {}
    threads = [
        threading.Thread(target=lambda n=number: found.update({n: answer(client, requests[n])})) for number in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert [found[number] for number in range(3)] == expected
    assert [tokens for _, tokens in expected] == [5, 9, 3]
