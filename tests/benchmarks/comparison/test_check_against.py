"""What the other load generators write is read as what it is, and set beside ours."""

import pytest

from qwen_vqa.benchmarks.comparison.check_against import FIGURES, compared, medians, ratios
from qwen_vqa.benchmarks.comparison.load_tools import read_guidellms, read_vllms, tool_versions
from qwen_vqa.plugin.errors import UserError

# As vllm.benchmarks.serve writes it (0.32.0), without the single requests.
VLLM = {
    "backend": "openai-chat",
    "num_prompts": 4,
    "max_concurrency": 2,
    "duration": 2.0,
    "completed": 4,
    "failed": 0,
    "total_output_tokens": 128,
    "request_throughput": 2.0,
    "output_throughput": 64.0,
    "total_token_throughput": 500.0,
    "mean_ttft_ms": 120.0,
    "median_ttft_ms": 110.0,
    "p99_ttft_ms": 190.0,
    "mean_tpot_ms": 25.0,
    "median_tpot_ms": 24.0,
    "mean_itl_ms": 26.0,
}


def distribution(mean: float, median: float) -> dict:
    """guidellm's StatusDistributionSummary: what failed must not be taken for what succeeded."""
    other = {"mean": -1.0, "median": -1.0, "count": 0}
    good = {"mean": mean, "median": median, "count": 4}
    return {"successful": good, "errored": other, "incomplete": other, "total": other}


# As guidellm.benchmark.schemas writes it (0.8.1), without what is not read.
GUIDELLM = {
    "metadata": {"version": 1},
    "benchmarks": [
        {
            "metrics": {
                "request_totals": {"successful": 4, "errored": 0, "incomplete": 0, "total": 4},
                "requests_per_second": distribution(2.1, 2.0),
                "output_tokens_per_second": distribution(66.0, 65.0),
                "time_to_first_token_ms": distribution(121.0, 111.0),
                "time_per_output_token_ms": distribution(29.0, 28.0),
                "inter_token_latency_ms": distribution(25.5, 24.5),
                "root_dispatch_delay": None,
            }
        }
    ],
}


def test_vllms_file_is_read() -> None:
    assert list(read_vllms(VLLM, 4).values()) == [2.0, 64.0, 110.0, 120.0, 25.0]
    assert tuple(read_vllms(VLLM, 4)) == FIGURES


def test_guidellms_report_is_read() -> None:
    assert list(read_guidellms(GUIDELLM, 4).values()) == [2.1, 66.0, 111.0, 121.0, 25.5]
    assert tuple(read_guidellms(GUIDELLM, 4)) == FIGURES


@pytest.mark.parametrize(("read", "file"), [(read_vllms, VLLM), (read_guidellms, GUIDELLM)])
def test_unanswered_requests_are_an_error(read, file: dict) -> None:
    with pytest.raises(UserError, match=r"only 4 of .* 5 requests"):
        read(file, 5)


def run(value: float, **more: float) -> dict[str, float]:
    return dict.fromkeys(FIGURES, value) | more


def test_medians_are_compared() -> None:
    runs = {"ours": [run(1.0), run(10.0), run(10.4)], "vllm": [run(10.0)] * 3, "guidellm": [run(8.0)] * 3}
    assert medians(runs)["ours"] == run(10.0)
    assert ratios(medians(runs)) == {"vllm": run(1.0), "guidellm": run(1.25)}
    rows, apart = compared(runs)
    assert rows[0] == ("median", "ours", "vllm", "ratio", "guidellm", "ratio")
    assert rows[1] == ("requests_per_second", "10.000", "10.000", "1.000", "8.000", "1.250")
    assert apart


def test_one_figure_beyond_the_bound_is_enough() -> None:
    near = {"ours": [run(10.0)], "vllm": [run(10.4)]}
    assert compared(near)[1] is False
    assert compared({**near, "vllm": [run(10.4, tpot_mean_ms=9.5)]})[1] is True
    assert compared({**near, "vllm": [run(10.4, ttft_p50_ms=10.6)]})[1] is True


def test_nothing_is_near_zero() -> None:
    rows, apart = compared({"ours": [run(10.0)], "vllm": [run(10.0, tpot_mean_ms=0.0)]})
    assert (rows[-1][-1], apart) == ("-", True)


def test_the_version_of_vllms_benchmark_is_known(tmp_path) -> None:
    assert tool_versions(("ours", "vllm"), tmp_path)["vllm bench serve"][0].isdigit()
    assert tool_versions(("ours",), tmp_path) == {}
