"""`serve` and `doctor` load the same, and say what of it cannot be loaded, or what there is nothing to run on."""

import sys
from collections.abc import Callable

import pytest

from qwen_vqa.serving.doctor import _model_runner
from qwen_vqa.serving.startup.platform_check import too_old
from tests.vllm_copy import command, in_a_copy, server


def a_name_is_gone() -> None:
    """As in a release that has moved it."""
    sys.modules["vllm.entrypoints.launchers.app"] = None  # type: ignore[assignment]


def a_flag_is_there_twice() -> None:
    from qwen_vqa.serving import vllm_server_api

    made = vllm_server_api.make_arg_parser
    vllm_server_api.make_arg_parser = lambda parser: made(parser.add_argument("--max-images") and parser)


def no_gpu() -> None:
    """As vLLM's CUDA build has it where there is no GPU."""
    import vllm.platforms
    from vllm.platforms.interface import UnspecifiedPlatform

    vllm.platforms._current_platform = UnspecifiedPlatform()


def lacking(before: Callable[[], None], job: str) -> int:
    before()
    return command("doctor") if job == "doctor" else server()


@pytest.mark.parametrize(("job", "status"), [("serve", 2), ("doctor", 1)])
@pytest.mark.parametrize(
    ("before", "said"),
    [
        (a_name_is_gone, ("vllm.entrypoints.launchers.app", "tested with vLLM 0.32 and 0.33, installed is ")),
        (a_flag_is_there_twice, ("ArgumentError", "--max-images")),
        (no_gpu, ("none is seen here", "make clean setup EXTRA=cpu")),
    ],
    ids=["name", "flag", "gpu"],
)
def test_serve_and_doctor_say_what_the_server_lacks(job: str, status: int, before: Callable, said: tuple[str, str]):
    run = in_a_copy(lacking, before, job)
    assert run.returncode == status
    printed = run.stdout if job == "doctor" else run.stderr.splitlines()[-1]
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
