"""What `serve` looks at when the language model has 8 or 4 bits, in its checkpoint or made so while it loads."""

import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.quantization import BITSANDBYTES, FACTS, RECORD_FILE, why_not_served_here
from qwen_vqa.serving.checks import CheckedCheckpoint, checkpoint_dtype


def check_quantised(args: Namespace, checkpoint: CheckedCheckpoint) -> list[str]:
    """Look at the options that a quantised model narrows; returns what is to be said about its adapters.

    Raises:
        UserError: vLLM would fail, or give wrong answers, with these options.
    """
    scheme = checkpoint.scheme
    in_flight = scheme is None and args.quantization == BITSANDBYTES
    if in_flight:
        scheme = FACTS["nf4"]
        if reason := why_not_served_here(scheme):
            raise UserError(f"--quantization {BITSANDBYTES}: {reason}.")
    if scheme is None:
        return []
    dtype = checkpoint_dtype(checkpoint.folder) if args.dtype == "auto" else args.dtype
    if scheme.only_16_bits and dtype in ("float32", "float"):
        raise UserError(f"{scheme.name} is served beside 16 bits: pass --dtype bfloat16.")
    if scheme.method == BITSANDBYTES and not in_flight and args.tensor_parallel_size > 1:
        raise UserError(
            f"{scheme.name} checkpoints are not split between GPUs: leave --tensor-parallel-size out, or serve the "
            f"16-bit checkpoint with --quantization {BITSANDBYTES}, which is split before it is rounded."
        )
    names = {*checkpoint.adapters, *(module.name for module in args.lora_modules or [])}
    return list(_adapter_notes(checkpoint.folder, scheme.name, sorted(names)))


def _adapter_notes(folder: Path, scheme: str, names: list[str]) -> Iterator[str]:
    record = folder / RECORD_FILE
    measured = json.loads(record.read_text(encoding="utf-8")).get("adapters", {}) if record.is_file() else {}
    for name in names:
        row = (measured.get(name) or {}).get("accuracy")
        if row is None:
            yield f"adapter {name} was not measured on this {scheme} base; `qwen-vqa quantize --data` measures it"
        else:
            yield (
                f"adapter {name} on this {scheme} base: {row['quantised']:.1f}% right, {row['change']:+.1f} points "
                f"from the original base (n {row['n']})"
            )
