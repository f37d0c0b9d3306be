"""Training and evaluation refuse the pictures that the server refuses, with its words, and count and name them."""

import base64
from pathlib import Path

import httpx
import pytest

from qwen_vqa.train.data.row import Picture, Row
from qwen_vqa.train.data.screening import BROKEN_IMAGE, Screen
from qwen_vqa.train.evaluation.checkpoint_model import CheckpointModel
from qwen_vqa.train.evaluation.questions import OWN, Prompt, Question
from qwen_vqa.train.evaluation.replies import Reply
from tests.hostile_images import refused_pictures
from tests.server import Server

PICTURES = refused_pictures()
MESSAGES = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
    {"role": "assistant", "content": "that"},
]


def servers_words(server: Server, data: bytes) -> str:
    """Why the server refuses a picture, without the place in the request."""
    url = "data:;base64," + base64.b64encode(data).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
    reply = httpx.post(server.url + "/chat/completions", json=body, timeout=60)
    assert reply.status_code == 400
    return reply.json()["error"]["message"].partition(": ")[2]


@pytest.mark.parametrize("kind", PICTURES)
def test_what_the_server_refuses_is_neither_trained_on_nor_asked_about(kind: str, tiny_server: Server, tmp_path: Path):
    words = servers_words(tiny_server, PICTURES[kind])
    path = tmp_path / "picture"
    path.write_bytes(PICTURES[kind])
    for picture in (Picture(str(path)), Picture("row-7.jpg", PICTURES[kind])):
        verdict = Screen(lambda messages, sample: 10, 100)(Row("sample", MESSAGES, (picture,)))
        assert (verdict.messages, verdict.fault) == (0, BROKEN_IMAGE)
        assert verdict.detail.startswith(picture.path) and verdict.detail.endswith(words)


def test_evaluation_counts_and_names_each(tiny_checkpoint: Path, tmp_path: Path):
    prompts = []
    for number, (kind, data) in enumerate(PICTURES.items()):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(data)
        question = Question.of("local", Row(kind, MESSAGES, (Picture(str(path)),)))
        prompts.append(Prompt(question, OWN, question.messages, question.pictures))
    replies: list[Reply] = []
    CheckpointModel.load(tiny_checkpoint, None, "auto", 2, 4).ask(prompts, replies.append)
    assert len(replies) == len(PICTURES)
    assert all(reply.fault and reply.prompt.pictures[0].path in reply.fault for reply in replies)
