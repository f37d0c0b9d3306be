"""Two questions about each picture, each in a conversation of its own."""

import json
import sys
from pathlib import Path

import pytest

from qwen_vqa.benchmarks.comparison import second_question
from qwen_vqa.benchmarks.comparison.second_question import QUESTIONS, second_questions
from qwen_vqa.plugin.errors import UserError
from tests.benchmarks.fault_server import FaultServer


def test_each_new_picture_is_asked_about_twice(faults: FaultServer) -> None:
    before = len(faults.bodies)
    found = second_questions(faults.url, 3, seed=7, model="good")
    asked = [body["messages"] for body in faults.bodies[before:]]
    assert len(asked) == 1 + 2 * 3  # the first of all is not counted
    assert all(len(messages) == 1 for messages in asked)
    pictures = [messages[0]["content"][0]["image_url"]["url"] for messages in asked]
    assert pictures[1::2] == pictures[2::2]
    assert len(set(pictures)) == 4
    questions = [messages[0]["content"][1]["text"] for messages in asked]
    assert questions[1:] == [*QUESTIONS, *QUESTIONS[::-1], *QUESTIONS]
    rows = found["first_second_ms_cached"]
    assert found["pictures"] == len(rows) == 3
    assert sorted(second[0] / first[0] for first, second in rows)[1] == found["ratio"]
    assert sorted(first[0] for first, _ in rows)[1] == found["first_ms"] > 0


@pytest.mark.parametrize(("model", "message"), [("empty", "without a word"), ("429", "slow down")])
def test_an_answer_that_is_none_is_an_error(faults: FaultServer, model: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        second_questions(faults.url, 1, seed=1, model=model)


def test_the_file_has_its_environment_without_the_key(
    faults: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "second.json"
    flags = ["--url", faults.url, "--model", "good", "--pictures", "2", "--api-key", "secret", "--seed", "3"]
    monkeypatch.setattr(sys, "argv", ["second_question.py", *flags, "--json", str(file)])
    assert second_question.main() == 0
    found = json.loads(file.read_text())
    assert {"date", "machine", "versions", "git"} <= set(found["environment"])
    assert (found["seed"], found["pictures"]) == (3, 2)
    assert "secret" not in file.read_text()
