"""The file of the starts says where and how they were measured."""

import json
import sys
from pathlib import Path

import pytest

from qwen_vqa.benchmarks.server_cost import startup_time


def test_the_file_has_every_start_and_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "starts.json"
    seconds = iter(range(1, 100))
    monkeypatch.setattr(startup_time, "measure", lambda *_: dict.fromkeys(startup_time.STAGES, float(next(seconds))))
    monkeypatch.setattr(sys, "argv", ["startup_time.py", "--runs", "2", "--json", str(file)])
    startup_time.main()
    found = json.loads(file.read_text())
    assert {"date", "machine", "versions", "git"} <= set(found["environment"])
    # The variants take turns.
    ready = [[run["ready"] for run in runs] for runs in found["starts"].values()]
    assert ready == [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]
