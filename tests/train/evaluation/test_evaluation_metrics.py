"""Scores of answers, against published examples of the metrics and values that follow from their definitions."""

import itertools
import json
from pathlib import Path

import pytest

from qwen_vqa.train.evaluation.answer_metrics import anls, exact_match, vqa_accuracy, wilson_interval
from qwen_vqa.train.evaluation.metric_rules import M4C
from qwen_vqa.train.evaluation.normalisation import m4c_normal_form, normalise_answer

# What the published evaluator gives; the file says where it is from.
PUBLISHED_M4C = json.loads((Path(__file__).parent / "m4c_cases.json").read_text(encoding="utf-8"))

# visualqa.org/evaluation.html names each rule with an example; below them, what follows from the rules together.
PUBLISHED = {
    "YES": "yes",
    "dont": "don't",
    "100,978": "100978",
    "2:50 pm": "2:50 pm",
    "girl's": "girl's",
    "the cat": "cat",
    "three": "3",
    "3.5": "3.5",
    "yes.": "yes",
}
DERIVED = {
    "A cat\tand\na dog ": "cat and dog",
    "none": "0",
    "ten": "10",
    "eleven": "eleven",
    "1.": "1",
    ".5": ".5",
    "U.S.A.": "usa",
    "red/blue": "red blue",  # between letters a mark becomes a space
    "red / blue": "red blue",  # beside a space it vanishes
    "stop! go!": "stop go",
    "1,000-2,000": "10002000",  # a comma between digits: every mark vanishes
    "100%": "100%",
    "$5": "$5",
    "couldnt've": "couldn't've",
    "couldn'tve": "couldn't've",
    "its": "its",
    "Im": "im",
    "twas": "'twas",
    "The": "",
}


@pytest.mark.parametrize(("answer", "normal"), (PUBLISHED | DERIVED).items())
def test_answers_have_the_official_normal_form(answer: str, normal: str):
    assert normalise_answer(answer) == normal


# The paper's formula by itself: min(n/3, 1) over all nine of ten. Three who agree give 0.9, not 1.
@pytest.mark.parametrize(
    ("agreeing", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (7, 1), (10, 1)], ids=lambda value: str(value)
)
def test_vqa_accuracy_for_each_number_of_people_who_agree(agreeing: int, score: float):
    answers = ["Yes."] * agreeing + [f"no {place}" for place in range(10 - agreeing)]
    assert vqa_accuracy("yes", answers) == pytest.approx(score)


def test_vqa_accuracy_is_the_average_over_all_choices_of_nine_people():
    answers = ["cat", "cat", "dog", "the dog", "dog.", "a cat", "bird", "bird", "2", "two"]
    for answer in ("cat", "dog", "bird", "2", "horse"):
        subsets = list(itertools.combinations(answers, 9))
        expected = sum(min(sum(normalise_answer(other) == answer for other in nine) / 3, 1) for nine in subsets) / 10
        assert vqa_accuracy(answer, answers) == pytest.approx(expected)


def test_too_few_people_give_no_vqa_accuracy():
    assert vqa_accuracy("yes", ["yes"] * 3) is None
    assert vqa_accuracy("yes", ["yes"] * 4) == 1


# The table on the page of the metric (Robust Reading Competition, DocVQA), as the package `anls` repeats it.
@pytest.mark.parametrize(
    ("answer", "score"), [("The Coca", 0), ("CocaCola", 0.89), ("Coca cola", 1), ("Cola", 0), ("Cat", 0)]
)
def test_anls_of_the_published_example(answer: str, score: float):
    assert anls(answer, ["Coca Cola", "Coca Cola Company"]) == pytest.approx(score, abs=0.005)


def test_exact_match_is_of_the_normal_forms():
    assert exact_match("The stop sign.", "stop sign") == 1
    assert exact_match("stop", "stop sign") == 0


# Newcombe 1998 (doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E), table I, method 3.
@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_intervals_are_wilsons_published_ones(right: int, count: int, low: float, high: float):
    assert wilson_interval(right / count, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("answer", "form"), PUBLISHED_M4C["normal_forms"].items())
def test_m4cs_normal_form_is_the_published_evaluators(answer: str, form: str):
    assert m4c_normal_form(answer) == form


def test_m4cs_accuracy_is_the_published_evaluators():
    cases = PUBLISHED_M4C["accuracies"]
    people = PUBLISHED_M4C["people"]
    found = [vqa_accuracy(case["answer"], people[case["people"]], M4C) for case in cases]
    assert found == pytest.approx([case["score"] for case in cases], abs=1e-6)
    assert len({case["score"] for case in cases}) > 4


def test_m4cs_anls_is_the_published_evaluators():
    cases = PUBLISHED_M4C["anls"]
    found = [anls(case["answer"], case["people"], rules=M4C) for case in cases]
    assert found == pytest.approx([case["score"] for case in cases], abs=1e-6)
    halves = [case for case in cases if case["score"] == 0.5]
    assert halves and all(anls(case["answer"], case["people"]) == 0 for case in halves)  # the paper's, and ours


@pytest.mark.parametrize(
    ("answer", "other"), [("1,000-2,000", "1000 2000"), ("yes?no", "yesno"), ("girl's", "girl 's"), ("a,b", "ab")]
)
def test_the_rules_differ_where_the_guide_says_so(answer: str, other: str):
    """train/README.md's table: commas, question marks and 's go first in M4C's evaluator."""
    assert exact_match(answer, other, M4C) == 1
    assert exact_match(answer, other) == 0


def test_ten_identical_answers_are_normalised_like_any_others():
    """VQA's own script leaves them as they are, so that `cat` is wrong where all ten said `The cat.`"""
    assert vqa_accuracy("cat", ["The cat."] * 10) == 1
