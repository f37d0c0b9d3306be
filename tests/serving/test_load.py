"""The load generator against the real server: what it says of tokens and caches is what the server did."""

from pathlib import Path

import pytest

from qwen_vqa.benchmarks.load import read_result
from qwen_vqa.benchmarks.load_report.load_table import remarks
from qwen_vqa.serving.cli import main as qwen_vqa
from tests.server import Server


@pytest.fixture(scope="module")
def result(tiny_server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Two users, cold and warm, with an adapter and conversations of three turns mixed in."""
    file: Path = tmp_path_factory.mktemp("load") / "out.json"
    arguments = ["--url", tiny_server.url, "--concurrency", "2", "--requests", "16", "--output-tokens", "8", "--warm"]
    arguments += ["--multi-turn", "0.5", "--adapters", "tiny-lora=0.3", "--seed", "5", "--json", str(file)]
    assert qwen_vqa(["load", *arguments, "--warm-up", "2", "--image-size", "90x60"]) == 0
    return read_result(file)


def test_every_answer_has_the_asked_length_and_its_image_was_seen(result: dict) -> None:
    for cell in result["cells"]:
        assert cell["summary"]["completed"] == 16
        assert {row["output_tokens"] for row in cell["records"]} == {8}
        assert all(row["image_tokens"] > 0 for row in cell["records"] if row["images"])


def test_the_servers_own_counts_agree_with_the_clients(result: dict) -> None:
    for cell in result["cells"]:
        assert cell["server"]["generation_tokens"] == cell["summary"]["output_tokens"]
        assert cell["server"]["prompt_tokens"] == cell["summary"]["prompt_tokens"]


def test_the_queue_before_the_engine_is_reported(result: dict) -> None:
    for cell in result["cells"]:
        assert 0 <= cell["server"]["fair_queue_seconds"] <= cell["summary"]["ttft"]["mean"] / 1000
        assert any(remark.startswith("queue before the engine: ") for remark in remarks(cell))


def test_a_warm_cell_finds_its_images_in_the_cache_and_a_cold_one_does_not(result: dict) -> None:
    cold, warm = (cell["server"]["mm_cache_hit_rate"] for cell in result["cells"])
    assert warm == pytest.approx(1.0)
    assert cold < 0.7  # later turns of a conversation bring its image again
    assert cold == pytest.approx(result["cells"][0]["pictures_known"])


def test_a_cold_cell_that_was_asked_before_is_not_called_cold(
    tiny_server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--url", tiny_server.url, "--concurrency", "2", "--requests", "4", "--output-tokens", "4"]
    arguments += ["--seed", "77", "--warm-up", "0", "--image-size", "90x60"]
    for known in (False, True):
        assert qwen_vqa(["load", *arguments]) == 0
        assert ("caches were not cold: 100% of the pictures were known" in capsys.readouterr().out) is known


def test_the_adapter_is_asked_too(result: dict) -> None:
    assert {row["model"] for row in result["cells"][0]["records"]} >= {"tiny-lora"}
