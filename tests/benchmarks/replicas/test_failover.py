"""Replicas behind HAProxy are killed and restarted: nothing is lost. The long form is a command (benchmarks/README)."""

import json
import subprocess
import sys
from pathlib import Path

from tests.serving.deploy.proxies import binary
from tests.tiny import DEMO, REPOSITORY

SCRIPT = REPOSITORY / "benchmarks" / "replicas" / "failover.py"


def test_nothing_is_lost(tmp_path: Path):
    binary("haproxy")
    file = tmp_path / "failover.json"
    words = ["--minutes", "0.1", "--kill-every", "1", "--failures", "3", "--users", "6", "--questions", "14"]
    command = [sys.executable, str(SCRIPT), str(DEMO), *words, "--json", str(file), "--", "--max-model-len", "512"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    result = json.loads(file.read_text())
    tally = result["tally"]
    assert tally["answered"] > 100
    assert [tally[name] for name in ("lost", "wrong", "cut")] == [0, 0, 0]
    names = [name for _, name, _ in result["happened"]]
    assert names[:3] == ["first: engine killed", "second: server killed", "first restarted (SIGTERM)"]
    for replica, starts in result["starts"].items():  # a replica starts its engine and server again by itself
        assert starts == 1 + sum(
            name in (f"{replica} restarted (SIGTERM)", f"{replica}: everything killed") for name in names
        )
    assert result["left"] == {"processes": [], "/dev/shm": []}
    assert f"{tally['answered']:,}" in done.stdout


def test_help_is_there_at_once():
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--kill-every" in done.stdout
