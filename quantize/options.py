"""What `qwen-vqa quantize` was asked to do, checked once, before anything long starts."""

import shutil
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from transformers import AutoConfig

from qwen_vqa.plugin.checkpoint import adapter_folders, check_checkpoint
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.quantization import (
    BITSANDBYTES,
    FACTS,
    quantization_config,
    scheme_of,
    schemes_served_here,
    why_not_served_here,
)
from qwen_vqa.plugin.registration import register_for_transformers
from qwen_vqa.quantize.layers import Selection, select_layers, tensor_sizes
from qwen_vqa.quantize.scheme import Scheme, check_scheme, make_scheme

GIB = 2**30
BITS = {"int8": 8.0, "int4": 4.25, "nf4": 4.13, "int8-bnb": 8.0, "fp8": 8.0}
FLOATING = ("float32", "bfloat16", "float16")
# Libraries and batches, and in float32 one layer, its roundings, their gradients and best values.
CALIBRATION_OVERHEAD = GIB
COPIES_OF_A_LAYER = 6


@dataclass(frozen=True)
class Options:
    """The job.

    Attributes:
        source: checkpoint folder in 16 (or 32) bits.
        output: folder to write; it must not exist, or be empty.
        scheme: a name in `plugin.quantization.FACTS`.
        encoder: quantise the vision encoder, too.
        group_size: inputs that share a scale (int4).
        samples: conversations that calibrate (int4), and that measure adapters.
        iterations: tuning steps a layer (int4).
        data: a data set as `train --data` names it; None for the demo's own pictures.
        seed: of the samples' order and of the tuning.
        merge_adapter: name of an adapter that is merged in 16 bits before the weights are rounded.
        adapter_bound: percentage points of answers that an adapter may lose on the quantised base.
        elsewhere: the checkpoint is for another machine.
    """

    source: Path
    output: Path
    scheme: str
    encoder: bool = False
    group_size: int = 128
    samples: int = 128
    iterations: int = 200
    data: str | None = None
    seed: int = 0
    merge_adapter: str | None = None
    adapter_bound: float = 2.0
    elsewhere: bool = False

    def record(self) -> dict[str, Any]:
        """For the checkpoint's quantization.json; paths by their last name alone."""
        fields = asdict(self)
        for name in ("output", "elsewhere"):
            del fields[name]
        return fields | {"source": self.source.resolve().name, "data": self.data or "demo"}


def check(options: Options) -> tuple[Scheme, Selection]:
    """The scheme and the layers it is for.

    Raises:
        UserError: the job cannot be done, and what to do instead.
    """
    check_scheme(options.scheme)
    check_checkpoint(options.source)
    check_not_quantised(options.source)
    if options.output.exists() and (not options.output.is_dir() or any(options.output.iterdir())):
        raise UserError(f"the output folder {options.output} exists and is not empty; give another -o.")
    _check_machine(options)
    for name in ("samples", "iterations"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: it must be at least 1.")
    if options.merge_adapter is not None and options.merge_adapter not in adapter_folders(options.source):
        names = ", ".join(adapter_folders(options.source)) or "none"
        raise UserError(f"--merge-adapter {options.merge_adapter}: {options.source}/adapters has {names}.")
    scheme = make_scheme(options.scheme, options.group_size)
    register_for_transformers()
    selection = select_layers(options.source, options.encoder)
    scheme.check_shapes(selection.shapes)
    _check_disk(options, selection)
    if scheme.calibrated:
        _check_memory(options, selection)
    return scheme, selection


def check_not_quantised(folder: Path) -> None:
    """Raises UserError for a checkpoint that is quantised already."""
    config = quantization_config(folder)
    if config is None:
        return
    try:
        what = scheme_of(config).name
    except UserError:
        what = str(config.get("quant_method"))
    raise UserError(
        f"{folder} is quantised already ({what}): rounding twice only loses. Give the 16-bit checkpoint that it was "
        "made from."
    )


def _check_machine(options: Options) -> None:
    facts = FACTS[options.scheme]
    package = {"int4": "auto_round"}.get(options.scheme) or ("bitsandbytes" if facts.method == BITSANDBYTES else None)
    if package and find_spec(package) is None:
        raise UserError(
            f"--scheme {options.scheme} needs {package.replace('_', '-')}: `pip install 'qwen-vqa[quantize]'`."
        )
    reason = None if options.elsewhere else why_not_served_here(facts)
    if reason:
        raise UserError(
            f"{reason}. It is served by: {facts.served_by}. Here: {', '.join(schemes_served_here())}. "
            "Pass --elsewhere to make it for another machine."
        )


def _check_disk(options: Options, selection: Selection) -> None:
    needed = output_bytes(options.source, options.scheme, selection)
    if options.merge_adapter:  # the merged 16-bit checkpoint stands beside it for a while
        needed += sum(tensor_sizes(options.source).values())
    folder = next(parent for parent in options.output.resolve().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"not enough disk: the checkpoint needs {needed / GIB:.2f} GiB, and {folder} has {free / GIB:.2f} free. "
            "Free some, or give an -o on another disk."
        )


def output_bytes(source: Path, scheme: str, selection: Selection) -> int:
    """Bytes of weights that a checkpoint will have in a scheme, within a percent or two."""
    kept = sum(size for name, size in tensor_sizes(source).items() if selection.layer_of(name) is None)
    return kept + int(sum(rows * width for rows, width in selection.shapes.values()) * BITS[scheme] / 8)


def _check_memory(options: Options, selection: Selection) -> None:
    """Calibration holds the model as it is stored, and all samples' hidden states three times in float32."""
    config = AutoConfig.from_pretrained(options.source).text_config
    weights = sum(tensor_sizes(options.source).values())
    positions = min(config.max_position_embeddings, 512)
    hidden = 3 * 4 * options.samples * positions * config.hidden_size
    layer = sum(rows * width for rows, width in selection.shapes.values()) // config.num_hidden_layers
    needed = weights + hidden + CALIBRATION_OVERHEAD + COPIES_OF_A_LAYER * 4 * layer
    available = psutil.virtual_memory().available
    if needed > available:
        raise UserError(
            f"not enough memory to calibrate: about {needed / GIB:.1f} GiB are needed ({weights / GIB:.1f} of weights, "
            f"{hidden / GIB:.1f} of samples), and {available / GIB:.1f} are free. Lower --samples, or take --scheme "
            "int8 or nf4, which need no calibration."
        )
