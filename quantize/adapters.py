"""Adapters trained on the 16-bit base, on the quantised one: measured, and left out where they lose too much."""

import shutil
from pathlib import Path
from typing import Any

from qwen_vqa.plugin.checkpoint_files import ADAPTER_FOLDER, adapter_folders
from qwen_vqa.plugin.command.file_mode import give_usual_mode
from qwen_vqa.quantize.answer_quality import compare
from qwen_vqa.quantize.comparison_memory import comparison_device, comparison_dtype
from qwen_vqa.quantize.options import Options
from qwen_vqa.quantize.quantised_checkpoint import load_dequantised
from qwen_vqa.train.data.collator import Sample
from qwen_vqa.train.model.adapter_merging import merge_in_place
from qwen_vqa.train.model.reference_adapter import attach_adapter
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference, save_checkpoint
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration


def measure_adapter(
    source: Path, quantised: Path, adapter: Path, questions: list[Sample], asked_device: str = "auto"
) -> dict[str, Any]:
    """Accuracy and KL divergence of the adapter on the original base and on the quantised one."""
    device = comparison_device(source, asked_device)
    dtype = comparison_dtype(source, device)

    def adapted(model: QwenVqaForConditionalGeneration) -> QwenVqaForConditionalGeneration:
        model.language_model = attach_adapter(model.language_model, adapter)
        return model.to(device)

    return compare(
        lambda: adapted(load_reference(source, dtype)),
        lambda: adapted(load_dequantised(quantised, dtype)),
        load_processor(source),
        {adapter.name: questions},
    )


def merge(source: Path, name: str, output: Path) -> None:
    """A copy of a checkpoint with an adapter merged into its weights, in their own dtype."""
    model = load_reference(source)
    adapted = attach_adapter(model.language_model, adapter_folders(source)[name])
    model.language_model, _, _ = merge_in_place(adapted, name)
    model.config.trained_adapter = None
    save_checkpoint(output, model, load_processor(source))
    print(f"merged adapter {name} in {str(model.dtype).removeprefix('torch.')}", flush=True)


def carry_adapters(options: Options, questions: list[Sample] | None) -> dict[str, dict[str, Any]]:
    """Copy the adapters that keep their accuracy within the bound; returns what was found of each.

    Without questions to measure on, or where none of them is answered right on the original base, an adapter is copied
    and marked as not measured; the server says so then.
    """
    source, quantised, bound = options.source, options.output, options.adapter_bound
    found: dict[str, dict[str, Any]] = {}
    for name, folder in adapter_folders(source).items():
        entry: dict[str, Any] = {"measured": questions is not None, "bound": bound, "served": True}
        entry["checked"] = options.adapter_check
        if questions is not None:
            result = measure_adapter(source, quantised, folder, questions, options.device)
            row = result["accuracy"][name]
            entry["kl"] = result["kl"]
            if row["original"] == 0:
                entry["measured"] = False
            else:
                entry |= {"accuracy": row, "served": row["change"] >= -bound}
        if entry["served"]:
            shutil.copytree(folder, quantised / ADAPTER_FOLDER / name)
            give_usual_mode(quantised / ADAPTER_FOLDER / name)
        found[name] = entry
        print(f"adapter {name}: {describe(entry)}")
    return found


def describe(entry: dict[str, Any]) -> str:
    """One line about an adapter on a quantised base."""
    if not entry["measured"] and "kl" in entry:
        return (
            f"not measured on the quantised base, although it is kept: of {entry['kl']['prompts']} questions it "
            "answers none right on the original base, so they do not suit it; pass --data with questions that do"
        )
    if not entry["checked"]:
        return "not measured on the quantised base (--no-adapter-check)"
    if not entry["measured"]:
        return "not measured on the quantised base: pass --data with more questions than calibrate"
    row = entry["accuracy"]
    text = (
        f"{row['original']:.1f}% right on the original base, {row['quantised']:.1f}% on the quantised one "
        f"({row['change']:+.1f} points, 95% interval {row['change_ci'][0]:+.1f} to {row['change_ci'][1]:+.1f}, "
        f"n {row['n']})"
    )
    if not entry["served"]:
        text += (
            f"; it loses more than --adapter-bound {entry['bound']:g} and is left out. Merge it before quantising "
            "(--merge-adapter), or train it on this base"
        )
    return text
