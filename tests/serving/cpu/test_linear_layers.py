"""Whether linear layers are held in 16 bits, too: chosen from the memory, or why not."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._inductor import config

from qwen_vqa.plugin.cpu.linear_layout import LEAST_MATRIX_BYTES, MIXED, PACKED, SETTING
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.quantization import FACTS
from qwen_vqa.serving.checked_checkpoint import CheckedCheckpoint, checked_checkpoint
from qwen_vqa.serving.cpu.linear_layers import choose_linear_layers, linear_layer_bytes
from tests.tiny import make_checkpoint

# Just large enough: gate and up of both layers, which vLLM makes one matrix. All others are smaller.
INTERMEDIATE = LEAST_MATRIX_BYTES // (2 * 2 * 128)
NUMBERS = LEAST_MATRIX_BYTES // 2 * 2


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> CheckedCheckpoint:
    return checked_checkpoint(make_large(tmp_path_factory.mktemp("weight_16"), torch.bfloat16))


def make_large(folder: Path, dtype: torch.dtype) -> Path:
    return make_checkpoint(folder, dtype=dtype, intermediate=INTERMEDIATE)


def arguments(**changes: Any) -> Namespace:
    unset = {"linear_layers": None, "dtype": "float32", "quantization": None, "additional_config": None}
    return Namespace(**{**unset, "enforce_eager": False, "enable_lora": False, **changes})


def test_large_layers_take_what_is_stored(halves: CheckedCheckpoint, tmp_path: Path):
    assert linear_layer_bytes(halves.folder) == 2 * NUMBERS
    small = make_checkpoint(tmp_path, dtype=torch.bfloat16, intermediate=INTERMEDIATE - 1)
    assert linear_layer_bytes(small) == 0
    with pytest.raises(UserError, match="none of its matrices has 1 MiB"):
        choose_linear_layers(arguments(linear_layers=MIXED), checked_checkpoint(small), 2**40)


@pytest.mark.parametrize(
    ("asked", "free", "chosen", "said"),
    [
        (None, 4 * NUMBERS, MIXED, "up to 4 answers at once are decoded from the checkpoint's 16 bits"),
        (None, 4 * NUMBERS - 1, PACKED, "--linear-layers mixed would decode up to 4 answers at once"),
        (None, -1, PACKED, "of the 0.0 GiB that the weights leave"),
        (MIXED, 0, MIXED, "--linear-layers packed: not"),
        (PACKED, 4 * NUMBERS, PACKED, None),
    ],
)
def test_half_of_the_free_memory_is_enough(halves: CheckedCheckpoint, asked, free: int, chosen: str, said: str | None):
    args = arguments(linear_layers=asked, additional_config={"other": 1})
    note, taken = choose_linear_layers(args, halves, free)
    assert args.linear_layers == chosen
    assert args.additional_config == {"other": 1, SETTING: chosen}
    assert taken == (2 * NUMBERS if chosen == MIXED else 0)
    assert (said in note) if said else note is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"dtype": "bfloat16"}, "this one of bfloat16 is served in bfloat16"),
        ({"enforce_eager": True}, "--enforce-eager"),
        ({"quantization": "bitsandbytes"}, "quantised"),
    ],
)
def test_what_cannot_be_mixed_is_packed_or_refused_with_the_reason(halves: CheckedCheckpoint, changes: dict, why: str):
    args = arguments(**changes)
    assert choose_linear_layers(args, halves, 2**40) == (None, 0)
    assert args.linear_layers == PACKED
    with pytest.raises(UserError, match=f"--linear-layers mixed: .*{why}.* Leave it out"):
        choose_linear_layers(arguments(linear_layers=MIXED, **changes), halves, 2**40)


def test_a_quantised_checkpoint_has_no_such_layers(halves: CheckedCheckpoint):
    quantised = replace(halves, scheme=FACTS["int8"])
    assert choose_linear_layers(arguments(), quantised, 2**40) == (None, 0)


def test_a_checkpoint_of_float32_is_packed(tmp_path: Path):
    checkpoint = checked_checkpoint(make_large(tmp_path, torch.float32))
    args = arguments()
    assert choose_linear_layers(args, checkpoint, 2**40) == (None, 0)
    assert args.linear_layers == PACKED


def test_one_weight_of_float32_is_named(tmp_path: Path):
    folder = make_large(tmp_path, torch.bfloat16)
    [file] = folder.glob("*.safetensors")
    weights = load_file(file)
    name = "language_model.model.layers.1.mlp.down_proj.weight"
    save_file({**weights, name: weights[name].float()}, file, {"format": "pt"})
    checkpoint = checked_checkpoint(folder)
    assert choose_linear_layers(arguments(), checkpoint, 2**40) == (None, 0)
    with pytest.raises(UserError, match=f"config.json says bfloat16, and {name} is F32"):
        choose_linear_layers(arguments(linear_layers=MIXED), checkpoint, 2**40)


def test_adapters_beside_it_need_a_compiler(halves: CheckedCheckpoint, monkeypatch: pytest.MonkeyPatch):
    args = arguments(enable_lora=True)
    choose_linear_layers(args, halves, 2**40)
    assert args.linear_layers == MIXED
    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    args = arguments(enable_lora=True)
    assert choose_linear_layers(args, halves, 2**40) == (None, 0)
    assert args.linear_layers == PACKED
    with pytest.raises(UserError, match=r"there is none \(apt install g\+\+\)"):
        choose_linear_layers(arguments(enable_lora=True, linear_layers=MIXED), halves, 2**40)
