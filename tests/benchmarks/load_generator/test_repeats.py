"""Caches that are not cold are said, and why."""

import pytest

from qwen_vqa.benchmarks.load_generator.arrivals import Arrivals
from qwen_vqa.benchmarks.load_generator.image_repeats import repeat_notes, warm_remark
from qwen_vqa.benchmarks.load_generator.measurement_points import Plan
from qwen_vqa.benchmarks.load_generator.workload import WorkloadQuestion, WorkloadSpec

CELLS = (Arrivals("closed", concurrency=1), Arrivals("closed", concurrency=2))


def notes(files: int = 0, questions: int = 0, requests: int = 4) -> list[str]:
    """Of a run of two cells."""
    spec = WorkloadSpec(
        (("m", 1.0),),
        files=tuple(f"{number}.png" for number in range(files)),
        questions=tuple(WorkloadQuestion("What?", f"{number}.jpg") for number in range(questions)),
    )
    return repeat_notes(Plan(spec, CELLS, requests, seed=1))


def test_a_folder_and_a_question_file_are_counted_over_all_cells() -> None:
    assert notes() == notes(files=8) == notes(questions=8) == []
    assert "the folder has 7 images for the 8 times" in notes(files=7)[0]
    assert "the question file has 3 images for the 8 times" in notes(questions=3)[0]


@pytest.mark.parametrize(
    ("cache", "rate", "explained", "said"),
    [
        ("cold", 0.5, 0.0, True),
        ("cold", 0.5, 0.5, False),
        ("cold", 0.9, 0.5, True),
        ("cold", None, None, False),
        ("warm", 1.0, 0.0, False),
    ],
)
def test_a_cold_cell_that_was_not_is_said(cache: str, rate: float | None, explained: float | None, said: bool) -> None:
    cell = {"cache": cache, "server": {"mm_cache_hit_rate": rate}, "pictures_known": explained}
    assert bool(warm_remark(cell)) is said
    if said:
        assert f"caches were not cold: {rate:.0%} of the pictures were known" in str(warm_remark(cell))


def test_a_server_without_metrics_has_no_remark() -> None:
    assert warm_remark({"cache": "cold", "server": None, "pictures_known": 0.0}) is None
