"""The stages' recipes and the flags that change them."""

import argparse
from pathlib import Path

import pytest

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.recipe import STAGES, config_for, load_config, resumed_config, save_config
from qwen_vqa.train.train_flags import build_parser
from qwen_vqa.train.training_config import ATTENTION, MLP, TrainingConfig


def parse(*flags: str) -> argparse.Namespace:
    return build_parser(argparse.ArgumentParser()).parse_args(["base", "-o", "run", *flags])


def test_the_joint_stage_has_the_originals_numbers():
    config = config_for("joint", parse())
    assert (config.batch_size, config.accumulation, config.epochs, config.max_samples) == (4, 16, 1, 200_000)
    assert (config.rank, config.alpha, config.dropout, config.target_modules) == (64, 128, 0.05, ATTENTION)
    assert (config.learning_rate, config.connector_learning_rate) == (5e-5, 5e-5)


def test_the_align_stage_trains_the_connector_alone_and_finetune_a_lora_too():
    assert config_for("align", parse()).rank == 0
    assert config_for("finetune", parse()).rank == 64


@pytest.mark.parametrize("stage", STAGES)
def test_every_field_can_be_set_on_the_command_line(stage: str):
    values = {
        "learning_rate": 1e-4, "connector_learning_rate": 2e-4, "encoder_layers": 2,
        "encoder_learning_rate": 1e-5, "rank": 0, "alpha": 16, "dropout": 0.1,
        "target_modules": ("q_proj",), "full_language_model": True, "batch_size": 2, "accumulation": 3, "epochs": 2.5,
        "max_steps": 7, "warmup_ratio": 0.1, "weight_decay": 0.01, "max_length": 512, "max_samples": 99,
        "max_dropped": 0.2, "precision": "float32", "load_in": "full", "gradient_checkpointing": False,
        "cache_features": True, "merge_adapter": False, "workers": 1, "save_steps": 5, "seed": 4,
    }  # fmt: skip
    assert list(values) == TrainingConfig.names()
    flags = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{'' if value else 'no-'}{flag}")
        else:
            flags += [f"--{flag}", value[0] if isinstance(value, tuple) else str(value)]
    assert config_for(stage, parse(*flags)) == TrainingConfig(**values)


def test_target_modules_may_be_groups():
    assert config_for("joint", parse("--target-modules", "attention", "mlp")).target_modules == ATTENTION + MLP


def test_the_resolved_config_is_saved_and_read_back(tmp_path: Path):
    config = config_for("finetune", parse("--rank", "8", "--target-modules", "mlp"))
    save_config(config, tmp_path)
    assert load_config(tmp_path) == config


def test_a_run_goes_on_with_the_config_it_began_with(tmp_path: Path):
    config = config_for("joint", parse("--rank", "8"))
    save_config(config, tmp_path)
    assert resumed_config(tmp_path, parse("--resume")) == config
    with pytest.raises(UserError, match=r"began with rank 8, not 4: leave the flag out"):
        resumed_config(tmp_path, parse("--resume", "--rank", "4"))
    with pytest.raises(UserError, match=r"holds no training_config\.yaml"):
        load_config(tmp_path / "nothing")
