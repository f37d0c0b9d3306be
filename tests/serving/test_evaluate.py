"""`qwen-vqa evaluate` on a server, and that a server and its checkpoint are given the same scores."""

import json
from pathlib import Path

import pytest

from qwen_vqa.serving.cli import main
from tests.evaluation_data import write_questions
from tests.server import Server, free_port


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_questions(tmp_path_factory.mktemp("questions"), 4)


def evaluate(output: Path, *arguments: str) -> tuple[int, dict]:
    status = main(["evaluate", *arguments, "-o", str(output), "--max-tokens", "24"])
    return status, json.loads((output / "results.json").read_text())


def test_a_server_and_its_checkpoint_give_the_same_answers(
    demo_server: Server, demo_checkpoint: Path, data: str, tmp_path: Path
):
    status, served = evaluate(tmp_path / "served", "--url", demo_server.url, "--model", "qwen-vqa-demo", "--data", data)
    assert status == 0
    _, direct = evaluate(tmp_path / "direct", str(demo_checkpoint), "--dtype", "float32", "--data", data)

    def answers(results: dict) -> dict:
        return {(one["question_id"], one["condition"]): one["answer"] for one in results["replies"]}

    assert len(answers(served)) == 36
    assert answers(served) == answers(direct)
    accuracy = {one["condition"]: one["accuracy"]["mean"] for one in served["means"] if one["answer_type"] == "colour"}
    assert accuracy["own picture"] >= 0.75
    assert accuracy["no picture"] == 0


def test_an_adapter_is_asked_by_its_name_on_both(demo_server: Server, demo_checkpoint: Path, data: str, tmp_path: Path):
    flags = ["--model", "sentences", "--data", f"{data},samples=4", "--baseline"]
    _, served = evaluate(tmp_path / "served", "--url", demo_server.url, *flags)
    _, direct = evaluate(tmp_path / "direct", str(demo_checkpoint), "--dtype", "float32", *flags)
    _, base = evaluate(tmp_path / "base", str(demo_checkpoint), "--dtype", "float32", *flags[2:])
    answers = [{one["question_id"]: one["answer"] for one in results["replies"]} for results in (served, direct, base)]
    assert answers[0] == answers[1]
    assert answers[0] != answers[2]


def test_a_refused_request_is_named_and_not_scored(demo_server: Server, data: str, tmp_path: Path, capsys):
    folder = tmp_path / "questions"
    questions = write_questions(folder, 2, ("colour",))
    (folder / "colour-1.png").write_bytes((folder / "colour-1.png").read_bytes()[:300])
    status, results = evaluate(tmp_path / "out", "--url", demo_server.url, "--data", questions, "--baseline")
    assert status == 1
    assert (results["answered"], results["failed"]) == (1, 1)
    assert results["failures"][0]["question_id"] == "colour-1"
    assert "truncated" in results["failures"][0]["fault"]
    assert "FAILED: 1 of 2 have no answer" in capsys.readouterr().out


def test_a_server_that_is_not_there_or_lacks_the_model_is_said_at_once(
    demo_server: Server, data: str, tmp_path, capsys
):
    for url, model, message in [
        (f"http://127.0.0.1:{free_port()}/v1", "x", "no server at"),
        (demo_server.url, "gpt", "does not serve 'gpt'; it has qwen-vqa-demo, "),
    ]:
        arguments = ["evaluate", "--url", url, "--model", model, "--data", data, "-o", str(tmp_path / "out")]
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
