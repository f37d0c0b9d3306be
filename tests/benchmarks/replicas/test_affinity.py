"""What it is worth that a caller stays at one replica: the formula, and the measurement of two."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_vqa.benchmarks.replicas.affinity import ANY, STAYS, expected_hits
from tests.serving.deploy.proxies import binary
from tests.tiny import DEMO, REPOSITORY

SCRIPT = REPOSITORY / "benchmarks" / "replicas" / "affinity.py"


@pytest.mark.parametrize(("questions", "replicas"), [(1, 2), (5, 2), (5, 8), (20, 4)])
def test_the_formula_is_what_chance_gives(questions: int, replicas: int):
    chance, hits, rounds = random.Random(0), 0, 4000
    for _ in range(rounds):
        having: set[int] = set()
        for _ in range(questions):
            asked = chance.randrange(replicas)
            hits += asked in having
            having.add(asked)
    assert hits / rounds / questions == pytest.approx(expected_hits(questions, replicas, stays=False), abs=0.01)
    assert expected_hits(questions, replicas, stays=True) == (questions - 1) / questions


def test_two_replicas_are_measured(tmp_path: Path):
    binary("haproxy")
    file = tmp_path / "affinity.json"
    words = ["--users", "3", "--pictures", "4", "--questions", "3", "--json", str(file)]
    done = subprocess.run([sys.executable, str(SCRIPT), str(DEMO), *words], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    measured = json.loads(file.read_text())
    assert measured[STAYS]["queries"] == measured[ANY]["queries"] == 36
    assert measured[STAYS]["hits"] == pytest.approx(2 / 3)
    assert measured[ANY]["hits"] < measured[STAYS]["hits"]
    assert "66.7%" in done.stdout
