"""Asking a server that fails: what was answered is kept, and nobody waits for ever."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.data.source import DataSource
from qwen_vqa.train.evaluation.questions import NONE, OWN, prompts, read_questions
from qwen_vqa.train.evaluation.replies import Reply
from qwen_vqa.train.evaluation.server_model import GIVE_UP_AFTER, ServerModel
from tests.train.releases import write_vizwiz


class FailingServer(ThreadingHTTPServer):
    """Speaks the OpenAI API for its first `answers` questions; then `then`: `hang`, or a status."""

    def __init__(self, answers: int, then: str | int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers, self.then, self.asked, self.bodies = answers, then, 0, []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: FailingServer

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by": "x"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.asked += 1
        if self.server.asked <= self.server.answers:
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": " Basil "}}
            self._send(200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})
        elif self.server.then == "hang":
            self.server.closing.wait(600)
        else:
            self._send(int(self.server.then), {"error": {"message": "out of order", "type": "x"}})

    def _send(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def failing(request: pytest.FixtureRequest) -> Iterator[FailingServer]:
    server = FailingServer(*request.param)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()


def ask(server: FailingServer, data: str, times: int = 1) -> list[Reply]:
    asked = prompts(read_questions([DataSource.parse(data)], 0)[0], [OWN, NONE], 0) * times
    replies: list[Reply] = []
    model = ServerModel(server.url, "m", "none", max_tokens=9, concurrency=4, timeout=30, retries=0)
    try:
        model.ask(asked, replies.append)
    except UserError as error:
        replies.append(Reply(asked[0], fault=f"given up: {error}"))
    return replies


@pytest.mark.parametrize("failing", [(4, 500)], indirect=True)
def test_failed_requests_are_faults_with_the_servers_words(failing: FailingServer, tmp_path: Path):
    replies = ask(failing, write_vizwiz(tmp_path))
    assert [reply.answer for reply in replies if not reply.fault] == ["Basil"] * 4
    assert ["out of order" in reply.fault for reply in replies if reply.fault] == [True, True]


@pytest.mark.parametrize("failing", [(6, 200)], indirect=True)
def test_requests_are_greedy_and_carry_the_picture_or_none(failing: FailingServer, tmp_path: Path):
    ask(failing, write_vizwiz(tmp_path))
    assert {(body["temperature"], body["max_tokens"], body["repetition_penalty"]) for body in failing.bodies} == {
        (0, 9, 1.0)
    }
    kinds = sorted([part["type"] for part in body["messages"][0]["content"]] for body in failing.bodies)
    assert kinds == [["image_url", "text"]] * 3 + [["text"]] * 3


@pytest.mark.parametrize("failing", [(6, 503)], indirect=True)
def test_a_server_that_only_fails_is_given_up(failing: FailingServer, tmp_path: Path):
    replies = ask(failing, write_vizwiz(tmp_path), times=20)
    assert f"given up: the last {GIVE_UP_AFTER} requests" in replies[-1].fault
    assert failing.asked < 40


@pytest.mark.parametrize("failing", [(3, "hang")], indirect=True)
def test_ctrl_c_leaves_what_was_measured(failing: FailingServer, tmp_path: Path):
    command = [sys.executable, "-m", "qwen_vqa.serving.cli", "evaluate", "--url", failing.url]
    command += ["--data", write_vizwiz(tmp_path), "-o", str(tmp_path / "out"), "--concurrency", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while failing.asked < 5 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=180)
    assert process.returncode == 130
    assert "STOPPED after 3 of 9 prompts: interrupted" in printed
    assert len(json.loads((tmp_path / "out/results.json").read_text())["replies"]) == 3
