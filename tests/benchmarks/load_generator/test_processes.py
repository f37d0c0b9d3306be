"""What becomes of a cell when a client process or the user ends it."""

import pytest

from qwen_vqa.benchmarks.load_generator import measurement_points
from qwen_vqa.benchmarks.load_generator.arrivals import Arrivals
from qwen_vqa.benchmarks.load_generator.client_overhead import _check
from qwen_vqa.benchmarks.load_generator.client_processes import run_shares
from qwen_vqa.benchmarks.load_generator.conversation_runner import Share
from qwen_vqa.benchmarks.load_generator.measurement_points import Plan, run_cells
from qwen_vqa.benchmarks.load_generator.records import Record
from qwen_vqa.benchmarks.load_generator.streaming_client import Target
from qwen_vqa.benchmarks.load_generator.workload import WorkloadSpec, conversations
from qwen_vqa.plugin.errors import UserError
from tests.benchmarks.fault_server import FaultServer

SPEC = WorkloadSpec((("good", 1.0),), sizes=((32, 32),), output_tokens=(4, 4))


def test_a_process_that_dies_is_said() -> None:
    share = Share(None, tuple(conversations(SPEC, 0, 2)), None, 1)  # type: ignore[arg-type]  # no target: it raises
    with pytest.raises(UserError, match="a client process died"):
        run_shares([share], lambda _: None, lambda: None)


def test_ctrl_c_after_the_last_answer_keeps_the_cell(faults: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measurement_points.ServerWatch, "finish", interrupted)
    plan = Plan(SPEC, (Arrivals("closed", concurrency=1),) * 2, requests=4, seed=1, warm_up=0)
    found = list(run_cells(plan, Target(faults.url, None, 10.0), lambda *_: None))
    assert [(cell["summary"]["completed"], cell["interrupted"]) for cell in found] == [(4, True)]


def test_a_repetition_that_is_cut_off_leaves_the_finished_cell(
    faults: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Always too busy for one process; the cell's repetition with two gets Ctrl-C in its warm-up.
    monkeypatch.setattr(measurement_points, "SATURATED", -1.0)
    monkeypatch.setattr(measurement_points, "_cores", lambda: 2)
    measured = []

    def progress(title: str, *_: object) -> None:
        if title not in measured:
            measured.append(title)
        if title.endswith("2 processes, warm-up"):
            raise KeyboardInterrupt

    plan = Plan(SPEC, (Arrivals("closed", concurrency=2),) * 2, requests=4, seed=1, warm_up=1)
    found = list(run_cells(plan, Target(faults.url, None, 10.0), progress))
    assert measured[-1].endswith("2 processes, warm-up")
    assert [(cell["summary"]["completed"], cell["interrupted"], cell["client_processes"]) for cell in found] == [
        (4, True, 1)
    ]


def test_a_ceiling_of_failed_requests_is_none() -> None:
    good, bad = Record(0, 0, "m", 1, 0, False, 0.0), Record(1, 0, "m", 1, 0, False, 0.0, error="connection")
    _check([good, good], 2)
    with pytest.raises(UserError, match="1 failed and 0 were not sent, for instance connection"):
        _check([good, bad], 2)
    with pytest.raises(UserError, match="0 failed and 1 were not sent"):
        _check([good], 2)
