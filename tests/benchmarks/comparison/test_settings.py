"""Settings of one server against each other: what is asked for, and what several turns come to."""

from argparse import Namespace

import pytest

from qwen_vqa.benchmarks.comparison.settings import ServeSetting, ask_in_turns, means, table
from qwen_vqa.benchmarks.load_generator.client_overhead import null_server
from qwen_vqa.plugin.errors import UserError


def cell(rate: float, tpot: float | None = 10.0, failed: int = 0) -> dict:
    times = None if tpot is None else {"p50": tpot, "p95": 2 * tpot}
    return {"label": "1 user", "requests_per_second": rate, "ttft": times, "tpot": times, "failed": failed}


def test_words_are_variables_or_flags():
    setting = ServeSetting.parse("asleep: OMP_WAIT_POLICY=passive --dtype float32 --additional-config '{\"a\": 1}'")
    assert setting.name == "asleep"
    assert setting.variables == {"OMP_WAIT_POLICY": "passive"}
    assert setting.flags == ("--dtype", "float32", "--additional-config", '{"a": 1}')


def test_a_setting_without_a_name_is_refused():
    with pytest.raises(UserError, match="there is no colon"):
        ServeSetting.parse("--dtype float32")


def test_turns_come_to_means_and_to_the_median_ratio_of_a_turn():
    """The third turn, in which the machine was slow for one of them alone, does not decide."""
    first = [[cell(1.0)], [cell(2.0)], [cell(0.1)]]
    other = [[cell(1.5, 20)], [cell(3.2, 30, failed=1)], [cell(1.0, None)]]
    [found] = means(other, first)
    assert found["requests_per_second"] == pytest.approx(1.9)
    assert found["against_first"] == pytest.approx(1.6)
    assert found["tpot"] == {"p50": 25, "p95": 50}
    assert found["failed"] == 1


def test_nothing_answered_is_no_ratio():
    first, other = [[cell(0.0, None)]], [[cell(1.0)]]
    assert means(other, first)[0]["against_first"] is None
    rows = [("first", {"ready_seconds": 1.0, "cells": means(first, first)})]
    assert table(rows).splitlines()[1].split()[-5:] == ["-", "-", "-", "-", "0"]


def test_no_turn_asks_about_pictures_of_another():
    args = Namespace(concurrency="1,2", requests=2, output_tokens=2, seed=7, turns=2)
    with null_server("--ttft", "50", "--itl", "20") as url:  # so slow that one process of the client keeps up
        *_, [turns] = ask_in_turns([ServeSetting("one")], [url.removesuffix("/v1")], args)
    seeds = [cell["seed"] for turn in turns for cell in turn]
    assert len(seeds) == len(set(seeds)) == 2 * 2
