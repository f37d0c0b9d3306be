"""The comparison command: equal compute, runs that are done once, and what is said of their differences."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from qwen_vqa.train.data.collator import ConversationCollator
from qwen_vqa.train.demo.comparison.compare_runs import main
from qwen_vqa.train.demo.comparison.comparison_report import comparison_figure, table
from qwen_vqa.train.demo.comparison.comparison_runs import BOTH, FIRST, TrainingPhase, methods, with_equal_compute
from qwen_vqa.train.demo.comparison.training_flops import step_flops
from qwen_vqa.train.model.reference_checkpoint import load_processor
from qwen_vqa.train.training_config import TrainingConfig
from tests.tiny import REPOSITORY, picture, user


def test_a_lora_costs_six_operations_a_weight_and_token(tiny_checkpoint: Path):
    answer = {"role": "assistant", "content": "red"}
    samples = [{"messages": [user(image, "what?"), answer], "images": [image]} for image in map(picture, range(2))]
    alone, with_lora = (
        step_flops(tiny_checkpoint, samples, TrainingConfig(rank=rank, alpha=8, dropout=0)) for rank in (0, 4)
    )
    tokens = ConversationCollator(load_processor(tiny_checkpoint))(samples)["input_ids"].numel()
    weights = 2 * 4 * 2 * (128 + 128 + 128 + 64)  # two layers, rank 4: queries and output, keys and values
    assert with_lora - alone == 6 * tokens * weights


def test_cheaper_steps_are_more_steps():
    ways = methods(0.25)
    flops = {phase: 80 if phase.stage == "align" else 100 for phases in ways.values() for phase in phases}
    assert [phase.steps for phase in with_equal_compute(ways[FIRST], flops, 12_000)] == [120]
    assert [phase.steps for phase in with_equal_compute(ways["two stages"], flops, 12_000)] == [38, 90]


def test_the_align_stage_has_no_lora_and_the_others_have_theirs():
    assert TrainingPhase("align", BOTH, 1.0, steps=7).config(3).rank == 0
    config = TrainingPhase("joint", ("attention",), 1.0, steps=7).config(3)
    assert (config.rank, config.max_steps, config.seed) == (16, 7, 3)
    assert config.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")


def test_a_difference_that_changes_its_sign_is_called_spread():
    def found(*values: float) -> dict:
        seeds = {seed: {"minutes": 1, "llava": {"own": value}} for seed, value in enumerate(values)}
        return {"phases": [{"steps": 3}], "tflop": 1.0, "seeds": seeds}

    ways = {FIRST: found(50, 60), "two stages": found(51, 58), "attention only": found(40, 59)}
    verdicts = table({"settings": {"val": 10}, "methods": ways}).splitlines()[-4:]
    assert verdicts[0] == "two stages - one stage, llava: -0.5 points (+1.0, -2.0): within the seeds' spread"
    assert verdicts[2] == "attention only - one stage, llava: -5.5 points (-10.0, -1.0): the same sign with every seed"


def test_the_readmes_picture_and_its_table_say_the_same():
    """Names and means of the picture's bars, in the table; and the picture in the folder is of these numbers."""
    demo = REPOSITORY / "train/demo"
    figure = comparison_figure(json.loads((demo / "comparison.json").read_text()))
    axes = figure.axes[0]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    columns = [label.get_text() for label in axes.get_xticklabels()]
    means = [text.get_text() for text in axes.texts]
    rows = [line.strip("| ").split(" | ") for line in (REPOSITORY / "train/README.md").read_text().splitlines()]
    [head] = [row for row in rows if row[2:] == columns]
    assert head[0].startswith(axes.get_ylabel().partition(" (")[0])
    [first] = [number for number, row in enumerate(rows) if row[:1] == legend[:1]]
    table = rows[first : first + len(legend)]
    assert [row[0] for row in table] == legend
    assert [cell.split()[0] for row in table for cell in row[2:]] == means
    with Image.open(demo / "comparison.png") as kept:
        figure.canvas = FigureCanvasAgg(figure)
        figure.canvas.draw()
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0 and box.x1 <= kept.width
        drawn = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
        assert np.abs(drawn - np.asarray(kept.convert("RGB"))).mean() < 2  # letters may fall otherwise elsewhere


@pytest.fixture(scope="module")
def compared(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    out = tmp_path_factory.mktemp("compared")
    sizes = ["--steps", "4", "--train", "12", "--val", "3", "--seeds", "0", "--align-share", "0.5"]
    words = [str(tiny_checkpoint), "--out", str(out), *sizes, "--methods", "two stages"]
    assert main(words) == 0
    return out, words


def test_the_command_trains_both_stages_and_writes_numbers_and_picture(compared: tuple[Path, list[str]]):
    out, _ = compared
    results = json.loads((out / "comparison.json").read_text())
    way = results["methods"]["two stages"]
    assert [phase["stage"] for phase in way["phases"]] == ["align", "finetune"]
    assert way["phases"][0]["gflop_a_step"] < way["phases"][1]["gflop_a_step"]
    assert way["seeds"]["0"]["vizwiz"]["n"] == 3
    assert (out / "two-stages-0/1-finetune/final_lora_model/adapter_model.safetensors").is_file()
    with Image.open(out / "comparison.png") as chart:
        assert chart.size == (880, 440)


def test_what_is_done_is_not_done_again(compared: tuple[Path, list[str]], capsys):
    out, words = compared
    before = (out / "two-stages-0/result.json").stat().st_mtime_ns
    assert main(words) == 0
    assert "0 runs to do" in capsys.readouterr().out
    assert (out / "two-stages-0/result.json").stat().st_mtime_ns == before


def test_a_comparison_of_another_size_is_refused(compared: tuple[Path, list[str]], capsys):
    _, words = compared
    assert main([*words, "--steps", "5"]) == 2
    assert "give another --out" in capsys.readouterr().err
