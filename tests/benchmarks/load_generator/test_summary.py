"""Figures of records whose times are known."""

import pytest

from qwen_vqa.benchmarks.load_generator.records import Record
from qwen_vqa.benchmarks.load_generator.summary import Bounds, distribution, summarise
from qwen_vqa.plugin.errors import UserError


def answered(intended: float, ttft: float, gaps: list[tuple[float, int]], **changes: object) -> Record:
    """A request sent when intended, whose first event brings one token, and then events after these gaps."""
    times = [(intended + ttft, 1)]
    for gap, tokens in gaps:
        times.append((times[-1][0] + gap, tokens))
    count = sum(tokens for _, tokens in times)
    fields = {
        "intended": intended,
        "sent": intended,
        "first_token": times[0][0],
        "last_token": times[-1][0],
        "end": times[-1][0],
        "output_tokens": count,
        "asked_tokens": count,
        "prompt_tokens": 100,
        "chunks": times,
    }
    return Record(**({"index": 0, "turn": 0, "model": "m", "images": 1, "repeated_image": False} | fields | changes))


def failed(kind: str) -> Record:
    return Record(0, 0, "m", 4, 1, False, 0.0, end=0.5, error=kind, detail=f"about {kind}")


def test_rates_divide_by_the_cells_duration_and_count_answers_alone() -> None:
    summary = summarise([answered(0, 0.1, [(0.1, 1)] * 3), answered(1, 0.1, [(0.1, 1)] * 3), failed("timeout")], 4.0)
    assert summary["requests_per_second"] == pytest.approx(0.5)
    assert summary["output_tokens_per_second"] == pytest.approx(2.0)
    assert (summary["requests"], summary["completed"], summary["failed"]) == (3, 2, 1)


def test_ttft_tpot_and_end_to_end_of_one_request() -> None:
    summary = summarise([answered(2.0, 0.25, [(0.03, 1), (0.05, 1)])], 1.0)
    assert summary["ttft"]["p50"] == pytest.approx(250)
    assert summary["tpot"]["p50"] == pytest.approx(40)
    assert summary["e2e"]["p50"] == pytest.approx(330)


def test_inter_token_latency_weighs_each_token() -> None:
    summary = summarise([answered(0, 0.1, [(0.06, 3), (0.02, 1)])], 1.0)
    assert summary["itl"]["n"] == 4
    assert summary["itl"]["mean"] == pytest.approx(20)


def test_latencies_count_from_the_intended_time_and_the_delay_is_shown() -> None:
    summary = summarise([answered(1.0, 0.5, [], sent=1.4)], 2.0)
    assert summary["ttft"]["p50"] == pytest.approx(500)
    assert summary["send_delay"]["max"] == pytest.approx(400)


def test_one_token_has_no_tpot() -> None:
    assert summarise([answered(0, 0.1, [])], 1.0)["tpot"] is None


def test_percentiles_lie_between_the_nearest_two() -> None:
    found = distribution([0.1, 0.2, 0.3, 0.4, 0.5])
    assert found is not None
    assert (found["p50"], found["p90"]) == pytest.approx((300, 460))


def test_goodput_needs_every_bound_and_no_failure() -> None:
    quick, slow_start = answered(0, 0.1, [(0.01, 1)]), answered(0, 0.9, [(0.01, 1)])
    slow_tokens = answered(0, 0.1, [(0.2, 1)])
    bounds = Bounds.parse("ttft:500,tpot:50")
    summary = summarise([quick, slow_start, slow_tokens, failed("timeout")], 2.0, bounds)
    assert summary["goodput_per_second"] == pytest.approx(0.5)
    assert summary["good_share"] == pytest.approx(0.25)


@pytest.mark.parametrize("text", ["ttft", "speed:3", "ttft:-1", "ttft:fast"])
def test_a_bound_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected NAME:MILLISECONDS"):
        Bounds.parse(text)


def test_errors_are_counted_by_kind_with_an_example() -> None:
    summary = summarise([failed("http 429"), failed("http 429"), failed("timeout")], 1.0)
    assert summary["errors"] == {"http 429": 2, "timeout": 1}
    assert summary["error_examples"]["http 429"] == "about http 429"
    assert summary["error_share"] == 1.0


def test_cached_share_and_other_lengths_come_from_the_servers_usage() -> None:
    summary = summarise([answered(0, 0.1, [], cached_tokens=80), answered(0, 0.1, [], asked_tokens=9)], 1.0)
    assert summary["cached_token_share"] == pytest.approx(0.4)
    assert summary["other_length"] == 1


def test_nothing_at_all_is_summarised_too() -> None:
    assert summarise([], 0.0)["requests_per_second"] == 0


def test_decoding_is_timed_while_all_do_it() -> None:
    # A token each 0.1 s, and each 0.2 s; the first one's wait for the second one's prompt does not count.
    early = answered(0, 0.1, [(0.1, 1), (3.0, 1), *[(0.1, 1)] * 20])
    late = answered(0, 3.15, [(0.2, 1)] * 20)
    assert summarise([early, late], 8.0)["decode_tokens_per_second"] == pytest.approx(10 + 5)
    assert summarise([early, failed("timeout")], 8.0)["decode_tokens_per_second"] == pytest.approx(22 / 5.1)


def test_answers_one_after_another_never_all_decode() -> None:
    one, other = answered(0, 0.1, [(0.1, 1)] * 3), answered(1, 0.1, [(0.1, 1)] * 3)
    assert summarise([one, other], 2.0)["decode_tokens_per_second"] is None
