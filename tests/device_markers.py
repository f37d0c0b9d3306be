"""The markers `cpu` and `gpu`: which tests are left out on this machine, and what is said of it at the end."""

from collections import Counter

import pytest

from qwen_vqa.train.model.compute_device import Gpus

ASSUMES_CPU = "assume a CPU's kernels, packed layers, threads and float32"
NEEDS_GPU = "need a GPU"
_LEFT_OUT = pytest.StashKey[Counter]()


def reason_to_skip(marks: set[str], gpus: Gpus) -> str | None:
    """Why a test with these markers cannot hold on a machine with these GPUs."""
    if "cpu" in marks and gpus.names:
        return f"{ASSUMES_CPU}, and here vLLM computes on {gpus}"
    if "gpu" in marks and not gpus.names:
        return f"{NEEDS_GPU}: {gpus.reason}"
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip them."""
    gpus, counts = Gpus.here(), Counter[str]()
    for item in items:
        reason = reason_to_skip({mark.name for mark in item.iter_markers()}, gpus)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
            counts[reason] += 1
    config.stash[_LEFT_OUT] = counts


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """A line for each reason."""
    for reason, count in config.stash.get(_LEFT_OUT, Counter()).items():
        terminalreporter.write_line(f"left out: {count} test{'s' if count > 1 else ''} that {reason}")
