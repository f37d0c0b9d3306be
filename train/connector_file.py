"""Connector weights as people have them: the original's, LLaVA's, ours; .pth, .bin or .safetensors."""

import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from qwen_vqa.plugin.errors import UserError

_PREFIXES = re.compile(r"^(module\.|model\.|base_model\.|mm_projector\.|multi_modal_projector\.|connector\.)+")
# Linear, GELU, Linear as an nn.Sequential has its Linears at 0 and 2.
_NAMES = {
    "0.weight": "linear_1.weight",
    "0.bias": "linear_1.bias",
    "2.weight": "linear_2.weight",
    "2.bias": "linear_2.bias",
}
_EXPECTED = sorted(_NAMES.values())


def load_connector(path: str | Path) -> dict[str, torch.Tensor]:
    """The connector's four tensors under the names `linear_1/2.weight/bias`.

    Takes `0.* 2.*` (the original's final_connector.pth), `model.mm_projector.0/2.*` (LLaVA's
    mm_projector.bin) and `linear_1/2.*` (transformers, ours), with or without a wrapper's prefix.

    Raises:
        UserError: no such file, not a file of tensors, or other tensors than these four.
    """
    path = Path(path)
    found = _read(path)
    connector = {}
    for name, tensor in found.items():
        short = _PREFIXES.sub("", name)
        connector[_NAMES.get(short, short)] = tensor
    if sorted(connector) != _EXPECTED or len(connector) != len(found):
        raise UserError(
            f"the connector {path} holds {', '.join(sorted(found)) or 'no tensors'}; expected four tensors: "
            "0.weight 0.bias 2.weight 2.bias (or the same under model.mm_projector. or as linear_1/linear_2). "
            "A connector of another depth is not supported."
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


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise UserError(f"no connector at {path}: there is no such file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError, ValueError) as error:
        raise UserError(
            f"the connector {path} cannot be read as weights alone ({str(error).splitlines()[0]}). "
            "Save it with torch.save(connector.state_dict(), ...): pickled modules are not opened, "
            "since a pickle can run code."
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"the connector {path} is not a dict of tensors: save the module's state_dict().")
    return state
