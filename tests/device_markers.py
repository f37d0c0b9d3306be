"""The markers `cpu` and `gpu`: which tests are left out on this machine, and what is said of it at the end."""

from collections import Counter

import pytest

from qwen_vqa.train.model.compute_device import Gpus

ASSUMES_CPU = "assume a CPU's kernels, packed layers, threads and float32"
NEEDS_GPU = "need a GPU"


def reason_to_skip(marks: set[str], gpus: Gpus) -> str | None:
    """Why a test with these markers cannot hold on a machine with these GPUs."""
    if "cpu" in marks and gpus.names:
        return f"{ASSUMES_CPU}, and here vLLM computes on {gpus}"
    if "gpu" in marks and not gpus.names:
        return f"{NEEDS_GPU}: {gpus.reason}"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip them."""
    gpus = Gpus.here()
    for item in items:
        reason = reason_to_skip({mark.name for mark in item.iter_markers()}, gpus)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A line for each reason, from the reports: with pytest-xdist, other processes have collected the tests."""
    skipped = (report.longrepr for report in terminalreporter.stats.get("skipped", ()))
    reasons = Counter(where[2].removeprefix("Skipped: ") for where in skipped if isinstance(where, tuple))
    for reason, count in reasons.items():
        if not reason.startswith((ASSUMES_CPU, NEEDS_GPU)):
            continue
        terminalreporter.write_line(f"left out: {count} test{'s' if count > 1 else ''} that {reason}")
