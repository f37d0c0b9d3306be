"""One candidate's measurement: its cells by the load generator, kept in a file of its own."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen_vqa.benchmarks.comparison.candidates import Candidate
from qwen_vqa.benchmarks.comparison.second_question import second_questions
from qwen_vqa.benchmarks.comparison.servers import running
from qwen_vqa.benchmarks.environment import environment
from qwen_vqa.benchmarks.load import read_result
from qwen_vqa.plugin.errors import UserError

SECOND_PICTURES = 12
# More than the load generator takes within one call.
SEEDS_APART = 100_000
POINTS_LEFT_OUT = ("p90", "p99", "n")


@dataclass(frozen=True)
class MeasurementSetting:
    """What is asked: `cells` are (users, requests); `words` stand for the image where text alone is asked."""

    cells: tuple[tuple[int, int], ...]
    output_tokens: int
    seed: int
    warm_up: int
    words: int

    def as_json(self) -> dict[str, Any]:
        """As a file holds it."""
        return json.loads(json.dumps(asdict(self)))


def measure(candidate: Candidate, setting: MeasurementSetting, file: Path) -> dict[str, Any]:
    """Start it, ask it, write the file, return what it holds.

    Raises:
        UserError: the server or what it needs is not to be had, or the load generator could not ask it.
    """
    launch = candidate.make()
    details = file.with_suffix("")
    details.mkdir(exist_ok=True)
    result: dict[str, Any] = {
        "key": candidate.key,
        "name": candidate.name,
        "scheme": candidate.scheme,
        "text_only": candidate.text_only,
        "command": ["python" if word == sys.executable else word for word in launch.command],
        "variables": launch.variables,
        "setting": setting.as_json(),
        "environment": environment(sys.argv),
        "finished": False,
        "cells": [],
    }
    started = time.monotonic()
    with running(launch, details / "server.log") as url:
        result["ready_seconds"] = round(time.monotonic() - started, 1)
        for number, (label, arguments) in enumerate(_cells(candidate, setting)):
            # Its own seed for each: with one for all, a cell would find the pictures of the cell before in the caches.
            seed = setting.seed + SEEDS_APART * number
            base = ["--url", url, "--seed", str(seed), "--extra-body", launch.extra_body]
            found = _load([*base, *arguments], details / f"{label.replace(' ', '-')}.json")
            _check_cold(candidate.key, label, found)
            result["cells"] += [{**cell, "label": label} for cell in found]
            file.write_text(json.dumps(result, indent=1) + "\n")  # what was measured stays if the rest is cut off
        if candidate.turns:
            seed = setting.seed + SEEDS_APART * len(setting.cells)
            result["second_question"] = second_questions(url, SECOND_PICTURES, seed)
    result["finished"] = True
    file.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _cells(candidate: Candidate, setting: MeasurementSetting) -> Iterator[tuple[str, list[str]]]:
    """Labels with the load generator's flags."""
    base = ["--output-tokens", str(setting.output_tokens), "--warm-up", str(setting.warm_up)]
    if candidate.text_only:
        base += ["--images-per-request", "0", "--text-words", str(setting.words)]
    for users, requests in setting.cells:
        label = f"{users} user{'s' if users > 1 else ''}"
        yield label, [*base, "--concurrency", str(users), "--requests", str(requests)]


def _check_cold(key: str, label: str, cells: list[dict[str, Any]]) -> None:
    """Raises UserError where the server knew pictures before: its speed could not be held against another's."""
    for cell in cells:
        if known := (cell["server"] or {}).get("mm_cache_hit_rate"):
            raise UserError(
                f"{key}, {label}: {known:.0%} of the pictures were in its cache; it was not asked new ones."
            )


def kept(file: Path, setting: MeasurementSetting) -> dict[str, Any] | None:
    """What an earlier run wrote, if it asked the same and came to its end, each cell with a seed of its own."""
    if not file.exists():
        return None
    result = json.loads(file.read_text())
    same = result.get("finished") and result["setting"] == setting.as_json()
    return result if same and all("seed" in cell for cell in result["cells"]) else None


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
        "seed": cell["seed"],
        "client_cpu_share": round(cell["client_cpu_share"], 3),
        "server": cell["server"],
        "summary": _rounded(cell["summary"]),
    }


def _rounded(value: Any) -> Any:
    """For a file that is committed: four digits, and of each distribution mean, p50, p95 and the largest."""
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items() if name not in POINTS_LEFT_OUT}
    return float(f"{value:.4g}") if isinstance(value, float) else value
