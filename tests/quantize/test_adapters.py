"""Adapters that were trained on the original base: kept or left out by what they answer on the quantised one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import torch
from peft import LoraConfig, get_peft_model

from qwen_vqa.benchmarks.quantisation.quantize_command import main
from qwen_vqa.plugin.quantization import RECORD_FILE
from qwen_vqa.quantize.answer_quality import answers
from qwen_vqa.quantize.quantize import quantise
from qwen_vqa.quantize.samples import UserSamples
from qwen_vqa.train.data.collator import ConversationCollator, Sample
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from tests.quantize.anywhere import anywhere, eight_bits
from tests.server import serving

QUESTIONS = 12


def learn_by_heart(checkpoint: Path, samples: list[Sample], folder: Path) -> None:
    """A LoRA that answers all samples right on this checkpoint, and is not trained any further."""
    torch.manual_seed(0)
    model, processor = load_reference(checkpoint, torch.float32), load_processor(checkpoint)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM")
    model.language_model = get_peft_model(model.language_model, lora)
    optimiser = torch.optim.AdamW([p for n, p in model.named_parameters() if "lora_" in n], lr=1e-2)
    batch = ConversationCollator(processor)(samples)
    for _ in range(200):
        optimiser.zero_grad()
        model(**batch).loss.backward()
        optimiser.step()
        if all(answer.right for answer in answers(model, processor, samples)):
            model.language_model.save_pretrained(folder)
            return
    raise AssertionError("the adapter did not learn its answers")


@pytest.fixture(scope="module")
def answering(tiny_checkpoint: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with an adapter that answers all questions."""
    folder = tmp_path_factory.mktemp("answering") / "tiny"
    shutil.copytree(tiny_checkpoint, folder)
    learn_by_heart(folder, UserSamples(str(questions)).calibration(QUESTIONS), folder / "adapters" / "colours")
    return folder


def measured(source: Path, questions: Path, output: Path, scheme: str) -> dict:
    """What quantising found of the adapter."""
    quantise(anywhere(source, output, scheme, data=str(questions), samples=QUESTIONS))
    return json.loads((output / RECORD_FILE).read_text())["adapters"]["colours"]


def test_an_adapter_that_keeps_its_answers_is_carried_over(answering: Path, questions: Path, tmp_path: Path) -> None:
    found = measured(answering, questions, tmp_path / "out", "int8")
    assert found["served"]
    assert (found["accuracy"]["original"], found["accuracy"]["n"]) == (100.0, QUESTIONS)
    assert (tmp_path / "out" / "adapters" / "colours" / "adapter_config.json").exists()


def test_questions_that_do_not_suit_an_adapter_measure_nothing(
    with_adapter: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It answers none of them right on either base: that is no proof that it loses nothing."""
    quantise(anywhere(with_adapter, tmp_path / "out", "int8", data=str(questions), samples=QUESTIONS))
    found = json.loads((tmp_path / "out" / RECORD_FILE).read_text())["adapters"]["tiny-lora"]
    assert (found["measured"], found["served"], "accuracy" in found) == (False, True, False)
    assert (tmp_path / "out" / "adapters" / "tiny-lora").is_dir()
    said = capsys.readouterr().out
    assert f"of {QUESTIONS} questions it answers none right on the original base, so they do not suit it" in said


def test_the_check_is_said_before_it_begins_and_can_be_left_out(
    answering: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(answering, questions, tmp_path / "checked", "int8")
    said = capsys.readouterr()
    before, _, after = said.out.partition("adapter colours: ")
    assert "--no-adapter-check" in before and f"{QUESTIONS} questions" in before
    assert "% right on the original base" in after
    assert f"/{2 * QUESTIONS}" in said.err and "<" in said.err  # a bar with an ETA, for both bases
    words = [str(answering), "--scheme", "int8", "--elsewhere", "--data", str(questions)]
    assert main([*words, "--no-adapter-check", "-o", str(tmp_path / "unchecked")]) == 0
    said = capsys.readouterr()
    assert "questions on the original base" not in said.out and "comparing answers" not in said.err
    assert "adapter colours: not measured" in said.out and "(--no-adapter-check)" in said.out
    found = json.loads((tmp_path / "unchecked" / RECORD_FILE).read_text())["adapters"]["colours"]
    assert (found["measured"], found["served"]) == (False, True)
    assert (tmp_path / "unchecked" / "adapters" / "colours" / "adapter_config.json").exists()


def test_an_adapter_that_loses_its_answers_is_left_out(
    answering: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = measured(answering, questions, tmp_path / "out", "nf4")
    assert not found["served"]
    assert found["accuracy"]["original"] == 100.0
    assert found["accuracy"]["quantised"] < 98.0
    assert not (tmp_path / "out" / "adapters").exists()
    assert "loses more than --adapter-bound 2 and is left out" in capsys.readouterr().out


def test_an_adapter_that_comes_while_it_runs_is_said_to_be_unmeasured(
    quantised: Callable[..., Path], tiny_adapter: Path, tmp_path: Path
) -> None:
    key = "operator-secret-0123456789"
    entry = {"name": "operator", "key": key, "admin": True}
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [entry]}))
    flags = ["--dtype", "float32", "--enforce-eager", "--open-routes", "adapters"]
    flags += ["--api-keys-file", str(tmp_path / "keys.json")]
    with serving(tmp_path / "log", str(quantised(eight_bits())), *flags) as server:
        body = {"lora_name": "later", "lora_path": str(tiny_adapter)}
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx.post(f"{server.url}/load_lora_adapter", json=body, headers=headers, timeout=120)
        assert answer.status_code == 200
        assert f"adapter later was not measured on this {eight_bits()} base" in server.log.read_text()
