"""The report: its arithmetic, its files, and its measurements on real servers."""

import contextlib
import json
import math
import subprocess
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from qwen_vqa.benchmarks.quantisation import report, speed
from qwen_vqa.benchmarks.quantisation.served_accuracy import prompts_of, served_accuracy, served_label
from qwen_vqa.benchmarks.quantisation.server_memory import server_bytes
from qwen_vqa.benchmarks.quantisation.speed import Load, Side, measure, servable
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.quantize import answer_quality, comparison_memory
from qwen_vqa.quantize.answer_quality import LOGITS_AT_ONCE, Answer, accuracy_row, answers, divergence, wilson
from qwen_vqa.quantize.demo_samples import DemoSamples
from qwen_vqa.quantize.samples import UserSamples
from qwen_vqa.train.data.collator import ConversationCollator
from qwen_vqa.train.evaluation.answer_metrics import vqa_accuracy
from qwen_vqa.train.evaluation.replies import Reply
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration
from tests.quantize.anywhere import eight_bits, skip_unless_served_here

TOKENS = 64  # of an answer, so that two are decoded at once also where the second is asked for a moment later


def test_a_share_has_wilsons_interval() -> None:
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(49.0, abs=0.1), pytest.approx(94.3, abs=0.1))


def test_the_change_is_that_of_the_same_questions() -> None:
    row = accuracy_row([(True, True)] * 90 + [(True, False)] * 6 + [(False, True)] * 4)
    assert (row["original"], row["quantised"], row["change"]) == (96.0, 94.0, pytest.approx(-2.0))
    low, high = row["change_ci"]
    assert (low, high) == (pytest.approx(-8.3, abs=0.1), pytest.approx(4.4, abs=0.1))


def test_no_change_is_not_certain() -> None:
    low, high = accuracy_row([(True, True)] * 300)["change_ci"]
    assert (low, high) == (pytest.approx(-0.65, abs=0.01), pytest.approx(0.65, abs=0.01))


def test_soft_scores_have_the_same_interval_where_they_are_whole() -> None:
    whole = accuracy_row([(1.0, 1.0)] * 90 + [(1.0, 0.0)] * 6 + [(0.0, 1.0)] * 4)
    assert whole["change_ci"] == pytest.approx(
        accuracy_row([(True, False)] * 6 + [(False, True)] * 4 + [(True, True)] * 90)["change_ci"]
    )
    soft = accuracy_row([(1.0, 1.0)] * 90 + [(1.0, 0.7)] * 6 + [(0.7, 1.0)] * 4)
    assert soft["change"] == pytest.approx(-0.6)
    assert soft["change_ci"][1] - soft["change_ci"][0] < whole["change_ci"][1] - whole["change_ci"][0]


def answer(shares: list[list[float]], tokens: list[int]) -> Answer:
    """One whose output layer leaves the states [positions, vocabulary] as they are."""
    return Answer(torch.tensor(shares).log(), torch.tensor(tokens), torch.nn.Identity())


def test_divergence_of_two_distributions() -> None:
    before, after = answer([[0.5, 0.5], [0.9, 0.1]], [0, 0]), answer([[0.25, 0.75], [0.9, 0.1]], [0, 0])
    assert divergence(before, after) == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2)


def test_an_answer_is_right_to_the_letter() -> None:
    shares = [[0.6, 0.4]] * (LOGITS_AT_ONCE + 1)
    assert answer(shares, [0] * len(shares)).right
    assert not answer(shares, [0] * (len(shares) - 1) + [1]).right


def test_answers_are_those_of_whole_logits(with_adapter: Path, questions: Path) -> None:
    samples, processor = UserSamples(str(questions)).calibration(12), load_processor(with_adapter)
    model = load_reference(with_adapter, torch.float32)
    batch = ConversationCollator(processor)(samples)
    labels = batch.pop("labels")
    with torch.inference_mode():
        logits = model(**batch).logits[:, :-1]
    for row, label, found in zip(logits, labels[:, 1:], answers(model, processor, samples), strict=True):
        expected = row[label >= 0].log_softmax(-1)
        torch.testing.assert_close(torch.cat(list(found.log_probs())), expected, atol=1e-4, rtol=1e-4)


def test_one_model_is_in_memory_at_a_time(
    with_adapter: Path, quantised: Callable[..., Path], questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 3B in float32 is 12 GiB; two of them are what this machine has. And no logits of whole prompts."""
    models: list[weakref.ref] = []
    rows: list[int] = []

    def watched(load: Callable[..., QwenVqaForConditionalGeneration]) -> Callable[..., QwenVqaForConditionalGeneration]:
        def loaded(*arguments: Any) -> QwenVqaForConditionalGeneration:
            assert not any(model() for model in models)
            model = load(*arguments)
            model.get_output_embeddings().register_forward_hook(
                lambda _, inputs, output: rows.append(output[..., 0].numel())
            )
            models.append(weakref.ref(model))
            return model

        return loaded

    monkeypatch.setattr(answer_quality, "LOGITS_AT_ONCE", 2)
    for name in ("load_reference", "load_dequantised"):
        monkeypatch.setattr(report, name, watched(getattr(report, name)))
    samples = {"questions": UserSamples(str(questions)).calibration(12)}
    report.quality(with_adapter, quantised("int8"), samples)
    assert len(models) == 3  # the layers' errors, and both sides' answers
    assert rows
    assert max(rows) <= 2


def test_too_little_memory_is_said_first(
    with_adapter: Path, in_16_bits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = {dtype: comparison_memory.comparison_bytes(in_16_bits, dtype) for dtype in ("float32", "bfloat16")}
    assert comparison_memory.comparison_dtype(in_16_bits) == torch.float32
    monkeypatch.setattr(comparison_memory, "available_memory", lambda: needed["float32"] - 1)
    assert comparison_memory.comparison_dtype(in_16_bits) == torch.bfloat16
    assert "answers are compared in bfloat16: there is no memory for float32" in capsys.readouterr().out
    for module in (comparison_memory, speed):
        monkeypatch.setattr(module, "available_memory", lambda: needed["bfloat16"] - 1)
    with pytest.raises(UserError, match=r"not enough memory to compare answers: 1\.0 GiB are needed"):
        comparison_memory.comparison_dtype(in_16_bits)
    with pytest.raises(UserError, match="not enough memory to serve"):
        servable([Side(in_16_bits)])


@pytest.fixture(scope="module")
def reported(
    with_adapter: Path, quantised: Callable[..., Path], questions: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a whole report, with servers."""
    skip_unless_served_here("int4")
    folder = tmp_path_factory.mktemp("report")
    arguments = [str(with_adapter), str(quantised("int4")), "--data", str(questions), "-o", str(folder)]
    assert report.main([*arguments, "--users", "1", "2", "--tokens", str(TOKENS), "--rounds", "1"]) == 0
    return folder


def test_its_numbers(reported: Path) -> None:
    numbers = json.loads((reported / "report.json").read_text())
    assert numbers["accuracy"]["questions"]["n"] == 12 - 4  # the others calibrated
    assert numbers["kl"]["mean"] > 0
    assert numbers["compared_in"] == "float32"
    assert len(numbers["layer_errors"]) == 14
    for side in numbers["speed"].values():
        assert side["decode_tokens_per_second"].keys() == side["prefill_tokens_per_second"].keys() == {"1", "2"}
        # TPOT counts all tokens but the first, the decode speed those after the first event, which may bring several.
        after_first_event = (TOKENS - 1) * side["decode_tokens_per_second"]["1"] * side["tpot_ms"]["1"] / 1000
        assert after_first_event == pytest.approx(round(after_first_event))
        assert 1 <= round(after_first_event) < TOKENS
        speeds = [*side["decode_tokens_per_second"].values(), *side["prefill_tokens_per_second"].values()]
        assert all(speed > 0 for speed in speeds)
        assert side["resident_bytes"] > 2**28
        assert side["ready_bytes"] > 2**28
        assert side["load_seconds"] > 1
        assert side["side_by_side"]
    assert numbers["served"]["metric"] == "VQA accuracy"
    assert numbers["served"]["accuracy"]["questions"]["n"] == 8
    assert numbers["served"]["unanswered"] == {"original": [], "quantised": []}


def test_its_table(reported: Path) -> None:
    lines = (reported / "report.md").read_text().splitlines()
    labels = [line.split("|")[1].strip() for line in lines if line.startswith("|")]
    assert labels[2:13] == [
        "weights on disk",
        "memory when ready, all processes",
        "memory after the run, all processes",
        "load, seconds",
        "float type of the servers",
        "servers measured",
        "decode, 1 user, tokens/s",
        "decode, 2 users, tokens/s",
        "prefill, 1 user, tokens/s",
        "prefill, 2 users, tokens/s",
        "VQA accuracy, served, questions (n 8)",
    ]
    assert labels[13:15] == ["right to the letter, questions (n 8)", "KL divergence, nats (8 prompts)"]
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_its_picture(reported: Path) -> None:
    texts = [text.text for text in ElementTree.parse(reported / "report.svg").getroot().iter() if text.text]
    for label in (
        "weights on disk",
        "memory when ready",
        "memory after the run",
        "decode, 1 user",
        "decode, 2 users",
        "prefill, 1 user",
        "prefill, 2 users",
    ):
        assert label in texts


def test_servers_that_do_not_fit_are_measured_one_after_the_other(
    with_adapter: Path, quantised: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And memory is read before any question, none of which is asked where there is no round."""
    events: list[str] = []
    start, read = speed.started_server, speed.resident_bytes

    @contextlib.contextmanager
    def started(arguments: list[str], **more: Any) -> Iterator[tuple]:
        with start(arguments, **more) as (address, process):
            events.append("start")
            yield address, process
        events.append("stop")

    def memory_of(process: subprocess.Popen) -> int:
        events.append("memory")
        return read(process)

    sides = [Side(folder, "float32", ("--enforce-eager",)) for folder in (with_adapter, quantised(eight_bits()))]
    needed = [server_bytes(side.folder, "float32", speed.KV_CACHE_BYTES) for side in sides]
    monkeypatch.setattr(speed, "started_server", started)
    monkeypatch.setattr(speed, "resident_bytes", memory_of)
    monkeypatch.setattr(speed, "available_memory", lambda: sum(needed) - 1)
    monkeypatch.setattr(speed, "probe", lambda *_: pytest.fail("a question before memory was read"))
    found = measure(sides, Load(rounds=0))
    assert events == ["start", "memory", "memory", "stop"] * 2
    assert not any(one.side_by_side for one in found)
    assert all(one.ready_bytes > 2**28 for one in found)


def test_what_a_server_is_asked_and_how_that_is_scored(questions: Path) -> None:
    groups = UserSamples(str(questions)).held_out((), 8)
    asked = prompts_of(groups)
    [messages] = {len(prompt.messages) for prompt in asked}
    assert messages == 1  # without the answer
    targets = [prompt.question.target for prompt in asked]
    right, wrong = (
        [Reply(p, f"{t.upper()}.") for p, t in zip(asked, targets, strict=True)],
        [Reply(p, "none") for p in asked],
    )
    found = served_accuracy(right, [*wrong[:-1], Reply(asked[-1], fault="timed out")])
    [row] = found["accuracy"].values()
    assert (found["metric"], row["n"], row["original"]) == ("VQA accuracy", 7, pytest.approx(75))
    assert row["quantised"] == pytest.approx(100 * vqa_accuracy("none", asked[0].question.answers))
    assert found["unanswered"]["quantised"] == [f"{asked[-1].question.question_id}: timed out"]


def test_one_answer_a_question_is_exact_match() -> None:
    groups = DemoSamples().held_out((), 2, ("colour", "count"))
    asked = prompts_of(groups)
    right = [Reply(prompt, prompt.question.target) for prompt in asked]
    found = served_accuracy(right, right)
    assert found["metric"] == "exact match"
    assert served_label(found) == "exact match, served (one answer a question)"
    assert {name: row["n"] for name, row in found["accuracy"].items()} == {"colour": 2, "count": 2, "all": 4}
