"""The example run's data sets: in their releases' formats, and the same every time."""

import json
from pathlib import Path

from qwen_vqa.train.data.mix_table import data_table
from qwen_vqa.train.drawn.example_data import write_data_sets
from tests.train.releases import prepare


def test_the_rendered_data_sets_are_read_by_the_adapters_without_loss(tmp_path: Path):
    for split in ("train", "val"):
        dataset = prepare(tmp_path / "run" / split, *write_data_sets(tmp_path, split, 6))
        assert len(dataset) == 18, data_table(dataset.mix.tallies)
        answers = {dataset[index]["data_set"]: len(dataset[index]["answers"]) for index in range(18)}
        assert answers == {"llava": 0, "textvqa": 10, "vizwiz": 10}


def test_training_and_held_out_pictures_differ_and_stay_the_same(tmp_path: Path):
    for out in ("one", "two"):
        for split in ("train", "val"):
            write_data_sets(tmp_path / out, split, 3)
    files = [sorted(path for path in (tmp_path / out).rglob("*") if path.is_file()) for out in ("one", "two")]
    assert all(one.read_bytes() == two.read_bytes() for one, two in zip(*files, strict=True) if one.suffix == ".jpg")
    train, val = (json.loads((tmp_path / f"one/Annotations/{split}.json").read_text()) for split in ("train", "val"))
    assert [entry["question"] for entry in train] != [entry["question"] for entry in val]
