"""`qwen-vqa quantize`: an 8- or 4-bit checkpoint that `qwen-vqa serve` loads by itself.

qwen-vqa quantize my-model --scheme int8 -o my-model-int8
"""

import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from qwen_vqa.plugin.checkpoint_files import adapter_folders
from qwen_vqa.plugin.command.installed_command import typed_command
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.quantization import RECORD_FILE
from qwen_vqa.quantize.adapters import carry_adapters, merge
from qwen_vqa.quantize.calibration import calibrate
from qwen_vqa.quantize.comparison_memory import most_memory_bytes
from qwen_vqa.quantize.demo_samples import DemoSamples
from qwen_vqa.quantize.layers import Selection
from qwen_vqa.quantize.options import GIB, Options, calibration_device, check
from qwen_vqa.quantize.quantised_checkpoint import write_quantised
from qwen_vqa.quantize.sample_sources import samples_of
from qwen_vqa.quantize.samples import UserSamples, longest_sample
from qwen_vqa.quantize.schemes.int4 import Int4
from qwen_vqa.quantize.schemes.scheme import Scheme, Tensors
from qwen_vqa.train.data.collator import Sample
from qwen_vqa.train.model.compute_device import CPU
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference


def quantise(options: Options) -> None:
    """Write the checkpoint, and what was done into its quantization.json."""
    options = replace(options, source=options.source.resolve(), output=options.output.resolve())
    scheme, selection = check(options)
    processor = load_processor(options.source)
    samples = samples_of(options.source, options.data, options.seed, processor)
    calibrating = Calibrating([], [])
    if scheme.calibrated:
        if samples is None:
            raise UserError("--scheme int4 is calibrated on your own data: pass --data, as for `train`.")
        calibrating = Calibrating(samples.calibration(options.samples), samples.identities(options.samples))
        device = calibration_device(options, selection, longest_sample(calibrating.samples, processor))
        calibrating = replace(calibrating, device=device)
    asks = options.adapter_check and not options.merge_adapter
    questions = adapter_questions(options, samples, calibrating.identities) if asks else None
    longest_sample(questions or [], processor)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    print(f"quantising {options.source}: {len(selection.shapes)} layers to {describe(scheme)}", flush=True)
    if questions:
        print(adapter_note(list(adapter_folders(options.source)), len(questions)), flush=True)
    if options.merge_adapter:
        with tempfile.TemporaryDirectory(dir=options.output.parent) as merged:
            merge(options.source, options.merge_adapter, Path(merged))
            _write(options, Path(merged), scheme, selection, calibrating)
    else:
        _write(options, options.source, scheme, selection, calibrating)
        found = carry_adapters(options, questions)
        record = json.loads((options.output / RECORD_FILE).read_text(encoding="utf-8"))
        (options.output / RECORD_FILE).write_text(json.dumps(record | {"adapters": found}, indent=2) + "\n")
    size = sum(path.stat().st_size for path in options.output.glob("*.safetensors"))
    before = sum(path.stat().st_size for path in options.source.glob("*.safetensors"))
    print(
        f"wrote {options.output}: {size / GIB:.3f} GiB of weights, {100 * size / before:.0f}% of the original's, in "
        f"{time.monotonic() - started:.0f} s and at most {most_memory_bytes() / GIB:.1f} GiB of memory\n"
        f"serve it: {typed_command()} serve {options.output}"
    )


@dataclass(frozen=True)
class Calibrating:
    """The samples that calibrate, what they are known by later, and where."""

    samples: list[Sample]
    identities: list[str]
    device: torch.device = CPU


def describe(scheme: Scheme) -> str:
    """The scheme as it was chosen."""
    groups = f" in groups of {scheme.group_size} (--group-size)" if isinstance(scheme, Int4) else ""
    return f"{scheme.name}{groups}"


def adapter_note(names: list[str], questions: int) -> str:
    """What checking the adapters will ask, said before it begins."""
    which = f"adapter {names[0]} is" if len(names) == 1 else f"{len(names)} adapters are"
    return (
        f"then {which} asked {questions:,} questions on the original base and as many on the quantised one, which can "
        "take minutes; --no-adapter-check leaves it out"
    )


def adapter_questions(
    options: Options, samples: UserSamples | DemoSamples | None, calibrated: list[str]
) -> list[Sample] | None:
    """Questions to measure adapters with, up to `--samples`, none of which calibrated; None where there are none."""
    if samples is None or not adapter_folders(options.source):
        return None
    if isinstance(samples, DemoSamples):
        return samples.adapter_questions(max(options.samples, 400))
    if len(samples.order) == len(calibrated):
        return None
    [questions] = samples.held_out(calibrated, options.samples).values()
    return questions


def _write(options: Options, source: Path, scheme: Scheme, selection: Selection, calibrating: Calibrating) -> None:
    calibrated: dict[str, Tensors] = {}
    if isinstance(scheme, Int4):
        model, processor = load_reference(source), load_processor(source)
        tuning = options.iterations, options.seed, calibrating.device
        calibrated = calibrate(model, processor, calibrating.samples, scheme, *tuning)
        del model
    record = options.record(scheme) | {"calibrated_on": calibrating.identities}
    with tqdm(total=len(selection.shapes), desc="writing", unit="layer") as progress:

        def tensors(layer: str, weight: torch.Tensor) -> Tensors:
            progress.update()
            return calibrated.pop(layer, None) or scheme.quantise(weight)

        write_quantised(source, options.output, scheme, selection, tensors, record)
