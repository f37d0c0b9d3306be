"""A LoRA folder's adapter_config.json: read, and held against what can be served."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qwen_vqa.plugin.errors import UserError

CONFIG_FILE = "adapter_config.json"
_LARGEST_CONFIG = 2**20  # bytes
# Inits that only choose the first values; others (PiSSA, OLoRA, ...) change the base model's weights, too.
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")


class AdapterError(UserError):
    """An adapter that the language model cannot use. The message says why."""


def read_settings(folder: Path) -> dict[str, Any]:
    """A LoRA folder's adapter_config.json.

    Raises:
        AdapterError: it is missing, unreadable, of another kind than LoRA, or its rank and alpha are no numbers.
    """
    path = folder / CONFIG_FILE
    if missing := _missing(folder, path):
        raise AdapterError(f"no adapter at {folder}: {missing}. Give the folder that PEFT's save_pretrained wrote.")
    try:
        if path.stat().st_size > _LARGEST_CONFIG:
            raise AdapterError(f"{path} has {path.stat().st_size:,} bytes; PEFT's have a few thousand.")
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise AdapterError(f"{path} is not readable JSON: {error}") from error
    peft_type = settings.get("peft_type") if isinstance(settings, dict) else None
    if str(peft_type).upper() != "LORA":
        raise AdapterError(f"the adapter {folder} is of type {peft_type!r}; only LoRA can be served.")
    _check_numbers(path, settings)
    return settings


def _missing(folder: Path, config_file: Path) -> str:
    """What keeps the folder from being an adapter's; "" for nothing."""
    try:
        if not folder.exists():
            return "there is no such folder"
        if not folder.is_dir():
            return "it is no folder"
        return "" if config_file.is_file() else f"{CONFIG_FILE} is missing"
    except (OSError, ValueError) as error:  # no permission, or a name that no file can have
        return f"it cannot be looked at ({error})"


def _check_numbers(path: Path, settings: Mapping[str, Any]) -> None:
    """Rank and alpha, of the whole and of single modules."""
    values = {field: (settings.get(field), kind) for field, kind in (("r", int), ("lora_alpha", int | float))}
    for pattern, kind in (("rank_pattern", int), ("alpha_pattern", int | float)):
        of_modules = settings.get(pattern) or {}
        if not isinstance(of_modules, dict):
            raise AdapterError(f"{path} has {pattern} {of_modules!r}; it must be an object of numbers by module.")
        values |= {f"{pattern} {module}": (value, kind) for module, value in of_modules.items()}
        for module in of_modules:
            try:
                re.compile(module)
            except re.error as error:
                raise AdapterError(
                    f"{path} has {pattern} {module!r}, which is no regular expression: {error}"
                ) from error
    for field, (value, kind) in values.items():
        if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < math.inf:
            whole = " whole" if kind is int else ""
            raise AdapterError(f"{path} has {field} {value!r}; it must be a positive{whole} number.")


def unsupported(settings: Mapping[str, Any]) -> Iterator[str]:
    """Kinds of LoRA that vLLM 0.32 refuses, or serves as another model than was trained."""
    for field, name in (
        ("use_dora", "DoRA (use_dora)"),
        ("modules_to_save", f"modules_to_save {settings.get('modules_to_save')}"),
        ("lora_bias", "lora_bias"),
        ("alora_invocation_tokens", "activated LoRA (alora_invocation_tokens)"),
        ("layer_replication", "layer_replication"),
        ("use_bdlora", "block-diagonal LoRA (use_bdlora)"),
        ("use_qalora", "QALoRA (use_qalora)"),
        ("trainable_token_indices", "trainable_token_indices"),
        ("target_parameters", "target_parameters"),
    ):
        if settings.get(field):
            yield name
    if settings.get("bias", "none") != "none":
        yield f"trained biases (bias {settings['bias']!r})"
    init = settings.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        yield f"an init that changes the base model (init_lora_weights {init!r})"


def rank_of(settings: Mapping[str, Any], module: str) -> int:
    """PEFT's rule: the first key of rank_pattern that matches the end of the name, from a dot on."""
    for pattern, rank in (settings.get("rank_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return rank
    return settings["r"]


def trained_on(settings: Mapping[str, Any]) -> str:
    """For an error: on what the adapter was trained, as far as it says."""
    base = settings.get("base_model_name_or_path")
    return f"It was probably trained on another base model{f' ({base})' if base else ''}."
