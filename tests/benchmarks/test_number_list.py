"""Users of a closed loop, as they are written."""

import pytest

from qwen_vqa.benchmarks.number_list import number_list
from qwen_vqa.plugin.errors import UserError


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1,8,32", [1, 8, 32]),
        ("1,2,4..64", [1, 2, 4, 8, 16, 32, 64]),
        ("8..64", [8, 16, 32, 64]),
        ("1,4..64", [1, 4, 16, 64]),
        ("1, 3, 9..81, 100", [1, 3, 9, 27, 81, 100]),
    ],
)
def test_a_range_goes_on_by_the_last_factor(text: str, numbers: list[int]) -> None:
    assert number_list(text, "--concurrency") == numbers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "'0' is no whole number above 0"),
        ("1,,2", "'' is no whole number"),
        ("", "'' is no whole number"),
        ("2.5", "'2.5' is no whole number"),
        ("4..", "'' is no whole number"),
        ("1..4..8", "'4..8' is no whole number"),
        ("2,3..9", "from 2 to 3 there is no whole one"),
        ("4,4..8", "from 4 to 4 there is no whole one"),
        ("4..60", "4, 8, 16, 32, 64, which does not end at 60"),
        ("8..4", "does not end at 4"),
    ],
)
def test_a_range_that_leads_nowhere_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        number_list(text, "--concurrency")
