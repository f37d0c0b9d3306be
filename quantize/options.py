"""What `qwen-vqa quantize` was asked to do, checked once, before anything long starts."""

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig

from qwen_vqa.plugin.checkpoint_files import adapter_folders, check_checkpoint
from qwen_vqa.plugin.command.installed_command import how_to_install
from qwen_vqa.plugin.command.output_folder import check_new, check_writable
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.hub_checkpoint import checkpoint_name
from qwen_vqa.plugin.quantization import (
    BITSANDBYTES,
    FACTS,
    quantization_config,
    scheme_of,
    schemes_served_here,
    why_not_served_here,
)
from qwen_vqa.plugin.registration import register_for_transformers
from qwen_vqa.quantize.calibration import BATCH, check_calibrates
from qwen_vqa.quantize.layers import Selection, meta_model, select_layers, tensor_sizes
from qwen_vqa.quantize.quantised_checkpoint import PARTIAL
from qwen_vqa.quantize.schemes.scheme import Scheme, check_scheme, largest_group_size, make_scheme
from qwen_vqa.train.model.compute_device import GIB, chosen_device, device_with_room

FLOATING = ("float32", "bfloat16", "float16")
# Libraries and what they keep: with it, a 3B comes to the 11.1 GiB that its calibration was seen to take.
CALIBRATION_OVERHEAD = 3 * GIB // 2
# In float32 one layer, its roundings, their gradients and best values.
COPIES_OF_A_LAYER = 6
# Float32 values that a token leaves in a layer for the backward pass, in widths of the hidden states and of the MLP: 9
# and 4 are kept (counted on Qwen2's layer by torch's saved_tensors_hooks), and gradients stand beside them.
HIDDEN_FOR_BACKWARD, INTERMEDIATE_FOR_BACKWARD = 10, 6


@dataclass(frozen=True)
class Options:
    """The job.

    Attributes:
        source: checkpoint folder in 16 (or 32) bits.
        output: folder to write; it must not exist, or be empty.
        scheme: a name in `plugin.quantization.FACTS`.
        encoder: quantise the vision encoder, too.
        group_size: inputs that share a scale (int4); None for the largest that divides all layers.
        samples: conversations that calibrate (int4), and that measure adapters.
        iterations: tuning steps a layer (int4).
        data: a data set as `train --data` names it; None for the demo's own pictures.
        seed: of the samples' order and of the tuning.
        merge_adapter: name of an adapter that is merged in 16 bits before the weights are rounded.
        adapter_bound: percentage points of answers that an adapter may lose on the quantised base.
        adapter_check: measure adapters on the quantised base before they are taken over.
        elsewhere: the checkpoint is for another machine.
        device: where int4 is calibrated and adapters are measured, as `--device` takes it.
    """

    source: Path
    output: Path
    scheme: str
    encoder: bool = False
    group_size: int | None = None
    samples: int = 128
    iterations: int = 200
    data: str | None = None
    seed: int = 0
    merge_adapter: str | None = None
    adapter_bound: float = 2.0
    adapter_check: bool = True
    elsewhere: bool = False
    device: str = "auto"

    def record(self, scheme: Scheme) -> dict[str, Any]:
        """For the checkpoint's quantization.json; the checkpoint by its last name alone."""
        fields = asdict(self)
        for name in ("output", "elsewhere", "device"):
            del fields[name]
        fields["group_size"] = getattr(scheme, "group_size", None)
        return fields | {"source": checkpoint_name(self.source), "data": self.data or "demo"}


def check(options: Options) -> tuple[Scheme, Selection]:
    """The scheme and the layers it is for.

    Raises:
        UserError: the job cannot be done, and what to do instead.
    """
    check_scheme(options.scheme)
    chosen_device(options.device)
    check_checkpoint(options.source)
    check_not_quantised(options.source)
    check_new(options.output, leftovers=(PARTIAL,))  # of a run that was killed
    _check_machine(options)
    for name in ("samples", "iterations"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: it must be at least 1.")
    if not options.adapter_bound >= 0:  # NaN, too
        raise UserError(f"--adapter-bound {options.adapter_bound:g}: it must be 0 points or more.")
    if options.merge_adapter is not None and options.merge_adapter not in adapter_folders(options.source):
        names = ", ".join(adapter_folders(options.source)) or "none"
        raise UserError(f"--merge-adapter {options.merge_adapter}: {options.source}/adapters has {names}.")
    register_for_transformers()
    selection = select_layers(options.source, options.encoder)
    group_size = options.group_size
    scheme = make_scheme(options.scheme, largest_group_size(selection.shapes) if group_size is None else group_size)
    scheme.check_shapes(selection.shapes)
    needed = output_bytes(options.source, scheme, selection)
    if options.merge_adapter:  # the merged 16-bit checkpoint stands beside it for a while
        needed += sum(tensor_sizes(options.source).values())
    check_writable(options.output, needed)
    if scheme.calibrated:
        model = meta_model(options.source)
        check_calibrates(model.config.text_config.model_type, model.language_model)
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
        raise UserError(f"--scheme {options.scheme} needs {package.replace('_', '-')}: {how_to_install('quantize')}")
    reason = None if options.elsewhere else why_not_served_here(facts)
    if reason:
        raise UserError(
            f"{reason}. It is served by: {facts.served_by}. Here: {', '.join(schemes_served_here())}. "
            "Pass --elsewhere to make it for another machine."
        )


def output_bytes(source: Path, scheme: Scheme, selection: Selection) -> int:
    """Bytes of weights that a checkpoint will have in a scheme, within a percent or two."""
    kept = sum(size for name, size in tensor_sizes(source).items() if selection.layer_of(name) is None)
    return kept + int(sum(rows * width for rows, width in selection.shapes.values()) * scheme.bits / 8)


def calibration_device(options: Options, selection: Selection, longest: int) -> torch.device:
    """Where calibration runs, with samples of up to `longest` tokens; on a GPU, the weights stay in the CPU's memory.

    Raises:
        UserError: more memory is needed than is free there.
    """
    hidden, _ = calibration_bytes(options, selection, longest)
    tuned = hidden + tuning_bytes(options, selection, longest) + GIB  # of which CUDA itself takes a part
    device = device_with_room(options.device, tuned, "calibrating", "lower --samples")
    check_memory(options, selection, longest, on_gpu=tuned if device.type == "cuda" else 0)
    return device


def check_memory(options: Options, selection: Selection, longest: int, on_gpu: int = 0) -> None:
    """Raises UserError where calibration needs more memory than is free, beside what it has `on_gpu` in bytes."""
    hidden, rest = calibration_bytes(options, selection, longest)
    available = psutil.virtual_memory().available
    if hidden + rest - on_gpu > available:
        raise UserError(
            f"not enough memory to calibrate: about {(hidden + rest) / GIB:.1f} GiB are needed, {hidden / GIB:.1f} of "
            f"them for {options.samples} samples of up to {longest} tokens, and {available / GIB:.1f} are free. Lower "
            "--samples, leave the longest samples out of --data, or take --scheme int8 or nf4, which need no "
            "calibration."
        )


def calibration_bytes(options: Options, selection: Selection, longest: int) -> tuple[int, int]:
    """About what calibration holds at once: for the samples, and beside them.

    Every sample, as long as the longest, has its hidden states three times in float32: before a layer, behind it, and
    behind its quantised form. Beside them stand the weights as they are stored, of which the system can take back what
    is read from the file, those that are rounded, until all are written, a layer in float32 with what it is tuned by,
    and what a batch leaves for the backward pass.
    """
    text = AutoConfig.from_pretrained(options.source).text_config
    weights = sum(tensor_sizes(options.source).values())
    hidden = 3 * 4 * options.samples * longest * text.hidden_size
    numbers = sum(rows * width for rows, width in selection.shapes.values())
    group_size = options.group_size or largest_group_size(selection.shapes)
    rounded = int(numbers * make_scheme(options.scheme, group_size).bits / 8)
    return hidden, weights + rounded + CALIBRATION_OVERHEAD + tuning_bytes(options, selection, longest)


def tuning_bytes(options: Options, selection: Selection, longest: int) -> int:
    """About what tuning a layer takes beside the samples' hidden states: the layer itself, and a batch's backward."""
    text = AutoConfig.from_pretrained(options.source).text_config
    layer = COPIES_OF_A_LAYER * 4 * sum(rows * width for rows, width in selection.shapes.values())
    widths = HIDDEN_FOR_BACKWARD * text.hidden_size + INTERMEDIATE_FOR_BACKWARD * text.intermediate_size
    return layer // text.num_hidden_layers + 4 * min(BATCH, options.samples) * longest * widths
