"""What of several data sets is trained on: shares, order, and what had to be dropped."""

import json
from collections import Counter
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.data.collator import ConversationCollator
from qwen_vqa.train.data.dataset import ConversationDataset
from qwen_vqa.train.data.mix_table import data_table
from qwen_vqa.train.data.screening import fitting_messages
from tests.tiny import tiny_processor
from tests.train import releases


def ids(dataset: ConversationDataset) -> list[str]:
    return [dataset[index]["sample_id"] for index in range(len(dataset))]


@pytest.fixture
def three(tmp_path: Path) -> list[str]:
    """The three releases, four, three and three samples."""
    return [releases.write_llava(tmp_path), releases.write_textvqa(tmp_path), releases.write_vizwiz(tmp_path)]


def test_without_weights_every_sample_is_seen_once(tmp_path: Path, three: list[str]):
    samples = ids(releases.prepare(tmp_path / "run", *three))
    assert len(samples) == len(set(samples)) == 10
    assert Counter(sample.split("/")[0] for sample in samples) == {"llava": 4, "textvqa": 3, "vizwiz": 3}


def test_weights_are_shares_and_a_small_data_set_is_seen_again(tmp_path: Path, three: list[str]):
    weighted = [f"{text},weight={weight}" for text, weight in zip(three, (1, 7, 2), strict=True)]
    samples = ids(releases.prepare(tmp_path / "run", *weighted))
    assert Counter(sample.split("/")[0] for sample in samples) == {"llava": 1, "textvqa": 7, "vizwiz": 2}
    assert set(Counter(sample for sample in samples if "textvqa" in sample).values()) == {2, 3}


def test_max_samples_and_samples_bound_what_is_drawn(tmp_path: Path, three: list[str]):
    assert len(releases.prepare(tmp_path / "few", *three, max_samples=4)) == 4
    capped = ids(releases.prepare(tmp_path / "capped", f"{three[0]},samples=1", *three[1:]))
    assert Counter(sample.split("/")[0] for sample in capped) == {"llava": 1, "textvqa": 3, "vizwiz": 3}


def test_a_weight_for_some_data_sets_only_is_refused(tmp_path: Path, three: list[str]):
    with pytest.raises(UserError, match=r"--data textvqa=\.\.\.: it has no weight=, but others have"):
        releases.prepare(tmp_path / "run", f"{three[0]},weight=1", *three[1:])


def test_the_same_seed_draws_the_same_samples_in_the_same_order(tmp_path: Path, three: list[str]):
    drawn = [ids(releases.prepare(tmp_path / str(run), *three, max_samples=6, seed=run // 2)) for run in range(4)]
    assert drawn[0] == drawn[1] and drawn[2] == drawn[3]
    assert drawn[0] != drawn[2]


def test_workers_make_the_same_batches_as_one_process(tmp_path: Path, three: list[str]):
    dataset = releases.prepare(tmp_path / "run", *three)
    collate = ConversationCollator(tiny_processor())
    alone, shared = (
        list(DataLoader(dataset, batch_size=3, collate_fn=collate, num_workers=workers)) for workers in (0, 2)
    )
    assert all((one["input_ids"] == other["input_ids"]).all() for one, other in zip(alone, shared, strict=True))
    assert all((one["pixel_values"] == other["pixel_values"]).all() for one, other in zip(alone, shared, strict=True))


def test_a_resumed_run_has_its_samples_without_looking_at_pictures_again(tmp_path: Path, three: list[str]):
    first = releases.prepare(tmp_path / "run", *three)
    (tmp_path / "train2017" / "000000000000.jpg").write_bytes(b"broken since")
    again = releases.prepare(tmp_path / "run", *three)
    assert [first.row(index) for index in range(10)] == [again.row(index) for index in range(10)]


def test_a_run_is_not_resumed_on_other_data(tmp_path: Path, three: list[str]):
    releases.prepare(tmp_path / "run", *three)
    with pytest.raises(UserError, match=r"began with other data: seed changed"):
        releases.prepare(tmp_path / "run", *three, seed=1)
    with pytest.raises(UserError, match=r"began with other data: the data sets changed"):
        releases.prepare(tmp_path / "run", *three[:2])


def test_a_sample_carries_what_evaluation_needs(tmp_path: Path, three: list[str]):
    dataset = releases.prepare(tmp_path / "run", three[2])
    sample = next(dataset[index] for index in range(3) if dataset[index]["question_id"].endswith("0.jpg"))
    assert sample["sample_id"] == "vizwiz/VizWiz_train_00000000.jpg"
    assert (sample["data_set"], sample["answer_type"], sample["answers"][9]) == ("vizwiz", "other", "basil")
    assert sample["images"][0].mode == "RGB"


def test_what_cannot_be_used_is_dropped_and_named_by_reason(tmp_path: Path):
    names = [f"{number:012}.jpg" for number in range(3)]
    talk = ("What is it?", "It is a bus.")
    source = releases.write_llava(
        tmp_path,
        [
            releases.conversation(10, names[0], *talk),
            releases.conversation(11, names[1], *talk),
            releases.conversation(12, "000000000077.jpg", *talk),
            releases.conversation(13, names[2], "What is it?", ""),
            releases.conversation(14, names[2], "Why? " * 300, "So."),
            releases.conversation(15, names[2], "What is it?", "A bus.", "Why? " * 300, "So."),
            releases.conversation(16, None, "<image>\nWhat is it?", "A bus."),
        ],
    )
    broken = tmp_path / "train2017" / names[1]
    broken.write_bytes(broken.read_bytes()[:200])
    dataset = releases.prepare(tmp_path / "run", source, max_length=200, max_dropped=1.0)
    assert sorted(ids(dataset)) == ["llava/000000000010", "llava/000000000015"]
    table = data_table(dataset.mix.tallies)
    assert table.splitlines()[1].split() == ["llava", "7", "7", "5", "1", "2", "2", "100%"]
    for line in (
        r"dropped 1: missing file: " + str(tmp_path / "train2017/000000000077.jpg"),
        r"dropped 1: broken image: " + str(broken) + ": broken or truncated",
        "dropped 1: empty answer: 000000000013",
        "dropped 1: too long: 000000000014",
        "dropped 1: 1 <image> for 0 images: 000000000016",
    ):
        assert line in table
    cut = next(dataset[index] for index in range(2) if dataset[index]["sample_id"].endswith("15"))
    assert [message["role"] for message in cut["messages"]] == ["user", "assistant"]


def test_more_dropped_than_expected_stops_the_run_before_it_starts(tmp_path: Path):
    source = releases.write_llava(tmp_path)
    (tmp_path / "train2017" / "000000000001.jpg").unlink()
    with pytest.raises(
        UserError,
        match=r"data set llava: 1 of 4 samples cannot be used: 1 missing file .*0001\.jpg.*--max-dropped 0\.26",
    ):
        releases.prepare(tmp_path / "run", source)
    assert len(releases.prepare(tmp_path / "run", source, max_dropped=0.26)) == 3


def test_a_folder_of_other_pictures_is_an_error(tmp_path: Path):
    source = releases.write_textvqa(tmp_path)
    releases.save_pictures(tmp_path / "other", "a.jpg")
    with pytest.raises(UserError, match=r"data set textvqa: none of 3 samples can be used: 3 missing file"):
        releases.prepare(tmp_path / "run", source.replace("train_images", "other"), max_dropped=1.0)


def test_a_long_conversation_ends_at_an_answer():
    messages = [{"role": role, "content": "x" * 10} for role in ("user", "assistant") * 3]
    lengths = {length: fitting_messages(messages, lambda part: 10 * len(part), length) for length in (5, 20, 39, 60)}
    assert lengths == {5: 0, 20: 2, 39: 2, 60: 6}


def test_images_of_rounds_that_were_cut_off_are_not_opened(tmp_path: Path):
    releases.save_pictures(tmp_path, "a.png", "b.png")
    rounds = [
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A."},
        {"role": "user", "content": [{"type": "image", "image": "b.png"}, {"type": "text", "text": "What? " * 200}]},
        {"role": "assistant", "content": "B."},
    ]
    (tmp_path / "train.jsonl").write_text(json.dumps({"id": 1, "messages": rounds}))
    sample = releases.prepare(tmp_path / "run", tmp_path / "train.jsonl", max_length=200)[0]
    assert len(sample["images"]) == 1
    batch = ConversationCollator(tiny_processor(), 200)([sample])
    assert batch["pixel_values"].shape[0] == 1
    assert (batch["input_ids"] == tiny_processor().image_token_id).sum() == 4 + 1
