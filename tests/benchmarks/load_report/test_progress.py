"""Progress costs the same for the last request as for the first."""

import sys

import pytest

from qwen_vqa.benchmarks.load_generator.records import Record
from qwen_vqa.benchmarks.load_report.live_progress import Progress


class Terminal:
    """Stands for a terminal: what was written, and that it is one."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


class Watched(list[Record]):
    """Counts the records that are looked at."""

    looked_at = 0

    def __getitem__(self, at):  # type: ignore[no-untyped-def, override]
        found = super().__getitem__(at)
        self.looked_at += len(found) if isinstance(at, slice) else 1
        return found

    def __iter__(self):  # type: ignore[no-untyped-def]
        self.looked_at += len(self)
        return super().__iter__()


def record(number: int) -> Record:
    return Record(number, 0, "m", 1, 0, False, 0.0, error="timeout" if number % 4 == 0 else None)


def test_each_record_is_looked_at_once_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_vqa.benchmarks.load_report.live_progress.LIVE_SECONDS", 0.0)
    terminal, records = Terminal(), Watched()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress()
    for number in range(40):
        records.append(record(number))
        progress.show("cell", len(records), 40, records)
    assert "40 of 40, 10 failed" in terminal.text
    assert records.looked_at == 40
    progress.show("cell", 1, 40, [record(1)])  # the same cell, measured again
    assert "1 of 40, 0 failed" in terminal.text


def test_a_terminals_line_is_not_written_for_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress()
    for number in range(1, 1000):
        progress.show("cell", number, 2000, [])
    assert terminal.text.count("load: cell") < 20
