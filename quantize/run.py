"""`qwen-vqa quantize`: an 8- or 4-bit checkpoint that `qwen-vqa serve` loads by itself.

qwen-vqa quantize my-model --scheme int8 -o my-model-int8
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

from qwen_vqa.plugin.checkpoint import adapter_folders
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.quantization import FACTS, RECORD_FILE
from qwen_vqa.quantize.adapters import carry_adapters
from qwen_vqa.quantize.checkpoint import write_quantised
from qwen_vqa.quantize.int4 import Int4
from qwen_vqa.quantize.layers import Selection
from qwen_vqa.quantize.options import GIB, Options, check
from qwen_vqa.quantize.samples import DemoSamples, Sample, UserSamples
from qwen_vqa.quantize.scheme import Scheme, Tensors
from qwen_vqa.quantize.sources import demo_checkpoint, samples_of
from qwen_vqa.train.adapter import attach_adapter
from qwen_vqa.train.checkpoint import load_processor, load_reference, save_checkpoint

HELP = """\
Turn a checkpoint's language model into 8 or 4 bits. Encoder, connector and output layer stay in 16 bits, and so do
the embeddings. Without CHECKPOINT: the bundled demo. `qwen-vqa quantize report A B` measures what was gained and lost.
"""
EPILOG = """\
examples:
  qwen-vqa quantize my-model --scheme int8 -o my-model-int8
  qwen-vqa quantize my-model --scheme int4 --data train.jsonl -o my-model-int4
  qwen-vqa quantize report my-model my-model-int8 --data train.jsonl
"""


def main(argv: list[str]) -> int:
    """`qwen-vqa quantize`, and `qwen-vqa quantize report`.

    Raises:
        UserError: the job cannot be done, said before any long work.
    """
    if argv[:1] == ["report"]:
        from qwen_vqa.quantize.report import main as report

        return report(argv[1:])
    args = vars(parser().parse_args(argv))
    wants_report = args.pop("report")
    options = Options(**{**args, "source": args["source"] or demo_checkpoint()})
    quantise(options)
    if wants_report:
        from qwen_vqa.quantize.report import main as report

        data = ["--data", options.data] if options.data else []
        return report([str(options.source), str(options.output), "--seed", str(options.seed), *data])
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags of `qwen-vqa quantize`."""
    schemes = "\n".join(f"  {f.name:<10s}{f.summary}; served by {f.served_by}" for f in FACTS.values())
    made = argparse.ArgumentParser(
        prog="qwen-vqa quantize",
        description=f"{HELP}\nschemes:\n{schemes}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("source", nargs="?", type=Path, metavar="CHECKPOINT", help="checkpoint folder (default: the bundled demo)")
    add("--scheme", required=True, choices=list(FACTS), help="see above")
    add("-o", "--output", required=True, type=Path, metavar="DIR", help="the checkpoint folder to write")
    add("--encoder", action="store_true", help="quantise the vision encoder, too (int4: without calibration)")
    add("--group-size", type=int, default=128, help="int4: inputs that share a scale (default: %(default)s)")
    add("--data", help="conversations, as `train --data` names them (default, for the demo: its own pictures)")
    add("--samples", type=int, default=128, help="int4: conversations to calibrate with (default: %(default)s)")
    add("--iterations", type=int, default=200, help="int4: tuning steps for each layer (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the samples' order and of the tuning (default: %(default)s)")
    add("--merge-adapter", metavar="NAME", help="merge adapters/NAME in 16 bits first; no adapter is kept apart then")
    add(
        "--adapter-bound",
        type=float,
        default=2.0,
        metavar="POINTS",
        help="leave out adapters that lose more right answers than this on the quantised base (default: %(default)s)",
    )
    add("--elsewhere", action="store_true", help="make it although this machine cannot serve it")
    add(
        "--report", action="store_true", help="measure it against the original afterwards, see `quantize report --help`"
    )
    return made


def quantise(options: Options) -> None:
    """Write the checkpoint, and what was done into its quantization.json."""
    scheme, selection = check(options)
    samples = samples_of(options.source, options.data, options.seed)
    if scheme.calibrated:
        if samples is None:
            raise UserError("--scheme int4 is calibrated on your own data: pass --data, as for `train`.")
        samples.check(options.samples)
    questions = None if options.merge_adapter else adapter_questions(options, samples)
    started = time.monotonic()
    print(f"quantising {options.source}: {len(selection.shapes)} layers to {options.scheme}", flush=True)
    if options.merge_adapter:
        with tempfile.TemporaryDirectory(dir=options.output.resolve().parent) as merged:
            merge(options.source, options.merge_adapter, Path(merged))
            _write(options, Path(merged), scheme, selection, samples)
    else:
        _write(options, options.source, scheme, selection, samples)
        found = carry_adapters(options.source, options.output, questions, options.adapter_bound)
        record = json.loads((options.output / RECORD_FILE).read_text(encoding="utf-8"))
        (options.output / RECORD_FILE).write_text(json.dumps(record | {"adapters": found}, indent=2) + "\n")
    size = sum(path.stat().st_size for path in options.output.glob("*.safetensors"))
    before = sum(path.stat().st_size for path in options.source.glob("*.safetensors"))
    print(
        f"wrote {options.output}: {size / GIB:.3f} GiB of weights, {100 * size / before:.0f}% of the original's, in "
        f"{time.monotonic() - started:.0f} s\nserve it: qwen-vqa serve {options.output}"
    )


def adapter_questions(options: Options, samples: UserSamples | DemoSamples | None) -> list[Sample] | None:
    """Questions to measure adapters with, up to `--samples`, none of which calibrated; None where there are none."""
    if samples is None or not adapter_folders(options.source):
        return None
    if isinstance(samples, DemoSamples):
        return samples.adapter_questions(max(options.samples, 400))
    calibrated = options.samples if options.scheme == "int4" else 0
    if len(samples.order) == calibrated:
        return None
    [questions] = samples.held_out(calibrated, options.samples).values()
    return questions


def merge(source: Path, name: str, output: Path) -> None:
    """A copy of a checkpoint with an adapter merged into its weights, in their own dtype."""
    model = load_reference(source)
    model.language_model = attach_adapter(model.language_model, adapter_folders(source)[name]).merge_and_unload()
    save_checkpoint(output, model, load_processor(source))
    print(f"merged adapter {name} in {str(model.dtype).removeprefix('torch.')}", flush=True)


def _write(
    options: Options,
    source: Path,
    scheme: Scheme,
    selection: Selection,
    samples: UserSamples | DemoSamples | None,
) -> None:
    calibrated: dict[str, Tensors] = {}
    if isinstance(scheme, Int4) and samples is not None:
        from qwen_vqa.quantize.calibration import calibrate

        chosen = samples.calibration(options.samples)
        model = load_reference(source)
        calibrated = calibrate(model, load_processor(source), chosen, scheme, options.iterations, options.seed)
        del model
    with tqdm(total=len(selection.shapes), desc="writing", unit="layer") as progress:

        def tensors(layer: str, weight: torch.Tensor) -> Tensors:
            progress.update()
            return calibrated.pop(layer, None) or scheme.quantise(weight)

        write_quantised(source, options.output, scheme, selection, tensors, options.record())
