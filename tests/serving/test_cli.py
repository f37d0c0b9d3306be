"""The command line itself: versions, mistyped words, descriptions, and what the shell completes."""

import argparse
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from qwen_vqa.plugin.command.installed_command import installed_command
from qwen_vqa.serving.jobs import JOBS
from qwen_vqa.train.train_flags import build_parser
from tests.vllm_copy import in_a_copy, server

BIN = Path(sys.executable).parent


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(installed_command(*words), capture_output=True, text=True, check=False)


def test_the_version_is_the_installed_ones():
    assert run("--version").stdout == f"qwen-vqa {version('qwen-vqa')}\n"


def test_without_a_job_all_are_listed():
    for done in (run("--help"), run()):
        assert all(f"  {name} " in done.stdout for name in JOBS)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("serv my-model", "serve"),
        ("evalute --url u", "evaluate"),
        ("quantise my-model", "quantize"),
        ("--hlep", "--help"),
        ("train base --data local=x -o run --lora-rank 3", "--rank"),
        ("train base --dta local=x", "--data"),  # -o is missing, too
        ("quantize my-model --shceme=int8 -o out", "--scheme"),
        ("quantize report a b --no-sped", "--no-speed"),
        ("evaluate my-model --data x -o out --max-token=3 --basline", "--baseline"),
        ("load --concurency 3", "--concurrency"),
        ("ask --modle tiny what?", "--model"),
        ("demo-train --out x --worker-count 3", "--workers"),
    ],
)
def test_one_line_asks_what_was_meant(words: str, meant: str):
    done = run(*words.split())
    [line] = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert f"Did you mean {meant}?" in line


def test_a_word_that_is_like_none_is_not_guessed_at():
    done = run("dance")
    assert done.returncode == 2
    assert "Did you mean" not in done.stderr
    assert "serve" in done.stderr


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--prot", "--port"),
        ("--max-bodys-mb", "--max-body-mb"),
        ("--tensor-paralel-size", "--tensor-parallel-size"),
    ],
)
def test_serves_own_flags_and_vllms_are_guessed_at(flag: str, meant: str):
    done = in_a_copy(server, flag, "3")
    assert done.returncode == 2
    assert f"Did you mean {meant}?" in done.stderr.splitlines()[-1]
    assert "usage:" not in done.stderr


def test_each_of_trains_flags_is_described():
    for action in build_parser(argparse.ArgumentParser())._actions:
        described = (action.help or "").partition("(default")[0].strip()
        assert len(described.split()) > 1, action.option_strings


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("qwen-vqa ", {"serve", "train", "doctor"}),
        ("qwen-vqa eva", {"evaluate"}),
        ("qwen-vqa train base --learn", {"--learning-rate"}),
        ("qwen-vqa train base --stage ", {"align", "finetune", "joint"}),
        ("qwen-vqa quantize my-model --scheme int", {"int8", "int4", "int8-bnb"}),
        ("qwen-vqa serve my-model --max-im", {"--max-images", "--max-image-mb", "--max-image-pixels"}),
        ("qwen-vqa ask --ur", {"--url"}),
    ],
)
def test_bash_completes(line: str, found: set[str]):
    script = f"""
        PATH={BIN}:$PATH
        eval "$(register-python-argcomplete qwen-vqa)"
        COMP_LINE='{line}' COMP_POINT={len(line)} COMP_TYPE=9
        read -ra COMP_WORDS <<< "$COMP_LINE"
        _python_argcomplete qwen-vqa
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    completed = {word.strip() for word in done.stdout.splitlines()}
    assert found <= completed, done
    assert all(word.startswith(line.rpartition(" ")[2]) for word in completed)
