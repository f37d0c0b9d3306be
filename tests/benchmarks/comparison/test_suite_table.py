"""The suite's table and summary hold one setting, and say what a reader has to know."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_vqa.benchmarks.comparison import suite
from qwen_vqa.benchmarks.comparison.suite_table import caption, table
from qwen_vqa.benchmarks.comparison.targets import MeasuredShape
from tests.benchmarks.comparison.test_targets import candidate, cell
from tests.tiny import REPOSITORY

COMMITTED = REPOSITORY / "benchmarks" / "results" / "0.5b-32.json"
LIMIT = {"decode_tokens_per_second": 50.0, "requests_per_second": 2.0}
TYPES = ("float32", "bfloat16", "int8")

Summarise = Callable[[], int]


def named(result: dict, *cells: dict, git: str = "abc", **more: object) -> dict:
    cells = tuple({"summary": {"failed": 0, **one.pop("summary")}, **one} for one in cells)
    environment = {"git": git, "date": "2026-11-28T13:36:35+0000"}
    return result | {"name": "it", "finished": True, "environment": environment, "cells": list(cells), **more}


def column(results: dict[str, dict], name: str, limits: dict[str, dict] | None = None) -> list[str]:
    rates = dict.fromkeys(TYPES, 400e9)
    measured = MeasuredShape("0.5b", 32, results, limits or dict.fromkeys((*TYPES, "int8-f32"), LIMIT), rates)
    head, *rows = table(results, measured)
    return [row[head.index(name)] for row in rows]


def test_decode_and_prefill_are_of_one_user() -> None:
    turns = {"first_ttft": {"p50": 200.0}, "later_ttft": {"p50": 20.0}}
    cells = cell(1, 1.0, tpot=25, ttft=1000), cell(8, 2.0), cell(1, 1.0, later_turns=turns)
    results = {"ours": named(candidate("float32"), *cells)}
    assert column(results, "decode") == ["80%", "-", "-"]
    assert column(results, "prefill") == ["45%", "-", "-"]
    assert column(results, "of limit") == ["50%", "100%", "-"]


def test_int8_is_held_against_what_is_around_it() -> None:
    results = {"ours-int8": named(candidate("int8"), cell(1, 1.0, tpot=25))}
    results["ours-int8"]["command"] = ["serve", "--dtype", "float32"]
    limits = {"int8": LIMIT, "int8-f32": LIMIT | {"decode_tokens_per_second": 40.0}}
    assert column(results, "decode", limits) == ["100%"]


def test_text_alone_has_no_share_in_requests_but_in_prefill() -> None:
    results = {"e": named(candidate("bfloat16"), cell(1, 1.0, tpot=25, ttft=1000), text_only=True)}
    assert column(results, "of limit") == ["-"]
    assert (column(results, "decode"), column(results, "prefill")) == (["80%"], ["39%"])


def test_p95_of_few_requests_says_so() -> None:
    results = {"ours": named(candidate("float32"), cell(1, 1.0, completed=19), cell(8, 1.0, completed=20))}
    assert column(results, "p95") == ["200 (n=19)", "200"]
    assert any("fewer than 20" in line for line in caption(results))
    del results["ours"]["cells"][0]
    assert not any("fewer than 20" in line for line in caption(results))


def test_different_commits_and_unfinished_ones_are_said() -> None:
    results = {key: named(candidate("float32"), cell(1, 1.0)) for key in ("ours", "a")}
    assert "commit" not in " ".join(caption(results))
    results["a"] = named(candidate("float32"), cell(1, 1.0), git="def", finished=False)
    assert caption(results)[-2:] == [
        "Not all cells were measured of a.",
        "Measured at different commits: abc: ours on 2026-11-28; def: a on 2026-11-28.",
    ]


def test_pictures_that_a_cache_knew_are_said() -> None:
    cells = (
        cell(1, 1.0) | {"server": {"mm_cache_hit_rate": 0.0}},
        cell(8, 1.0) | {"server": {"mm_cache_hit_rate": 0.375}},
    )
    results = {"ours": named(candidate("float32"), *cells)}
    assert caption(results)[-1] == "Not cold, since pictures were in the server's cache: ours, 8 users (38%)."


@pytest.fixture
def summarise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Summarise:
    """`suite.py --summary` of the committed candidates, each in a file of its own again."""
    committed = json.loads(COMMITTED.read_text())
    (tmp_path / "0.5b-32").mkdir()
    for one in committed["candidates"]:
        (tmp_path / "0.5b-32" / f"{one['key']}.json").write_text(json.dumps(one))
    (tmp_path / "0.5b-limits.json").write_text(json.dumps(committed["machine"]))
    flags = ["--shapes", "0.5b", "--summary", "--requests", "99,99,99"]
    monkeypatch.setattr(sys, "argv", ["suite.py", *flags, "--work", str(tmp_path), "--out", str(tmp_path / "out")])
    return suite.main


def test_the_summary_has_the_candidates_own_setting(
    tmp_path: Path, summarise: Summarise, capsys: pytest.CaptureFixture[str]
) -> None:
    assert summarise() == 0
    summary = json.loads((tmp_path / "out" / "0.5b-32.json").read_text())
    committed = json.loads(COMMITTED.read_text())["candidates"]
    assert {one["key"] for one in summary["candidates"]} == {one["key"] for one in committed}
    assert all(one["setting"] == summary["setting"] for one in committed)
    assert summary["commits"] == {one["key"]: _commit(one["environment"]) for one in summary["candidates"]}
    assert all(line in capsys.readouterr().out for line in summary["caption"][:1])


def _commit(environment: dict) -> dict:
    return {name: environment[name] for name in ("git", "date")}


def test_a_mixture_of_settings_is_refused_with_the_files_names(
    tmp_path: Path, summarise: Summarise, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "0.5b-32" / "ours-int8.json"
    result = json.loads(file.read_text())
    result["setting"]["seed"] += 1
    file.write_text(json.dumps(result))
    assert summarise() == 1
    assert f"{file}: seed {result['setting']['seed']} in place of" in capsys.readouterr().err
    assert not (tmp_path / "out" / "0.5b-32.json").exists()


def test_another_settings_file_is_refused_before_anything_is_measured(
    summarise: Summarise, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [word for word in sys.argv if word != "--summary"]
    monkeypatch.setattr(sys, "argv", [*argv, "--only", "a"])
    monkeypatch.setattr(suite, "measure", lambda *_: pytest.fail("it measured"))
    monkeypatch.setattr(suite, "read_bandwidth", lambda: pytest.fail("it measured"))
    with pytest.raises(suite.UserError, match=r"ours-int8.json: cells .* in place of \[\[1, 99\]"):
        summarise()
