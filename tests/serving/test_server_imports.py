"""`serve` and `doctor` load the same, and say what of it cannot be loaded, or what there is nothing to run on."""

import subprocess
import sys

import pytest

from qwen_vqa.serving.doctor import _model_runner
from qwen_vqa.serving.startup.platform_check import too_old

SERVE = "import socket; from qwen_vqa.serving.serve import serve; serve([], socket.socket(), None)"
DOCTOR = "from qwen_vqa.serving.cli import main; sys.exit(main(['doctor']))"
# As in a release that has moved it, and as vLLM's CUDA build has it where there is no GPU.
A_NAME_IS_GONE = "import sys; sys.modules['vllm.entrypoints.launchers.app'] = None; "
A_FLAG_IS_THERE_TWICE = (
    "import sys; from qwen_vqa.serving import vllm_server_api; made = vllm_server_api.make_arg_parser; "
    "vllm_server_api.make_arg_parser = lambda parser: made(parser.add_argument('--max-images') and parser); "
)
NO_GPU = (
    "import sys, vllm.platforms; from vllm.platforms.interface import UnspecifiedPlatform; "
    "vllm.platforms._current_platform = UnspecifiedPlatform(); "
)


@pytest.mark.parametrize("command", [SERVE, DOCTOR], ids=["serve", "doctor"])
@pytest.mark.parametrize(
    ("before", "said"),
    [
        (A_NAME_IS_GONE, ("vllm.entrypoints.launchers.app", "tested with vLLM 0.32 and 0.33, installed is ")),
        (A_FLAG_IS_THERE_TWICE, ("ArgumentError", "--max-images")),
        (NO_GPU, ("none is seen here", "make clean setup EXTRA=cpu")),
    ],
    ids=["name", "flag", "gpu"],
)
def test_serve_and_doctor_say_what_the_server_lacks(command: str, before: str, said: tuple[str, str]):
    run = subprocess.run(
        [sys.executable, "-c", before + command], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 1
    printed = run.stdout if command == DOCTOR else run.stderr.splitlines()[-1]
    assert all(part in printed for part in said), run.stderr
    assert "everything is in place" not in printed


@pytest.mark.parametrize(
    ("driver", "built_for", "expected"),
    [("12.8", "13.0", True), ("13.0", "13.2", False), ("13.1", "13.0", False), ("9.2", "13.0", True)],
)
def test_a_driver_of_an_older_major_version_is_too_old(driver: str, built_for: str, expected: bool):
    assert too_old(driver, built_for) is expected


def test_without_a_driver_or_a_cuda_build_no_driver_is_too_old():
    assert not too_old(None, "13.0")
    assert not too_old("12.8", None)


def test_the_doctor_names_the_way_back_to_the_other_model_runner():
    assert "VLLM_USE_V2_MODEL_RUNNER=0" in _model_runner(None)
    assert [_model_runner(v2)[:2] for v2 in (None, True, False)] == ["V2", "V2", "V1"]
