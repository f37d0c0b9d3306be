"""A checkpoint folder: which files it has to hold, and what is wrong when one is missing."""

import json
from pathlib import Path

from qwen_vqa.plugin.errors import UserError

REQUIRED_FILES = ("config.json", "tokenizer_config.json", "chat_template.jinja")
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
ADAPTER_FOLDER = "adapters"


def check_checkpoint(folder: Path) -> None:
    """Look at the files alone: no weight is read.

    Raises:
        UserError: no such folder, not one of ours, or files missing (all of them are named).
    """
    if not folder.is_dir():
        raise UserError(
            f"no checkpoint at {folder}: there is no such folder. Give the folder that "
            "`qwen-vqa assemble` or the trainer wrote, or a hub id, ORG/MODEL."
        )
    missing = [name for name in REQUIRED_FILES if not (folder / name).is_file()]
    for alternatives in (PROCESSOR_FILES, TOKENIZER_FILES):
        if not any((folder / name).is_file() for name in alternatives):
            missing.append(" or ".join(alternatives))
    missing += _missing_weights(folder)
    if missing:
        raise UserError(
            f"the checkpoint {folder} lacks {', '.join(missing)}. Copy the whole folder again, "
            "or write it anew with `qwen-vqa assemble`."
        )
    check_model_type(folder / "config.json")


def check_model_type(config: Path, name: str | None = None) -> None:
    """Raises UserError for the config.json of another kind of model; `name` is what the user knows the file by."""
    model_type = _read_json(config).get("model_type")
    if model_type != "qwen_vqa":
        raise UserError(
            f"{name or config} has model_type {model_type!r}, not 'qwen_vqa'. "
            "`qwen-vqa assemble` makes a checkpoint from an encoder, a connector and a language model."
        )


def adapter_folders(folder: Path) -> dict[str, Path]:
    """The LoRA adapters that lie in a checkpoint, by name."""
    adapters = folder / ADAPTER_FOLDER
    if not adapters.is_dir():
        return {}
    return {path.name: path for path in sorted(adapters.iterdir()) if path.is_dir()}


def _missing_weights(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(_read_json(index).get("weight_map", {}).values()))
        return [shard for shard in shards if not (folder / shard).is_file()]
    return [] if (folder / "model.safetensors").is_file() else ["model.safetensors"]


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from error
