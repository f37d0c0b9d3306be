"""One candidate's measurement: its cells by the load generator, kept in a file of its own."""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen_vqa.benchmarks.candidates import Candidate
from qwen_vqa.benchmarks.environment import environment
from qwen_vqa.benchmarks.load import read_result
from qwen_vqa.benchmarks.servers import running
from qwen_vqa.plugin.errors import UserError

SECOND_QUESTION = "second question"


@dataclass(frozen=True)
class Setting:
    """What is asked: `cells` are (users, requests); `words` stand for the image where text alone is asked."""

    cells: tuple[tuple[int, int], ...]
    output_tokens: int
    seed: int
    warm_up: int
    words: int

    def as_json(self) -> dict[str, Any]:
        """As a file holds it."""
        return json.loads(json.dumps(asdict(self)))


def measure(candidate: Candidate, setting: Setting, file: Path) -> dict[str, Any]:
    """Start it, ask it, write the file, return what it holds.

    Raises:
        UserError: the server or what it needs is not to be had, or the load generator could not ask it.
    """
    launch = candidate.make()
    cells = []
    details = file.with_suffix("")
    details.mkdir(exist_ok=True)
    started = time.monotonic()
    with running(launch, details / "server.log") as url:
        ready = time.monotonic() - started
        base = ["--url", url, "--output-tokens", str(setting.output_tokens), "--warm-up", str(setting.warm_up)]
        base += ["--seed", str(setting.seed), "--extra-body", launch.extra_body]
        if candidate.text_only:
            base += ["--images-per-request", "0", "--text-words", str(setting.words)]
        for users, requests in setting.cells:
            arguments = [*base, "--concurrency", str(users), "--requests", str(requests)]
            cells += _load(arguments, details / f"{users}.json")
        if candidate.turns:
            least = setting.cells[0][1]
            arguments = [*base, "--concurrency", "1", "--requests", str(2 * least), "--multi-turn", "1", "--turns", "2"]
            found = _load(arguments, details / "turns.json")
            cells += [{**cell, "label": SECOND_QUESTION} for cell in found]
    result = {
        "key": candidate.key,
        "name": candidate.name,
        "scheme": candidate.scheme,
        "text_only": candidate.text_only,
        "command": [*launch.command],
        "variables": launch.variables,
        "setting": setting.as_json(),
        "environment": environment(sys.argv),
        "ready_seconds": ready,
        "cells": cells,
    }
    file.write_text(json.dumps(result, indent=1) + "\n")
    return result


def kept(file: Path, setting: Setting) -> dict[str, Any] | None:
    """What an earlier run wrote, if it asked the same."""
    if not file.exists():
        return None
    result = json.loads(file.read_text())
    return result if result["setting"] == setting.as_json() else None


def _load(arguments: list[str], file: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "qwen_vqa.benchmarks.load", *arguments, "--json", str(file)]
    if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode not in (0, 1):
        raise UserError(f"the load generator could not ask it: {' '.join(command[3:])}")
    return [_short(cell) for cell in read_result(file)["cells"]]


def _short(cell: dict[str, Any]) -> dict[str, Any]:
    """Without its single requests."""
    return {
        "label": cell["label"],
        "users": cell["arrivals"]["concurrency"],
        "client_cpu_share": round(cell["client_cpu_share"], 3),
        "server": cell["server"],
        "summary": _rounded(cell["summary"]),
    }


POINTS_LEFT_OUT = ("p90", "p99", "n")


def _rounded(value: Any) -> Any:
    """For a file that is committed: four digits, and of each distribution mean, p50, p95 and the largest."""
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items() if name not in POINTS_LEFT_OUT}
    return float(f"{value:.4g}") if isinstance(value, float) else value
