"""How the scripts of benchmarks/ end."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_vqa.benchmarks.script import run
from qwen_vqa.plugin.errors import UserError
from tests.tiny import REPOSITORY


def test_what_the_user_did_wrong_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong() -> int:
        raise UserError("--turns -1: it must be 0 or more.")

    with pytest.raises(SystemExit) as ended:
        run("settings", wrong)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "settings: --turns -1: it must be 0 or more.\n"


@pytest.mark.parametrize("status", [0, 1, None])
def test_else_the_status_is_mains(status: int | None) -> None:
    with pytest.raises(SystemExit) as ended:
        run("suite", lambda: status)
    assert ended.value.code == status


def test_ctrl_c_is_no_traceback_and_stops_what_was_started(tiny_checkpoint: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "comparison" / "settings.py"), str(tiny_checkpoint)]
    settings = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert settings.stderr is not None
    assert any("checking the checkpoint" in line for line in settings.stderr)  # its server has begun
    settings.send_signal(signal.SIGINT)
    # The server writes to the same pipe: it ends once both have.
    said = settings.communicate(timeout=60)[1]
    assert settings.returncode == 130
    assert said.endswith("settings: interrupted\n") and "Traceback" not in said
