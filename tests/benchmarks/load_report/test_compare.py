"""What makes two results hard to compare is said, and no cell is lost."""

from copy import deepcopy
from typing import Any

from qwen_vqa.benchmarks.load_generator.summary import Bounds, summarise
from qwen_vqa.benchmarks.load_report.compare import compare

CELL = {"label": "gamma 2/s", "cache": "cold", "arrivals": {"kind": "gamma", "burstiness": 0.25}}


def result(*rates: float) -> dict[str, Any]:
    """A run whose cells are all labelled alike."""
    summary = summarise([], 1.0, Bounds.parse("ttft:500"))
    return {
        "environment": {
            "date": "today",
            "git": "abc",
            "command": "load.py",
            "machine": {"processor": "one", "cores": 2},
            "versions": {"aiohttp": "3.12"},
        },
        "server": {"version": "0.32.0"},
        "workload": {"requests": 4},
        "goodput_bounds_ms": {"ttft": 500},
        "cells": [CELL | {"summary": summary | {"requests_per_second": rate}} for rate in rates],
        "interrupted": False,
        "error": None,
    }


def test_cells_of_one_label_are_compared_one_by_one() -> None:
    text = compare(result(1.0, 2.0), result(1.0, 4.0))
    ratios = [line.split()[-2:] for line in text.splitlines() if "requests/s" in line]
    assert ratios == [["1", "1.00"], ["2.00", "better"]]
    assert "gamma 2/s, cold (2)" in text
    assert "careful" not in text


def test_other_bounds_versions_and_arrivals_are_said() -> None:
    a, b = result(1.0), deepcopy(result(1.0))
    b["goodput_bounds_ms"] = {"ttft": 900}
    b["environment"]["versions"] = {"aiohttp": "3.13"}
    b["server"]["version"] = "0.33.0"
    b["cells"][0]["arrivals"]["burstiness"] = 1.0
    b["error"] = "a client process died"
    text = compare(a, b)
    for said in (
        "other goodput bounds, ms (ttft: 500 and 900)",
        "other versions (aiohttp: 3.12 and 3.13)",
        "other versions (the server's vLLM: 0.32.0 and 0.33.0)",
        "other arrivals in gamma 2/s, cold (burstiness: 0.25 and 1.0)",
        "B did not come to its end (a client process died)",
    ):
        assert f"careful: {said}" in text


def test_bounds_on_one_side_alone_are_said() -> None:
    a, b = result(1.0), result(1.0)
    b["goodput_bounds_ms"] = None
    assert "careful: other goodput bounds, ms (ttft: 500 and None)" in compare(a, b)
