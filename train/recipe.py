"""A stage's recipe from its file, what the command line says instead, and the config that a run began with."""

import argparse
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.training_config import LOAD_IN, PRECISIONS, TrainingConfig

STAGES = ("align", "finetune", "joint")
CONFIG_FILE = "training_config.yaml"
_CHOICES = {"precision": PRECISIONS, "load_in": LOAD_IN}
_RECIPES = Path(__file__).with_name("recipes")


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for every field of TrainingConfig; one that is not given is None."""
    recipes = {stage: _read(_RECIPES / f"{stage}.yaml") for stage in STAGES}
    for field in fields(TrainingConfig):
        values = {stage: _shown(recipe.get(field.name, field.default)) for stage, recipe in recipes.items()}
        same = len(set(values.values())) == 1
        shown = values["joint"] if same else ", ".join(f"{stage} {value}" for stage, value in values.items())
        options: dict[str, Any] = {"help": f"{field.metadata['help']} (default: {shown})".replace("%", "%%")}
        if isinstance(field.default, bool):
            options["action"] = argparse.BooleanOptionalAction
        elif isinstance(field.default, tuple):
            options |= {"nargs": "+", "metavar": "NAME"}
        else:
            options |= {"type": type(field.default), "choices": _CHOICES.get(field.name)}
        parser.add_argument("--" + field.name.replace("_", "-"), default=None, **options)


def config_for(stage: str, args: argparse.Namespace) -> TrainingConfig:
    """The stage's recipe with the flags that were given."""
    recipe = _read(_RECIPES / f"{stage}.yaml")
    return TrainingConfig(**_tupled(recipe | given_flags(args)))


def given_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The fields that the command line sets."""
    return {name: getattr(args, name) for name in TrainingConfig.names() if getattr(args, name) is not None}


def save_config(config: TrainingConfig, folder: Path) -> None:
    """Write the resolved config, in the recipes' own form."""
    content = asdict(config) | {"target_modules": list(config.target_modules)}
    (folder / CONFIG_FILE).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def load_config(folder: Path) -> TrainingConfig:
    """The config that `save_config` wrote there.

    Raises:
        UserError: there is none, or it is not one.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder} holds no {CONFIG_FILE}: it is not a run's folder.")
    return TrainingConfig(**_tupled(_read(folder / CONFIG_FILE)))


def resumed_config(folder: Path, args: argparse.Namespace) -> TrainingConfig:
    """The config of the run in `folder`: it goes on as it began.

    Raises:
        UserError: a flag says otherwise.
    """
    config = load_config(folder)
    asked = TrainingConfig(**_tupled(asdict(config) | given_flags(args)))
    for name in TrainingConfig.names():
        if getattr(asked, name) != getattr(config, name):
            raise UserError(
                f"the run in {folder} began with {name} {getattr(config, name)}, not {getattr(asked, name)}: leave the "
                "flag out to go on with it, or start anew with another -o."
            )
    return config


def _shown(value: Any) -> str:
    return " ".join(value) if isinstance(value, (list, tuple)) else str(value)


def _read(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    unknown = sorted(set(content) - set(TrainingConfig.names()))
    if unknown:
        raise UserError(f"{path}: unknown fields {', '.join(unknown)}; known are {', '.join(TrainingConfig.names())}.")
    return content


def _tupled(content: dict[str, Any]) -> dict[str, Any]:
    if "target_modules" in content:
        content["target_modules"] = tuple(content["target_modules"])
    return content
