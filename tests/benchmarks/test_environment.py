"""A result says how it was made, and no secret."""

import pytest

from qwen_vqa.benchmarks.environment import command_line


@pytest.mark.parametrize("flags", [["--api-key", "hunter2"], ["--api-key=hunter2"], ["--api-k", "hunter2"]])
def test_a_key_is_left_out_however_its_flag_is_written(flags: list[str]) -> None:
    shown = command_line(["load.py", *flags, "--seed", "3"], "hunter2")
    assert "hunter2" not in shown
    assert shown.startswith("load.py --api-k") and shown.endswith("... --seed 3")


def test_without_a_key_everything_stands_as_it_was_typed() -> None:
    assert command_line(["load.py", "--model", "a b"]) == "load.py --model 'a b'"
    assert command_line(["load.py", "--api-key", "x"], None) == "load.py --api-key ..."
