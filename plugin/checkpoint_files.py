"""A checkpoint folder: which files it has to hold, and what is wrong when one is missing."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from qwen_vqa.plugin.errors import UserError

REQUIRED_FILES = ("config.json", "tokenizer_config.json", "chat_template.jinja")
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
ADAPTER_FOLDER = "adapters"


def check_checkpoint(folder: Path) -> None:
    """Look at the files alone: no weight is read.

    Raises:
        UserError: no such folder, not one of ours, files missing (all of them are named), or weights cut off.
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
    missing += [file.name for file in weight_files(folder) if not file.is_file()]
    if missing:
        raise UserError(
            f"the checkpoint {folder} lacks {', '.join(missing)}. Copy the whole folder again, "
            "or write it anew with `qwen-vqa assemble`."
        )
    check_model_type(folder / "config.json")
    for file in weight_files(folder):
        _check_whole(file)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a checkpoint is to have, in order."""
    index = folder / "model.safetensors.index.json"
    names = set(_read_json(index).get("weight_map", {}).values()) if index.is_file() else {"model.safetensors"}
    return [folder / name for name in sorted(names)]


def _check_whole(file: Path) -> None:
    """Raises UserError for a safetensors file whose header is broken, or says of more bytes than there are."""
    try:
        with safe_open(file, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"the weights {file} are not whole ({error}). Copy or download the file again: it has "
            f"{file.stat().st_size:,} bytes."
        ) from error


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


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from error
