"""What `serve` looks at when the language model has 8 or 4 bits, in its checkpoint or made so while it loads."""

import json
from argparse import Namespace
from pathlib import Path

from qwen_vqa.plugin.checkpoint_files import ADAPTER_FOLDER
from qwen_vqa.plugin.checkpoint_memory import checkpoint_dtype
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.quantization import BITSANDBYTES, FACTS, RECORD_FILE, SchemeFacts, why_not_served_here
from qwen_vqa.serving.checked_checkpoint import CheckedCheckpoint


def check_quantised(args: Namespace, checkpoint: CheckedCheckpoint) -> list[str]:
    """Look at the options that a quantised model narrows; returns what is to be said about it.

    Raises:
        UserError: vLLM would fail, or give wrong answers, with these options.
    """
    scheme = scheme_in_memory(args, checkpoint)
    if scheme is None:
        return []
    in_flight = checkpoint.scheme is None
    if in_flight and (reason := why_not_served_here(scheme)):
        raise UserError(f"--quantization {BITSANDBYTES}: {reason}.")
    dtype = checkpoint_dtype(checkpoint.folder) if args.dtype == "auto" else args.dtype
    if scheme.refuses(dtype):
        raise UserError(f"{scheme.name} is served beside 16 bits here: pass --dtype bfloat16.")
    if scheme.one_gpu and not in_flight and args.tensor_parallel_size > 1:
        raise UserError(
            f"{scheme.name} checkpoints are not split between GPUs: leave --tensor-parallel-size out, or serve the "
            f"16-bit checkpoint with --quantization {BITSANDBYTES}, which is split before it is rounded."
        )
    adapters = {module.name: Path(module.path) for module in args.lora_modules or []} | checkpoint.adapters
    return [adapter_note(checkpoint.folder, scheme, name, path) for name, path in sorted(adapters.items())]


def scheme_in_memory(args: Namespace, checkpoint: CheckedCheckpoint) -> SchemeFacts | None:
    """How the model is quantised once it is loaded: as its checkpoint is, or in flight; None when it is not."""
    if checkpoint.scheme is None and args.quantization == BITSANDBYTES:
        return FACTS["nf4"]
    return checkpoint.scheme


def adapter_note(folder: Path, scheme: SchemeFacts, name: str, path: Path) -> str:
    """What quantising measured of an adapter on the checkpoint in `folder`, or that nothing is known of it."""
    row = (_measured(folder).get(name) or {}).get("accuracy")
    own = (folder / ADAPTER_FOLDER / name).resolve()
    if row is None or path.resolve() != own:
        return (
            f"adapter {name} was not measured on this {scheme.name} base: its answers may be worse than on the 16-bit "
            "base; `qwen-vqa quantize --data` measures it"
        )
    return (
        f"adapter {name} on this {scheme.name} base: {row['quantised']:.1f}% right, {row['change']:+.1f} points "
        f"from the original base (n {row['n']})"
    )


def _measured(folder: Path) -> dict[str, dict]:
    record = folder / RECORD_FILE
    return json.loads(record.read_text(encoding="utf-8")).get("adapters", {}) if record.is_file() else {}
