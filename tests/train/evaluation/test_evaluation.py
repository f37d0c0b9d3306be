"""`qwen-vqa evaluate` on a checkpoint: what is asked, what is scored, and what is written."""

import base64
import json
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect

from qwen_vqa.plugin.chat.prompts import SHORT_ANSWER_INSTRUCTION
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.cli import main
from qwen_vqa.train.data.formats.entries import ANOTHER_FORMAT
from qwen_vqa.train.data.source import DataSource
from qwen_vqa.train.evaluation.evaluate import evaluate
from qwen_vqa.train.evaluation.metric_rules import M4C
from qwen_vqa.train.evaluation.page import write_page
from qwen_vqa.train.evaluation.questions import NONE, OTHER, OWN, Prompt, prompts, read_questions
from qwen_vqa.train.evaluation.replies import Record, Reply
from qwen_vqa.train.evaluation.results import Results
from qwen_vqa.train.evaluation.scoring import answerability, group
from tests.browser import chromium
from tests.train.releases import conversation, write_llava, write_textvqa, write_vizwiz, write_vizwiz_parquet


def asked_of(*data: str, conditions: tuple = (OWN, NONE, OTHER), seed: int = 0) -> list[Prompt]:
    questions, _ = read_questions([DataSource.parse(text) for text in data], seed)
    return prompts(questions, conditions, seed)


def replies_to(asked: list[Prompt], says: dict[str, str]) -> list[Reply]:
    """Each question answered by its id, under every condition."""
    return [Reply(prompt, says.get(prompt.question.question_id, "unanswerable")) for prompt in asked]


def test_a_question_is_put_as_it_is_in_training(tmp_path: Path):
    own, blind, other = asked_of(write_textvqa(tmp_path))[:3]
    assert own.messages[-1]["content"][-1]["text"] == f"what is the brand of phone 0?\n{SHORT_ANSWER_INSTRUCTION}"
    assert own.question.text == "what is the brand of phone 0?"
    assert own.question.target == "nokia"
    assert [part["type"] for part in blind.messages[-1]["content"]] == ["text"]
    assert blind.pictures == ()
    assert len(other.pictures) == 1
    assert other.pictures != own.pictures


def test_the_last_answer_of_a_conversation_is_asked_for(tmp_path: Path):
    prompt = asked_of(write_llava(tmp_path), conditions=(OWN,))[0]
    assert [message["role"] for message in prompt.messages] == ["user", "assistant", "user"]
    assert prompt.messages[1]["content"] == "A bus."
    assert prompt.question.target == "Red."


def test_the_same_seed_draws_the_same_samples_and_other_pictures(tmp_path: Path):
    data = write_vizwiz(tmp_path) + ",samples=2"
    assert asked_of(data, seed=4) == asked_of(data, seed=4)
    assert len(asked_of(data, conditions=(OWN,))) == 2


def test_one_picture_alone_has_no_other(tmp_path: Path):
    with pytest.raises(UserError, match="it has 1 pictures, too few"):
        asked_of(write_vizwiz(tmp_path) + ",samples=1")


def test_a_weight_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="weight= is for training"):
        asked_of(write_vizwiz(tmp_path) + ",weight=2")


def test_scores_are_by_data_set_and_answer_type(tmp_path: Path):
    data = [write_textvqa(tmp_path / "t"), write_vizwiz(tmp_path / "v")]
    says = {"0": "Nokia.", "1": "samsung", "VizWiz_train_00000000.jpg": "basil", "VizWiz_train_00000002.jpg": "yes"}
    means = {
        (one.data_set, one.answer_type, one.condition): one.accuracy.mean
        for one in group(replies_to(asked_of(*data), says))
    }
    # Of ten people 5 say nokia, 3 samsung (0.9), 4 basil; 4 and none the rest; 4 say unanswerable of the second.
    assert means[("textvqa", "all", OWN)] == pytest.approx((1 + 0.9 + 0) / 3)
    assert means[("vizwiz", "other", OWN)] == 1
    assert means[("vizwiz", "unanswerable", OWN)] == 1
    assert means[("vizwiz", "yes/no", NONE)] == 0
    assert means[("vizwiz", "all", OWN)] == pytest.approx(2 / 3)
    assert ("textvqa", "", OWN) not in means


def test_answerability_is_of_the_questions_that_have_no_answer(tmp_path: Path):
    says = {"VizWiz_train_00000000.jpg": "unanswerable", "VizWiz_train_00000002.jpg": "no"}
    (found,) = answerability(replies_to(asked_of(write_vizwiz_parquet(tmp_path)), says))
    assert (found.unanswerable, found.said_so, found.precision, found.recall) == (1, 2, 0.5, 1)
    assert found.f1 == pytest.approx(2 / 3)


class Failing:
    """Answers the first prompts, then does what it is told."""

    def __init__(self, answered: int, then: BaseException) -> None:
        self.answered, self.then = answered, then

    def ask(self, asked: list[Prompt], record: Record) -> None:
        for prompt in asked[: self.answered]:
            record(Reply(prompt, "nokia"))
        raise self.then


@pytest.mark.parametrize(
    ("then", "reason"), [(KeyboardInterrupt(), "interrupted"), (UserError("the server is gone"), "the server is gone")]
)
def test_what_was_measured_before_a_stop_is_written(tmp_path: Path, then: BaseException, reason: str):
    asked = asked_of(write_textvqa(tmp_path))
    results = Results({"model": "m"}, len(asked))
    evaluate(Failing(4, then), asked, results)
    results.write(tmp_path / "results.json")
    written = json.loads((tmp_path / "results.json").read_text())
    assert (written["complete"], written["stopped"]) == (False, reason)
    assert (written["asked"], written["answered"], len(written["replies"])) == (9, 4, 4)


class Page(HTMLParser):
    """The cards of a page: their attributes, text and pictures; and every address in it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.cards: list[dict] = []
        self.addresses: list[str] = []
        self.inside = False
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attributes: list) -> None:
        values = dict(attributes)
        self.addresses += [values[key] for key in ("src", "href") if key in values]
        if tag == "article":
            self.inside = True
            self.cards.append({**values, "text": "", "pictures": []})
        elif tag == "img" and self.inside:
            self.cards[-1]["pictures"].append(values["src"])

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "article"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cards[-1]["text"] += f"{data} "


def test_the_page_holds_the_wrong_answers_alone_with_their_pictures(tmp_path: Path):
    says = {"0": "nokia", "1": "samsung", "2": "<script>alert(1)</script>"}
    asked = asked_of(write_textvqa(tmp_path))
    write_page(Results({"model": "m"}, len(asked), replies=replies_to(asked, says)), tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert [card["data-score"] for card in page.cards] == ["partly", "wrong"]
    assert "what is the brand of phone 1?" in page.cards[0]["text"]
    assert "samsung" in page.cards[0]["text"]
    assert "<script>alert(1)</script>" in page.cards[1]["text"]
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    (url,) = page.cards[0]["pictures"]
    assert Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))).size == (90, 60)


def test_the_page_filters_in_a_browser(tmp_path: Path):
    asked = asked_of(write_textvqa(tmp_path / "t"), write_vizwiz(tmp_path / "v"))
    says = {"0": "samsung", "VizWiz_train_00000000.jpg": "basil leaf", "VizWiz_train_00000002.jpg": "yes"}
    write_page(Results({"model": "m"}, len(asked), replies=replies_to(asked, says)), tmp_path / "page.html")
    with chromium() as browser:
        page = browser.new_page()
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto((tmp_path / "page.html").as_uri())
        cards = page.locator("article:visible")
        expect(cards).to_have_count(5)
        page.locator("#data_set").select_option("vizwiz")
        expect(cards).to_have_count(2)
        page.locator("#answer_type").select_option("yes/no")
        expect(cards).to_have_count(1)
        page.locator("#data_set").select_option("")
        page.locator("#answer_type").select_option("")
        page.locator("#score").select_option("partly")
        expect(cards).to_have_count(1)
        page.locator("#score").select_option("")
        page.locator("#words").fill("basil leaf")
        expect(cards).to_have_count(1)
        expect(page.locator("#shown")).to_have_text("1 of 5")
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("width", [390, 800, 1280])
def test_the_page_is_as_wide_as_the_screen(tmp_path: Path, width: int):
    asked = asked_of(write_textvqa(tmp_path / "t"), write_vizwiz(tmp_path / "v"))
    name = "runs/a-model-with-a-long-name-and-no-space-in-it-that-lies-in-a-deep-folder (base model, float32, cpu)"
    results = Results({"model": name}, len(asked), replies=replies_to(asked, {"0": "an-answer-without-a-space" * 9}))
    write_page(results, tmp_path / "page.html")
    with chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto((tmp_path / "page.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        # Nothing is cut off either: what is beyond its own box could not be read.
        assert (
            page.evaluate(
                "[...document.querySelectorAll('td, dd, h1, .about')].filter(e => e.offsetParent && "
                "e.getBoundingClientRect().right > innerWidth).length"
            )
            == 0
        )
        accuracy = page.locator("td[data-column=accuracy]").first
        expect(accuracy).to_be_visible()
        shown = accuracy.evaluate("cell => getComputedStyle(cell, '::before').content")
        assert ("accuracy" in shown) == (width < 1000)  # where there is no table head, each cell names its column


def test_the_command_scores_a_checkpoint_and_names_what_failed(tiny_checkpoint: Path, tmp_path: Path, capsys):
    data = write_vizwiz(tmp_path)
    (tmp_path / "train" / "VizWiz_train_00000001.jpg").write_bytes(b"\xff\xd8\xff broken")
    arguments = ["evaluate", str(tiny_checkpoint), "--data", data, "-o", str(tmp_path / "out"), "--max-tokens", "4"]
    assert main([*arguments, "--baseline", "no-picture", "--metric", "m4c"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED: 1 of 6 have no answer and are not scored" in printed
    assert "vizwiz VizWiz_train_00000001.jpg (own picture)" in printed
    assert "m4c accuracy" in printed
    written = json.loads((tmp_path / "out/results.json").read_text())
    assert (written["answered"], written["failed"], written["complete"]) == (5, 1, True)
    assert {one["condition"] for one in written["replies"]} == {"own picture", "no picture"}
    own = next(one for one in written["means"] if one["answer_type"] == "all" and one["condition"] == OWN)
    assert (own["accuracy"]["count"], own["failed"]) == (2, 1)
    assert Page(tmp_path / "out/wrong_answers.html").cards


def test_odd_entries_are_named_with_their_number_and_reason(tiny_checkpoint: Path, tmp_path: Path, capsys):
    good = conversation(0, "000000000000.jpg", "What?", "A bus.")
    odd = [{"id": f"odd-{number}", "question": "What?"} for number in range(5)]
    data = write_llava(tmp_path, [good, *odd])
    arguments = ["evaluate", str(tiny_checkpoint), "--data", data, "-o", str(tmp_path / "out"), "--max-tokens", "2"]
    assert main([*arguments, "--baseline"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert line.startswith(f"llava: left out 5: {ANOTHER_FORMAT}: ")
    assert [f"entry {number}" in line for number in range(6)] == [False, True, True, True, False, False]
    assert line.endswith(", ...")
    assert json.loads((tmp_path / "out/results.json").read_text())["left_out"] == {"llava": {ANOTHER_FORMAT: 5}}


def test_m4cs_rules_are_said_wherever_there_are_scores(tmp_path: Path):
    asked = asked_of(write_textvqa(tmp_path / "t"))
    results = Results({"model": "m"}, len(asked), replies=replies_to(asked, {"0": "sam,sung"}), rules=M4C)
    assert results.scores[0].accuracy > 0  # the comma goes: samsung
    assert Results({}, len(asked), replies=results.replies).scores[0].accuracy == 0
    assert "m4c accuracy" in results.table() and "VQA" not in results.table()
    results.write(tmp_path / "results.json")
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["method"]["rules"] == "m4c accuracy"
    assert {one["metric"] for one in written["means"]} == {"m4c accuracy"}
    write_page(results, tmp_path / "page.html")
    assert "VQA" not in (tmp_path / "page.html").read_text()


def test_one_picture_is_asked_about_without_the_baseline_of_others(tiny_checkpoint: Path, tmp_path: Path, capsys):
    data = write_vizwiz(tmp_path) + ",samples=1"
    arguments = ["evaluate", str(tiny_checkpoint), "--data", data, "-o", str(tmp_path / "out"), "--max-tokens", "2"]
    assert main(arguments) == 0
    assert "without the baseline other-picture: data set vizwiz" in capsys.readouterr().out
    written = json.loads((tmp_path / "out/results.json").read_text())
    assert {one["condition"] for one in written["replies"]} == {"own picture", "no picture"}
    assert main([*arguments, "--baseline", "other-picture"]) == 2
    assert "--baseline no-picture" in capsys.readouterr().err


def test_a_checkpoint_and_a_server_at_once_are_refused(tmp_path: Path, capsys):
    for given in ([], ["some-folder", "--url", "http://localhost:1/v1"]):
        assert main(["evaluate", *given, "--data", "local=none.jsonl", "-o", str(tmp_path)]) == 2
        assert "one of them" in capsys.readouterr().err
