"""Connector weights as people have them: a file or a training checkpoint of the original, of LLaVA, of ours."""

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.serialization import get_unsafe_globals_in_checkpoint

from qwen_vqa.plugin.errors import UserError

# What a connector is called among the parts of a whole model.
_PARTS = ("connector", "mm_projector", "multi_modal_projector", "projector")
_PART = re.compile(rf"(?:^|\.)(?:{'|'.join(_PARTS)})\.(?P<rest>.+)$")
_WRAPPERS = re.compile(r"^(?:module\.|model\.|base_model\.)+")
# Linear, GELU, Linear as an nn.Sequential has its Linears at 0 and 2.
_NAMES = {
    "0.weight": "linear_1.weight",
    "0.bias": "linear_1.bias",
    "2.weight": "linear_2.weight",
    "2.bias": "linear_2.bias",
}
_EXPECTED = sorted(_NAMES.values())
# Where training scripts put the weights, beside the step and the optimizer.
_WEIGHT_KEYS = ("state_dict", "model_state_dict", "model", "module", *_PARTS)
_CHECKPOINT_FILES = (
    "connector.safetensors",
    "mm_projector.bin",
    "model.safetensors",
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
_NAMES_SHOWN = 6


def load_connector(path: str | Path) -> dict[str, torch.Tensor]:
    """The connector's four tensors under the names `linear_1/2.weight/bias`, in their own float type.

    Takes `0.* 2.*` (the original's final_connector.pth), `model.mm_projector.0/2.*` (LLaVA's mm_projector.bin) and
    `linear_1/2.*` (transformers, ours): alone, or among the weights of a whole model, in a .pth, .bin or .safetensors
    file, or in the folder of a training checkpoint.

    Raises:
        UserError: no such file, not a file of tensors, or no connector of this shape in it.
    """
    path = Path(path)
    file = _file_of(path)
    found = _connector_in(_read(file))
    connector = {_NAMES.get(name, name): tensor for name, tensor in found.items()}
    if sorted(connector) != _EXPECTED or len(connector) != len(found):
        raise UserError(
            f"the connector {path} holds {_some(found)}; expected four tensors: 0.weight 0.bias 2.weight 2.bias "
            f"(or linear_1 and linear_2), alone or under {', '.join(f'{part}.' for part in _PARTS)}. A connector of "
            "another depth is not supported."
        )
    return connector


def check_connector(connector: dict[str, torch.Tensor], vision_width: int, text_width: int, path: str | Path) -> int:
    """Hold the shapes against the two models it joins; returns the width between its Linears.

    Raises:
        UserError: naming the tensor, its shape and the one that would fit.
    """
    first, second = connector["linear_1.weight"], connector["linear_2.weight"]
    inner = first.shape[0]
    expected = {
        "linear_1.weight": (inner, vision_width),
        "linear_1.bias": (inner,),
        "linear_2.weight": (text_width, inner),
        "linear_2.bias": (text_width,),
    }
    wrong = [
        f"{name} is {list(connector[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if tuple(connector[name].shape) != shape
    ]
    if wrong:
        raise UserError(
            f"the connector {path} does not fit: {'; '.join(wrong)}. The encoder's width is {vision_width}, "
            f"the language model's {text_width}; this connector joins {first.shape[-1]} to {second.shape[0]}. "
            "Give the encoder and language model it was trained with."
        )
    return inner


def save_connector(connector: dict[str, torch.Tensor], path: str | Path) -> None:
    """Write the original's final_connector.pth from the names `linear_1/2.*`."""
    original = {ours: theirs for theirs, ours in _NAMES.items()}
    torch.save({original[name]: tensor.detach().cpu() for name, tensor in connector.items()}, path)


def _file_of(path: Path) -> Path:
    """The file that holds a connector's weights: `path`, or the one that fits in the folder `path`."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"no connector at {path}: there is no such file.")
    for name in _CHECKPOINT_FILES:
        file = path / name
        if file.is_file():
            return _shard(file) if name.endswith(".index.json") else file
    raise UserError(f"no connector at {path}: the folder holds none of {', '.join(_CHECKPOINT_FILES)}.")


def _shard(index: Path) -> Path:
    """Of a checkpoint in several files, the one with the connector."""
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index} is no index of a checkpoint's files ({error}). Copy the checkpoint again.") from error
    files = sorted({file for name, file in weight_map.items() if _PART.search(name)})
    if len(files) != 1:
        raise UserError(
            f"{index} names {len(files)} files with weights under {', '.join(f'{part}.' for part in _PARTS)}, and one "
            "is expected. Save the connector alone: torch.save(model.connector.state_dict(), 'connector.pth')."
        )
    return index.with_name(files[0])


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as tensors:
                names = list(tensors.keys())
                wanted = [name for name in names if _PART.search(name)] or names
                return {name: tensors.get_tensor(name) for name in wanted}
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"the connector {path} is more than weights: {_classes_in(path)}. Such files are not opened, since a "
            "pickle can run code. Save the weights alone: torch.save(connector.state_dict(), 'connector.pth')."
        ) from error
    except (RuntimeError, EOFError, SafetensorError, ValueError, OSError) as error:
        raise UserError(
            f"the connector {path} cannot be read ({str(error).splitlines()[0]}). Copy it again, or save it again with "
            "torch.save(connector.state_dict(), 'connector.pth')."
        ) from error
    if not isinstance(state, Mapping):
        raise UserError(
            f"the connector {path} holds a {type(state).__name__}, no dict of tensors: save a state_dict()."
        )
    return state


def _connector_in(state: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of the connector in what a script saved, without the names of what stands around it."""
    for key in _WEIGHT_KEYS:
        if isinstance(state.get(key), Mapping):
            return _connector_in(state[key])
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor) and value.ndim}
    part = {match["rest"]: value for name, value in tensors.items() if (match := _PART.search(name))}
    return part or {_WRAPPERS.sub("", name): value for name, value in tensors.items()}


def _classes_in(path: Path) -> str:
    """Which classes a pickle would make, in words."""
    try:
        names = get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError, OSError, pickle.UnpicklingError):  # a format before torch 1.6
        names = []
    return f"it would make objects of {', '.join(names[:3])}" if names else "it is a pickle of other objects"


def _some(names: Mapping[str, Any]) -> str:
    shown = sorted(names)[:_NAMES_SHOWN]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"{', '.join(shown)}{more}" if shown else "no tensors"
