"""What a user is told to type."""

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

from qwen_vqa.plugin.command.installed_command import typed_command

SCRIPTS = Path(sysconfig.get_path("scripts"))


def test_the_name_alone_where_the_shell_finds_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", f"{SCRIPTS}{os.pathsep}/usr/bin:/bin")
    assert typed_command() == "qwen-vqa"


@pytest.mark.parametrize("place", [SCRIPTS.parents[1], Path("/")], ids=["in the checkout", "elsewhere"])
def test_a_path_that_works_where_it_does_not(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(place)
    command = typed_command()
    assert command != "qwen-vqa" and (place == Path("/") or not command.startswith("/"))
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("qwen-vqa")


def test_another_environments_command_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    other = tmp_path / "qwen-vqa"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin:/bin")
    assert Path(typed_command()).absolute() == SCRIPTS / "qwen-vqa"
