"""Two processes share the work of one, and stop together."""

import json
from pathlib import Path

import pytest

from qwen_vqa.train import ranks
from qwen_vqa.train.data import screening
from qwen_vqa.train.data.row import Picture, Row
from qwen_vqa.train.data.screening import Screen
from qwen_vqa.train.training_arguments import MOST_WORKERS, data_workers
from tests.train import rank_steps, releases
from tests.train.test_training_safety import TORCHRUN, launch


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """With a picture that cannot be opened, which is dropped, and a conversation that is cut."""
    folder = tmp_path_factory.mktemp("data")
    return [releases.write_llava(folder), releases.write_textvqa(folder), releases.write_vizwiz(folder)]


@pytest.fixture(scope="module")
def by_rank(tiny_checkpoint: Path, data: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    output = tmp_path_factory.mktemp("two")
    done = launch(TORCHRUN, "--master-port", "-m", "tests.train.rank_steps", str(tiny_checkpoint), str(output), *data)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((output / f"rank-{number}.json").read_text()) for number in range(2)]


@pytest.fixture(scope="module")
def alone(tiny_checkpoint: Path, data: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict:
    return rank_steps.steps(tiny_checkpoint, data, tmp_path_factory.mktemp("one"))


def test_two_processes_draw_the_samples_of_one_and_each_opens_its_share(by_rank: list[dict], alone: dict):
    for one in by_rank:
        assert (one["samples"], one["messages"]) == (alone["samples"], alone["messages"])
    shares = [one["checked"] for one in by_rank]
    assert all(shares) and all(len(share) < len(alone["checked"]) for share in shares)
    assert set(shares[0]) | set(shares[1]) == set(alone["checked"])


def test_two_processes_keep_the_features_of_one(by_rank: list[dict], alone: dict):
    assert by_rank[0]["features"] == by_rank[1]["features"] == alone["features"]
    assert set(alone["features"]) != {"0"}


def test_a_loss_that_is_no_number_in_one_process_stops_both_with_the_same_words(by_rank: list[dict], alone: dict):
    assert "error" not in alone
    first, second = (one["error"] for one in by_rank)
    assert first == second
    assert "the loss is nan at step 3, on the samples " in first and "checkpoint-2" in first
    assert max(one["seconds"] for one in by_rank) < 120


def test_a_picture_that_is_asked_about_often_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []
    plain = screening.open_image
    monkeypatch.setattr(screening, "open_image", lambda source: opened.append(str(source)) or plain(source))
    releases.save_pictures(tmp_path, "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    screen = Screen(lambda messages, _: 10, 100)
    content = [{"type": "image"}, {"type": "text", "text": "what?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "that"}]
    verdicts = [
        screen(Row(f"{name}{number}", messages, (Picture(str(tmp_path / name)),)))
        for number in range(3)
        for name in ("a.png", "b.png")
    ]
    assert opened == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert [verdict.fault for verdict in verdicts] == ["", screening.BROKEN_IMAGE] * 3


def test_work_is_shared_in_order_in_one_process():
    assert ranks.shared_work([1, 2, 3], lambda some: [number * 10 for number in some]) == [10, 20, 30]


@pytest.mark.parametrize(
    ("asked", "cores", "on_gpu", "expected"),
    [(-1, 4, True, 3), (-1, 64, True, MOST_WORKERS), (-1, 1, True, 0), (-1, 64, False, 0), (2, 64, False, 2)],
)
def test_workers_come_from_the_cores(asked: int, cores: int, on_gpu: bool, expected: int):
    assert data_workers(asked, cores, on_gpu) == expected


def test_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert ranks.cores() == 2
