"""Every view rule and connector trains with `qwen-vqa train`, and leaves a checkpoint and a connector file."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.cli import main
from qwen_vqa.train.assembly.connector_file import load_connector
from qwen_vqa.train.data.collator import ConversationCollator
from qwen_vqa.train.data.preparation import prepare_data
from qwen_vqa.train.data.source import DataSource
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from qwen_vqa.train.train import train
from qwen_vqa.train.training_config import TrainingConfig
from tests.tiny import make_checkpoint, picture
from tests.train.releases import prepare

KINDS: dict[str, dict[str, Any]] = {
    "tiles": {"vision_type": "clip", "views": {"rule": "tiles"}},
    "tiles, pixel shuffle": {
        "vision_type": "siglip",
        "views": {"rule": "tiles"},
        "connector": {"pixel_shuffle": 2, "num_layers": 1, "bias": False},
    },
    "s2": {"vision_type": "vit", "views": {"rule": "s2"}},
    "s2, joined": {"vision_type": "siglip", "views": {"rule": "s2", "pooling": "space-to-depth"}},
    "pixel shuffle": {"vision_type": "siglip", "connector": {"pixel_shuffle": 2, "num_layers": 3}},
}
SIZES = [(200, 130), (60, 60), (70, 300), (128, 64)]
STEPS = {"rank": 0, "max_steps": 3, "batch_size": 2, "accumulation": 1, "connector_learning_rate": 1e-2}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    return KINDS[request.param]


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Pictures of several sizes, a sample with two, and one of text alone."""
    images = [[index] for index in range(4)] + [[0, 2], []]
    with (tmp_path / "train.jsonl").open("w") as lines:
        for number, size in enumerate(SIZES):
            picture(number, *size).save(tmp_path / f"{number}.png")
        for number, shown in enumerate(images):
            content = [{"type": "image", "image": f"{index}.png"} for index in shown]
            asked = {"role": "user", "content": [*content, {"type": "text", "text": "What is it?"}]}
            messages = [asked, {"role": "assistant", "content": f"number {number}"}]
            print(json.dumps({"id": str(number), "messages": messages}), file=lines)
    return str(tmp_path / "train.jsonl")


def test_a_batch_has_the_loss_of_its_samples(kind: dict[str, Any], data: str, tmp_path: Path):
    """Images of different views side by side in a batch do not change each other."""
    folder = make_checkpoint(tmp_path / "base", **kind)
    model, dataset = load_reference(folder), prepare(tmp_path / "prepared", data)
    collate = ConversationCollator(load_processor(folder))
    samples = [dataset[index] for index in range(len(dataset))]
    with torch.no_grad():
        each, counts = [], []
        for sample in samples:
            batch = collate([sample])
            each.append(model(**batch).loss)
            counts.append(int((batch["labels"] != -100).sum()))
        together = model(**collate(samples)).loss
    expected = sum(loss * count for loss, count in zip(each, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(together, expected, atol=1e-4, rtol=0)


def test_a_run_trains_all_of_the_connector_and_leaves_what_is_served(kind: dict[str, Any], data: str, tmp_path: Path):
    base = make_checkpoint(tmp_path / "base", **kind)
    flags = ["--rank", "0", "--max-steps", "3", "--batch-size", "2", "--precision", "float32"]
    assert main(["train", str(base), "--data", data, "-o", str(tmp_path / "run"), *flags]) == 0
    before, after = load_reference(base), load_reference(tmp_path / "run/model")
    assert after.config.views == before.config.views == load_processor(tmp_path / "run/model").image_processor.views
    for name, weight in before.connector.state_dict().items():
        assert not torch.equal(after.connector.state_dict()[name], weight), name
    exported = load_connector(tmp_path / "run/final_connector.pth")
    assert exported.keys() == after.connector.state_dict().keys()
    assert all(torch.equal(exported[name], weight) for name, weight in after.connector.state_dict().items())


@pytest.mark.parametrize(("layers", "trained"), [(1, "layers.0."), (-1, "")])
def test_the_encoders_last_layers_are_trained_at_a_rate_of_their_own(
    layers: int, trained: str, data: str, tmp_path: Path
):
    """Stopped and resumed, it is the same run; what is exported has the trained encoder."""
    base = make_checkpoint(tmp_path / "base", **KINDS["tiles"])
    flags = ["--rank", "0", "--max-steps", "4", "--save-steps", "2", "--batch-size", "2", "--precision", "float32"]
    flags += ["--encoder-layers", str(layers), "--encoder-learning-rate", "0.01"]
    run = tmp_path / "run"
    assert main(["train", str(base), "--data", data, "-o", str(run), *flags]) == 0
    before = load_reference(base).vision_encoder.state_dict()
    after = load_reference(run / "model").vision_encoder.state_dict()
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if name.startswith(trained)}
    shutil.rmtree(run / "checkpoint-4")
    assert main(["train", str(base), "--data", data, "-o", str(run), "--resume"]) == 0
    again = load_reference(run / "model").vision_encoder.state_dict()
    assert all(torch.equal(again[name], after[name]) for name in after)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoder_layers": 3}, "encoder_layers is 3, and 1 of"),
        ({"encoder_layers": -2}, "encoder_layers is -2"),
        ({"encoder_layers": 1, "cache_features": True}, "--cache-features.*frozen"),
        ({"encoder_layers": 1, "encoder_learning_rate": 0.0}, "encoder_learning_rate"),
    ],
)
def test_an_encoder_that_cannot_be_trained_so_is_said(changes: dict[str, Any], said: str, data: str, tmp_path: Path):
    base = make_checkpoint(tmp_path / "base", **KINDS["tiles"])
    with pytest.raises(UserError, match=said):
        train(base, prepare(tmp_path / "run", data), tmp_path / "run", TrainingConfig(**STEPS, **changes))


@pytest.mark.parametrize("name", ["s2", "s2, joined", "pixel shuffle"])
def test_cached_features_are_what_the_encoder_gives(name: str, data: str, tmp_path: Path):
    base = make_checkpoint(tmp_path / "base", **KINDS[name])
    runs = []
    for cached in (False, True):
        output = tmp_path / f"cached-{cached}"
        config = TrainingConfig(**STEPS, precision="float32", cache_features=cached)
        runs.append(train(base, prepare(output, data), output, config).state.log_history)
    losses = [[entry["loss"] for entry in run if "loss" in entry] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_sample_is_as_long_as_its_own_pictures_make_it(data: str, tmp_path: Path):
    """And not as pictures that have most tiles would."""
    processor = load_processor(make_checkpoint(tmp_path / "base", **KINDS["tiles"]))
    [source] = [DataSource.parse(data)]
    collate = ConversationCollator(processor)
    whole = prepare_data([source], processor, TrainingConfig(), tmp_path / "all")
    lengths = sorted(len(collate([whole[index]])["input_ids"][0]) for index in range(len(whole)))
    config = TrainingConfig(max_length=lengths[-2], max_dropped=1.0)
    kept = prepare_data([source], processor, config, tmp_path / "some")
    assert sorted(len(collate([kept[index]])["input_ids"][0]) for index in range(len(kept))) == lengths[:-1]


def test_features_of_tiles_are_not_cached(data: str, tmp_path: Path):
    base = make_checkpoint(tmp_path / "base", **KINDS["tiles"])
    with pytest.raises(UserError, match=r"--cache-features.*'tiles'"):
        train(base, prepare(tmp_path / "run", data), tmp_path / "run", TrainingConfig(**STEPS, cache_features=True))
