"""Parts that cannot be assembled: each is said in one line, by its name, before anything is written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.cli import main
from qwen_vqa.train.assembly.connector_file import load_connector
from qwen_vqa.train.model.adapter_merging import merge_adapter
from tests.tiny import tiny_config, tiny_processor


def weights() -> dict[str, torch.Tensor]:
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 8)).state_dict()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda tensor: tensor.fill_(float("nan")), r"linear_2\.weight.*NaN"),
        (lambda tensor: tensor.fill_(float("inf")), r"linear_2\.weight.*infinite"),
        (lambda tensor: tensor.to(torch.int8), r"linear_2\.weight as int8"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), r"linear_2\.weight as float8_e4m3fn"),
        (lambda tensor: tensor.to_sparse(), r"linear_2\.weight as sparse_coo float32"),
    ],
    ids=["NaN", "infinite", "int8", "float8", "sparse"],
)
def test_a_connector_without_usable_numbers(tmp_path: Path, changed, said: str):
    state = weights()
    state["2.weight"] = changed(state["2.weight"])
    torch.save(state, tmp_path / "connector.pth")
    with pytest.raises(UserError, match=said):
        load_connector(tmp_path / "connector.pth")


@pytest.mark.parametrize("name", ["connector.pth", "connector.safetensors"])
def test_a_connector_of_no_bytes(tmp_path: Path, name: str):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        load_connector(tmp_path / name)


def test_an_adapter_whose_modules_the_model_lacks(tmp_path: Path):
    model = AutoModelForCausalLM.from_config(tiny_config(tiny_processor()).text_config)
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(tmp_path)
    settings = tmp_path / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"target_modules": ["query_key_value"]}))
    with pytest.raises(UserError, match=r"does not fit the language model.*query_key_value"):
        merge_adapter(AutoModelForCausalLM.from_config(model.config), tmp_path)


COMMANDS = {
    "assemble": ["assemble", "--vision-encoder", "CHECKPOINT", "--language-model", "CHECKPOINT"],
    "train": ["train", "CHECKPOINT", "--data", "DATA"],
    "evaluate": ["evaluate", "CHECKPOINT", "--data", "DATA"],
    "quantize": ["quantize", "CHECKPOINT", "--scheme", "int8"],
}


def run(command: str, checkpoint: Path, *more: str) -> int:
    places = {"CHECKPOINT": str(checkpoint), "DATA": str(checkpoint.parent / "train.jsonl")}
    return main([*(places.get(word, word) for word in COMMANDS[command]), *more])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["below a file", "a long name"])
def test_a_folder_that_cannot_be_made(
    command: str, kind: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "?"}]}) + "\n")
    (tmp_path / "file").touch()
    output, said = {
        "below a file": (tmp_path / "file/below", f"{tmp_path / 'file'} is a file"),
        "a long name": (tmp_path / ("x" * 300), "File name too long"),
    }[kind]
    assert run(command, checkpoint, "-o", str(output)) == 2
    printed = capsys.readouterr().err
    assert said in printed and printed.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "file", "train.jsonl"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("seed", [str(2**32), "-1", "one"])
def test_a_seed_that_is_none(command: str, seed: str, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    try:
        status = run(command, tiny_checkpoint, "-o", "never-made", f"--seed={seed}")
    except SystemExit as error:
        status = error.code
    assert status == 2
    said = capsys.readouterr().err
    assert "seed" in said and seed in said and said.count("\n") == 1
    assert not Path("never-made").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--views", "tiles", "--max-tiles", "1"], "max_tiles is 1"),
        (["--views", "s2", "--scales", "2", "1"], r"scales is [2, 1]"),
        (["--views", "s2", "--scales", "1", "9"], r"scales is [1, 9]"),
        (["--pooling", "area"], "--pooling is of --views s2"),
    ],
)
def test_views_are_checked_before_anything_is_loaded(flags: list[str], said: str, tmp_path: Path, capsys):
    """The folders of the parts are empty: loading them would say another thing."""
    (tmp_path / "empty").mkdir()
    empty, output = str(tmp_path / "empty"), str(tmp_path / "out")
    assert main(["assemble", "--vision-encoder", empty, "--language-model", empty, "-o", output, *flags]) == 2
    assert said in capsys.readouterr().err
