"""What a checkpoint folder makes of a request, in a few lines: read from its files alone, for people to compare."""

import json
import re
from pathlib import Path
from typing import Any

from qwen_vqa.plugin.checkpoint_files import PROCESSOR_FILES, adapter_folders
from qwen_vqa.plugin.generation_defaults import Decoding

_SETTING = r"\{{%- set {name} = (?P<value>\".*?(?<!\\)\"|\"\") %\}}"
_POSITIONS = {
    "inline": "inline, each where the user put it",
    "prefix": "prefix, all before the system turn",
    "line": "line, first in their turn, each on a line",
}
_FITS = {
    "pad": "pad: longest side scaled to {size} px, top left on black",
    "pad-center": "pad-center: in the middle of a square of one colour, scaled to {size} px",
    "squash": "squash: both sides scaled to {size} px",
    "crop": "crop: shortest side scaled to {size} px, the middle cut out",
}


def checkpoint_summary(folder: Path) -> list[tuple[str, str]]:
    """Prompt, pixels, float types, decoding and adapters of a checkpoint folder, as names and values."""
    config = _json(folder / "config.json")
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    processor = next(_json(folder / name) for name in PROCESSOR_FILES if (folder / name).is_file())
    pixels = processor.get("image_processor", processor)
    position, system = _setting(template, "image_position"), _setting(template, "default_system")
    language_model = str(config.get("dtype") or config.get("torch_dtype"))
    vision = "float32" if config.get("vision_in_float32") else language_model
    fit = _FITS.get(pixels.get("fit", "pad"), str(pixels.get("fit")))
    adapters = list(adapter_folders(folder))
    return [
        ("images in the prompt", _POSITIONS.get(position or "", "as chat_template.jinja says")),
        ("system prompt", "as chat_template.jinja says" if system is None else repr(system) if system else "none"),
        ("views of an image", _views(pixels.get("views"))),
        ("image fit", fit.format(size=pixels.get("image_size"))),
        ("resampling", f"{pixels.get('resample', 'bilinear')}, {'' if pixels.get('antialias') else 'not '}antialiased"),
        ("mean, std", f"{_numbers(pixels.get('image_mean'))}, {_numbers(pixels.get('image_std'))}"),
        ("stored float types", f"language model {language_model}, vision encoder and connector {vision}"),
        ("decoding", str(Decoding.of(folder))),
        ("adapters kept apart", ", ".join(adapters) or "none"),
    ]


def _views(views: dict[str, Any] | None) -> str:
    if not views:
        return "whole"
    fields = ", ".join(f"{name} {value}" for name, value in views.items() if name != "rule")
    return f"{views.get('rule')}: {fields}" if fields else str(views.get("rule"))


def summary_lines(folder: Path, indent: str = "  ") -> list[str]:
    """`checkpoint_summary` as aligned lines."""
    return [f"{indent}{name:<22s}{value}" for name, value in checkpoint_summary(folder)]


def _setting(template: str, name: str) -> str | None:
    """A setting of our own chat template; None in a template that somebody else wrote."""
    match = re.search(_SETTING.format(name=name), template)
    return json.loads(match["value"]) if match else None


def _numbers(values: list[float] | None) -> str:
    if not values:
        return "unknown"
    return f"{values[0]:g}" if len(set(values)) == 1 else " ".join(f"{value:g}" for value in values)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
