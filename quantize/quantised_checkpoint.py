"""A quantised checkpoint folder: written from one in 16 bits tensor by tensor, and read back as the reference."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig
from transformers.initialization import no_init_weights

from qwen_vqa.plugin.checkpoint_files import ADAPTER_FOLDER, check_checkpoint, weight_files
from qwen_vqa.plugin.command.file_mode import give_usual_mode
from qwen_vqa.plugin.config import VISION_WEIGHTS
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.quantization import FACTS, RECORD_FILE, quantization_config
from qwen_vqa.quantize.layers import Selection, select_layers, tensors_of
from qwen_vqa.quantize.schemes.scheme import Scheme, Tensors, scheme_from_config
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration

SHARD_BYTES = 4 * 10**9
PARTIAL = ".partial"
INDEX_FILE = "model.safetensors.index.json"


def write_quantised(
    source: Path,
    output: Path,
    scheme: Scheme,
    selection: Selection,
    quantise: Callable[[str, torch.Tensor], Tensors],
    record: dict[str, Any],
) -> None:
    """Write a checkpoint like `source` whose selected layers hold what `quantise(layer, weight)` gives.

    The folder appears under its name only when it is whole; in an empty one that is there, config.json comes last.
    Adapters are not copied.
    """
    exists = output.is_dir()  # perhaps as a mount point, or somebody's working directory: it stays
    partial = output / PARTIAL if exists else output.with_name(f".{output.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        weights = {path.name for path in weight_files(source)} | {INDEX_FILE, RECORD_FILE, ADAPTER_FOLDER}
        for path in source.iterdir():
            if path.name not in weights and path.is_file():
                shutil.copyfile(path, partial / path.name)
        save_shards(partial, _quantised(source, selection, quantise))
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        config["quantization_config"] = scheme.config(selection.skipped)
        if FACTS[scheme.name].only_16_bits and config.get("dtype") == "float32":
            config["dtype"] = "bfloat16"  # as which the server then takes what is not quantised
        if any(layer.startswith(VISION_WEIGHTS) for layer in selection.shapes):
            config["vision_in_float32"] = False  # CUDA's kernels for 8 bits give 16-bit numbers alone
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (partial / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if not exists:
            partial.rename(output)
            return
        for path in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
            path.rename(output / path.name)
        partial.rmdir()
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _quantised(
    source: Path, selection: Selection, quantise: Callable[[str, torch.Tensor], Tensors]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in tensors_of(source):
        layer = selection.layer_of(name)
        if layer is None:
            yield name, tensor
            continue
        for leaf, part in quantise(layer, tensor).items():
            yield f"{layer}.{leaf}", part


def save_shards(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], shard_bytes: int = SHARD_BYTES) -> None:
    """Tensors to `model.safetensors`, or to several files and an index; one file's worth is in memory at a time."""
    shards: list[list[str]] = []
    pending: Tensors = {}
    total = 0

    def flush() -> None:
        save_file(pending, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if pending and sum(t.numel() * t.element_size() for t in pending.values()) + size > shard_bytes:
            flush()
        pending[name] = tensor.contiguous()
        total += size
    flush()
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / "model.safetensors")
        give_usual_mode(folder)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    give_usual_mode(folder)


class RoundedLinear(nn.Linear):
    """A Linear whose weight was quantised and turned back, and whose input is rounded as the kernel rounds it."""

    scheme: Scheme

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]"""
        return super().forward(self.scheme.round_activations(inputs))


def load_dequantised(folder: Path, dtype: torch.dtype | None = None) -> QwenVqaForConditionalGeneration:
    """The reference model of a quantised checkpoint, its weights turned back into floating point.

    Args:
        dtype: of the model's weights (default: the checkpoint's).

    Raises:
        UserError: the checkpoint is not quantised, or not by one of our schemes.
    """
    check_checkpoint(folder)
    config_fields = quantization_config(folder)
    if config_fields is None:
        raise UserError(f"{folder} is not quantised.")
    scheme = scheme_from_config(config_fields)
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    dtype = dtype or config.dtype
    with torch.device("meta"), no_init_weights():
        model = QwenVqaForConditionalGeneration(config)
    selection = select_layers(folder, encoder=_encoder_is_quantised(folder))
    vision_dtype = torch.float32 if config.vision_in_float32 else dtype
    state = dict(_dequantised(folder, scheme, selection, dtype, vision_dtype))
    for name in selection.shapes:
        _make_rounded(model.get_submodule(name), scheme)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing:
        raise UserError(f"the weights in {folder} do not fit its config.json; missing: {', '.join(missing[:20])}.")
    _restore_buffers(model, config)
    return model.eval()


class DequantisedLayers:
    """The quantised layers of a checkpoint, in memory one at a time.

    Attributes:
        names: of the layers.
        scheme: which rounds what goes into them.
    """

    def __init__(self, folder: Path) -> None:
        check_checkpoint(folder)
        fields = quantization_config(folder)
        if fields is None:
            raise UserError(f"{folder} is not quantised.")
        self.scheme = scheme_from_config(fields)
        self.names = tuple(select_layers(folder, encoder=_encoder_is_quantised(folder)).shapes)
        self._files = {name: path for path in weight_files(folder) for name in _names(path)}

    def weight(self, layer: str) -> torch.Tensor:
        """[out, in] in float32"""
        parts: Tensors = {}
        for name, path in self._files.items():
            leaf = name.removeprefix(f"{layer}.")
            if leaf != name and leaf.startswith(self.scheme.tensor_names()):
                with safe_open(path, "pt") as file:
                    parts[leaf] = file.get_tensor(name)
        return self.scheme.dequantise(parts)


def _make_rounded(layer: nn.Module, scheme: Scheme) -> None:
    layer.__class__ = RoundedLinear
    layer.scheme = scheme  # type: ignore[assignment] # a plain attribute, no module


def _encoder_is_quantised(folder: Path) -> bool:
    names = (name for path in weight_files(folder) for name in _names(path))
    leaves = ("weight_scale", "SCB", "absmax")
    return any(name.startswith("vision_encoder.") and name.endswith(leaves) for name in names)


def _names(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return list(file.keys())


def _dequantised(
    folder: Path, scheme: Scheme, selection: Selection, dtype: torch.dtype, vision_dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    parts: dict[str, Tensors] = {}
    layers = sorted(selection.shapes, key=len, reverse=True)
    owners = {f"{layer}.": layer for layer in layers}
    for name, tensor in tensors_of(folder):
        owner = next((layer for prefix, layer in owners.items() if name.startswith(prefix)), None)
        leaf = name.removeprefix(f"{owner}.") if owner else name
        if owner is None or not leaf.startswith(scheme.tensor_names()):
            yield name, tensor.to(vision_dtype if name.startswith(VISION_WEIGHTS) else dtype)
        else:
            parts.setdefault(owner, {})[leaf] = tensor
    for layer in list(parts):
        yield f"{layer}.weight", scheme.dequantise(parts.pop(layer)).to(dtype)


def _restore_buffers(model: nn.Module, config: Any) -> None:
    """Rotary frequencies and the like are computed, not stored; the meta device left them empty."""
    for module in model.modules():
        empty = [key for key, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        if empty:
            fresh = type(module)(config.text_config)
            for key in empty:
                module.register_buffer(key, getattr(fresh, key), persistent=False)
