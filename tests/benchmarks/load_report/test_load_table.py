"""What is said beside the figures."""

from typing import Any

import pytest

from qwen_vqa.benchmarks.load_generator.records import Record
from qwen_vqa.benchmarks.load_generator.summary import failures, summarise
from qwen_vqa.benchmarks.load_report.load_table import cell_table, remarks, tail_notes, too_few


def cell(records: list[Record], users: int = 0, warm_up: list[Record] | None = None) -> dict[str, Any]:
    """As a run has it, of a server without metrics."""
    return {
        "label": f"{users} users",
        "cache": "cold",
        "arrivals": {"concurrency": users},
        "client_cpu_share": 0.1,
        "client_processes": 1,
        "not_sent": 0,
        "server": None,
        "pictures_known": 0.0,
        "warm_up": failures(warm_up or []),
        "summary": summarise(records, 1.0),
    }


def answered(index: int, sent: float = 0.0) -> Record:
    chunks = [(sent + 0.1, 1), (sent + 0.1 + 0.01 * index, 1)]
    end = chunks[-1][0]
    return Record(index, 0, "m", 2, 1, False, 0.0, sent, chunks[0][0], end, end, 2, chunks=chunks)


@pytest.mark.parametrize(("users", "requests", "said"), [(4, 7, True), (4, 8, False), (0, 3, False)])
def test_a_closed_loop_of_one_wave_is_said(users: int, requests: int, said: bool) -> None:
    found = remarks(cell([answered(number) for number in range(requests)], users))
    assert any(remark.startswith("one wave: with fewer than 8 requests") for remark in found) is said


def test_a_client_that_sends_late_is_said() -> None:
    assert not remarks(cell([answered(1, sent=0.005)]))
    assert remarks(cell([answered(1, sent=0.25)])) == [
        "the client sent late, by 250 ms (p95) and 250 ms at most: latencies hold it"
    ]


def test_a_warm_up_that_failed_is_said_and_does_not_count() -> None:
    bad = Record(0, 0, "m", 1, 0, False, 0.0, error="http 500", detail="out of memory")
    result = cell([answered(1)], warm_up=[bad, bad])
    assert remarks(result) == ["warm-up: 2 failed, http 500: out of memory"]
    assert result["summary"]["failed"] == 0


def test_the_table_has_every_percentile_of_every_latency_and_fits_a_terminal() -> None:
    text = cell_table({"cells": [cell([answered(number) for number in range(101)], 8)], "left_out": []})
    row = next(line.split() for line in text.splitlines() if line.startswith("TPOT"))
    assert row == ["TPOT", "8", "users,", "cold", "500", "500", "900", "950", "990", "1000"]
    assert [text.count(f"{name}  8 users") for name in ("TTFT", "TPOT", "ITL", "e2e")] == [1, 1, 1, 1]
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("requests", "named"), [(0, []), (40, ["p95", "p99"]), (100, ["p99"]), (499, ["p99"]), (500, [])]
)
def test_a_percentile_of_few_requests_is_said(requests: int, named: list[str]) -> None:
    notes = tail_notes([cell([answered(number) for number in range(requests)])])
    assert [note.split()[0] for note in notes] == named
    assert all(f"of {requests} requests" in note for note in notes)
    assert not too_few(40, "p50")


def test_percentiles_of_several_cells_are_one_note() -> None:
    some, more = (cell([answered(number) for number in range(count)]) for count in (40, 120))
    notes = tail_notes([some, more])
    assert [note.split()[:4] for note in notes] == [["p95", "of", "40", "requests"], ["p99", "of", "40", "to"]]
