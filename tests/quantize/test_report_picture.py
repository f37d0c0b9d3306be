"""The report's picture: what a bar is a share of, its numbers, and its width."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from qwen_vqa.benchmarks.quantisation.report_picture import draw_report
from qwen_vqa.quantize.answer_quality import accuracy_row
from tests.browser import chromium


def drawn_report(**more: Any) -> str:
    """A picture of numbers that are known: half the weights, a speed in two rounds, and accuracies."""
    sides = {
        side: {
            "ready_bytes": size,
            "resident_bytes": size,
            "decode_tokens_per_second": {"1": speed},
            "prefill_tokens_per_second": {},
            "rounds": {"decode": {1: rounds}, "prefill": {}},
        }
        for side, size, speed, rounds in (
            ("original", 2**30, 20.0, [20.0, 20.0]),
            ("quantised", 2**29, 30.0, [29.0, 31.0]),
        )
    }
    numbers = {"disk": {"original": 2**21, "quantised": 2**20}, "speed": sides}
    rows = {"accuracy": {"questions": accuracy_row([(1.0, 0.0)] * 30 + [(1.0, 1.0)] * 30 + [(0.0, 0.0)] * 40)}}
    return draw_report({"scheme": "int8", "original": "a", "quantised": "b"} | numbers | rows | more)


def test_a_bar_says_what_it_is_a_share_of() -> None:
    """Right answers went from 60 to 30%: the bar is half as long, and both numbers stand beside it."""
    texts = [text.text for text in ElementTree.fromstring(drawn_report()).iter() if text.text]
    [label] = [text for text in texts if "n 100" in text]
    words = texts[texts.index(label) + 1]
    low, high = accuracy_row([(1.0, 0.0)] * 30 + [(1.0, 1.0)] * 30 + [(0.0, 0.0)] * 40)["change_ci"]
    for one in ("50% of the original", "30.0%", "60.0%", "-30.0 points", f"{low:+.1f}", f"{high:+.1f}"):
        assert one in words
    size = texts[texts.index("weights on disk") + 1]
    assert "50% of the original" in size and "1.0 against 2.0 MiB" in size
    speed_words = texts[texts.index("decode, 1 user") + 1]
    assert "150% of the original" in speed_words
    assert all(one in speed_words for one in ("30.0", "20.0 tokens/s", "2 rounds", "145", "155%"))


def test_bars_and_intervals_are_to_scale() -> None:
    picture = ElementTree.fromstring(drawn_report())
    bars = [float(one.get("width", "")) for one in picture.iter() if one.tag.endswith("rect") and one.get("y")]
    disk, ready, after, decode, accuracy = bars
    assert disk == ready == after == accuracy
    assert decode == pytest.approx(3 * disk, abs=0.2)


def test_an_original_without_right_answers_has_no_bar_and_is_not_left_out() -> None:
    texts = drawn_report(accuracy={"questions": accuracy_row([(0.0, 1.0)] * 10)})
    assert "n 10" in texts and "100.0% against 0.0%" in texts


@pytest.mark.parametrize("width", [390, 1280])
def test_the_picture_fits_the_screen(tmp_path: Path, width: int) -> None:
    long = "a-checkpoint-with-a-name-that-says-everything-about-it-and-more"
    (tmp_path / "report.svg").write_text(drawn_report(original=long, quantised=f"{long}-int8"))
    with chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto((tmp_path / "report.svg").as_uri())
        box = page.evaluate("document.documentElement.getBoundingClientRect().width")
        assert box <= width
        beyond = "[...document.querySelectorAll('text')].filter(t => t.getBoundingClientRect().right > %f).length"
        assert page.evaluate(beyond % box) == 0
