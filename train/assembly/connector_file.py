"""Connector weights as people have them: a file or a training checkpoint of the original, of LLaVA, of ours."""

import json
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.serialization import get_unsafe_globals_in_checkpoint

from qwen_vqa.plugin.connector.mlp import LINEARS, WEIGHT_NAMES, ConnectorShape
from qwen_vqa.plugin.errors import UserError, first_line_of
from qwen_vqa.plugin.views.s2 import AREA, POOLINGS, ScaledViews

# What a connector is called among the parts of a whole model.
_PARTS = ("connector", "mm_projector", "multi_modal_projector", "projector", "MP")
_PART = re.compile(rf"(?:^|\.)(?:{'|'.join(_PARTS)})\.(?P<rest>.+)$")
_WRAPPERS = re.compile(r"^(?:module\.|model\.|base_model\.)+")
NEWLINE = "image_newline"
_OURS = re.compile(r"(linear_\d)\.(weight|bias)")
# Where training scripts put the weights, beside the step and the optimizer.
_WEIGHT_KEYS = ("state_dict", "model_state_dict", "model", "module", *_PARTS)
_CHECKPOINT_FILES = (
    "connector.safetensors",
    "mm_projector.bin",
    "non_lora_trainables.bin",
    "model.safetensors",
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
_NAMES_SHOWN = 6


def load_connector(path: str | Path) -> dict[str, torch.Tensor]:
    """The connector's tensors under the names `linear_1/2/3.weight/bias`, in their own float type.

    With tiles there is `image_newline`, too.

    Takes `0.* 2.*` (the original's final_connector.pth), `model.mm_projector.0/2/4.*` or `model.mm_projector.weight`
    (LLaVA's mm_projector.bin), `MP.proj.weight` (nanoVLM), `connector.modality_projection.proj.weight` (SmolVLM) and
    `linear_1/2.*` (transformers, ours): alone, or among the weights of a whole model, in a .pth, .bin or .safetensors
    file, or in the folder of a training checkpoint.

    Raises:
        UserError: no such file, not a file of tensors, or no connector of this shape in it.
    """
    path = Path(path)
    file = _file_of(path)
    found = _connector_in(_read(file))
    newline = {name: found.pop(name) for name in list(found) if name == NEWLINE}
    connector = {_our_name(name): tensor for name, tensor in found.items()}
    depth, biases = _depth(connector), sum(name.endswith(".bias") for name in connector)
    if not depth or len(connector) != len(found) or biases not in (0, depth):
        raise UserError(
            f"the connector {path} holds {_some(found)}; expected 1 to {len(LINEARS)} Linear layers, all "
            "with a bias or none: 0.weight 0.bias 2.weight 2.bias (or linear_1 and linear_2, proj), alone or under "
            f"{', '.join(f'{part}.' for part in _PARTS)}."
        )
    _check_numbers(connector | newline, path)
    return connector | newline


def _check_numbers(connector: dict[str, torch.Tensor], path: Path) -> None:
    for name, tensor in connector.items():
        if tensor.layout != torch.strided or not tensor.is_floating_point() or tensor.itemsize < torch.half.itemsize:
            kind = str(tensor.dtype).removeprefix("torch.")
            how = "" if tensor.layout == torch.strided else f"{str(tensor.layout).removeprefix('torch.')} "
            raise UserError(
                f"the connector {path} has {name} as {how}{kind}; expected plain float16, bfloat16 or float32. Save it "
                "as it was trained, before it is quantised."
            )
        if not tensor.isfinite().all():
            raise UserError(
                f"the connector {path} has {name} with values that are not numbers (NaN or infinite): its training had "
                "failed by then. Give one saved earlier."
            )


def connector_shape(
    connector: dict[str, torch.Tensor],
    vision_width: int,
    text_width: int,
    factor: int,
    path: str | Path,
    tiles: bool = False,
) -> ConnectorShape:
    """The shape of a loaded connector, held against the two models it joins.

    Args:
        factor: the pixel shuffle before it; 1 for none.
        tiles: whether images shall have tiles, for which a connector learns what ends a row.

    Raises:
        UserError: naming the tensor, its shape and the one that would fit.
    """
    if tiles != (NEWLINE in connector):
        raise UserError(
            f"the connector {path} was trained {'without' if tiles else 'with'} tiles: it has "
            f"{'no' if tiles else 'an'} {NEWLINE}. Give {'--views whole' if tiles else '--views tiles'}."
        )
    connector = {name: tensor for name, tensor in connector.items() if name != NEWLINE}
    first, depth = connector["linear_1.weight"], _depth(connector)
    shape = ConnectorShape(
        hidden_size=len(first) if depth > 1 else text_width,
        num_layers=depth,
        bias="linear_1.bias" in connector,
        pixel_shuffle=factor,
    )
    widths = shape.widths(vision_width, text_width)
    expected: dict[str, tuple[int, ...]] = {}
    for index in range(1, depth + 1):
        expected[f"linear_{index}.weight"] = (widths[index], widths[index - 1])
        if shape.bias:
            expected[f"linear_{index}.bias"] = (widths[index],)
    wrong = [
        f"{name} is {list(connector[name].shape)}, expected {list(fitting)}"
        for name, fitting in expected.items()
        if tuple(connector[name].shape) != fitting
    ]
    if wrong:
        joined = f" ({widths[0]} after a pixel shuffle of {factor})" if factor > 1 else ""
        raise UserError(
            f"the connector {path} does not fit: {'; '.join(wrong)}. The features' width is {vision_width}{joined}, "
            f"the language model's {text_width}; this connector joins {first.shape[-1]} to "
            f"{len(connector[f'linear_{depth}.weight'])}. {_advice(first.shape[-1], vision_width, factor)}"
        )
    return shape


def _advice(width: int, vision_width: int, factor: int) -> str:
    times = width // vision_width if factor == 1 and width % vision_width == 0 else 1
    if times > 1:
        side = math.isqrt(times)
        shuffle = (
            f"--pixel-shuffle {side} if it joins squares of {side}x{side} patches, or " if side**2 == times else ""
        )
        scales = "".join(
            f"--views s2{f' --pooling {pooling}' if pooling != AREA else ''} if it joins those of two scales, or "
            for pooling in POOLINGS
            if times == ScaledViews.times_wider({"pooling": pooling})
        )
        return f"Give {shuffle}{scales}--feature-layer with {times} layers if it joins the features of several."
    return "Give the encoder and language model it was trained with."


def _our_name(name: str) -> str:
    return next((re.sub(theirs, ours, name) for theirs, ours in WEIGHT_NAMES if re.search(theirs, name)), name)


def _depth(connector: Mapping[str, Any]) -> int:
    """Number of Linear layers; 0 where the names are not those of 1 to 3 in a row."""
    named = [_OURS.fullmatch(name) for name in connector]
    found = sorted({match[1] for match in named if match})
    whole = all(named) and all(f"{linear}.weight" in connector for linear in found)
    return len(found) if whole and found == list(LINEARS[: len(found)]) else 0


def save_connector(connector: dict[str, torch.Tensor], path: str | Path) -> None:
    """Write the original's final_connector.pth, an nn.Sequential's names, from the names `linear_1/2/3.*`."""
    torch.save({_OURS.sub(_place, name): tensor.detach().cpu() for name, tensor in connector.items()}, path)


def _place(name: re.Match[str]) -> str:
    """Where an nn.Sequential has a Linear, with an activation after each."""
    return f"{2 * LINEARS.index(name[1])}.{name[2]}"


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
                wanted = [name for name in names if _PART.search(name) or name.endswith(NEWLINE)] or names
                return {name: tensors.get_tensor(name) for name in wanted}
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"the connector {path} is more than weights: {_classes_in(path)}. Such files are not opened, since a "
            "pickle can run code. Save the weights alone: torch.save(connector.state_dict(), 'connector.pth')."
        ) from error
    except (RuntimeError, EOFError, SafetensorError, ValueError, OSError) as error:
        raise UserError(
            f"the connector {path} cannot be read ({first_line_of(error)}). Copy it again, or save it again with "
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
    if part:  # LLaVA-NeXT has what ends a row of tiles beside its projector
        part.update((NEWLINE, value) for name, value in tensors.items() if name.rpartition(".")[2] == NEWLINE)
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
