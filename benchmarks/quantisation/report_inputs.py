"""What `qwen-vqa quantize report` looks at before it measures, and what it measures on."""

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from qwen_vqa.plugin.checkpoint_files import adapter_folders
from qwen_vqa.plugin.command.output_folder import check_writable
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.hub_checkpoint import checkpoint_name
from qwen_vqa.plugin.quantization import RECORD_FILE, SchemeFacts, quantization_config, scheme_of, why_not_served_here
from qwen_vqa.plugin.registration import register_for_transformers
from qwen_vqa.quantize.adapters import merge
from qwen_vqa.quantize.demo_samples import DemoSamples
from qwen_vqa.quantize.options import check_not_quantised
from qwen_vqa.quantize.sample_sources import samples_of
from qwen_vqa.quantize.samples import longest_sample
from qwen_vqa.train.data.collator import Sample
from qwen_vqa.train.drawn.held_out import SKILLS
from qwen_vqa.train.model.compute_device import chosen_device
from qwen_vqa.train.model.reference_checkpoint import load_processor

# Of a part's config: what has to be equal for two checkpoints to have the same weights' shapes.
SHAPE_FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "tie_word_embeddings",
    "image_size",
    "patch_size",
)


def checked(args: argparse.Namespace, output: Path) -> SchemeFacts:
    """How B is quantised, once all is looked at that would fail later."""
    register_for_transformers()
    chosen_device(args.device)
    check_not_quantised(args.original)
    config = quantization_config(args.quantised)
    if config is None:
        raise UserError(f"{args.quantised} is not quantised; the order is: the original, then the quantised one.")
    scheme = scheme_of(config)
    check_same_model(args.original, args.quantised)
    check_writable(output)
    if not args.no_speed:
        stored = str(AutoConfig.from_pretrained(args.quantised).dtype).removeprefix("torch.")
        check_speed(scheme, stored if args.dtype == "auto" else args.dtype)
    return scheme


def check_speed(scheme: SchemeFacts, dtype: str = "auto") -> None:
    """Raises UserError for what a server here would refuse, after all that is measured without one."""
    if reason := why_not_served_here(scheme):
        raise UserError(
            f"speed is measured behind a server, and {reason}. {scheme.name} is served by: {scheme.served_by}. Without "
            "servers, `qwen-vqa quantize report A B --no-speed` compares disk and answers."
        )
    if scheme.refuses(dtype):
        raise UserError(f"--dtype {dtype}: {scheme.name} is served beside 16 bits here; take bfloat16, or --no-speed.")


def check_same_model(original: Path, quantised: Path) -> None:
    """Raises UserError for checkpoints whose weights have different shapes."""
    before, after = AutoConfig.from_pretrained(original), AutoConfig.from_pretrained(quantised)
    for part in ("text_config", "vision_config"):
        for name in SHAPE_FIELDS:
            mine, other = (getattr(getattr(config, part), name, None) for config in (before, after))
            if mine != other:
                raise UserError(
                    f"{quantised} was not made of {original}: {part}.{name} is {other!r} in it, and {mine!r} there. "
                    "Give the 16-bit checkpoint that it was made of."
                )


def read_record(quantised: Path) -> dict[str, Any]:
    """How the checkpoint was made; nothing where another program made it."""
    file = quantised / RECORD_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


@contextlib.contextmanager
def with_adapter(original: Path, name: str | None, output: Path) -> Iterator[Path]:
    """The original as it was rounded: with the adapter in it that was merged first, if one was."""
    if name is None:
        yield original
        return
    if name not in adapter_folders(original):
        there = ", ".join(adapter_folders(original)) or "none"
        raise UserError(
            f"the quantised checkpoint has the adapter {name} merged into it, and {original}/adapters has {there}: "
            "put it back there, so that both sides have it."
        )
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as folder:
        merged = Path(folder) / f"{original.name}+{name}"
        merge(original, name, merged)
        yield merged


def default_folder(quantised: Path) -> Path:
    """Beside the checkpoint; of one in the hub's cache, in the current folder."""
    quantised = quantised.resolve()
    _, of_hub, name = checkpoint_name(quantised).rpartition("/")
    if of_hub:
        return Path(f"{name}-report")
    return quantised.with_name(f"{quantised.name}-report")


def questions(args: argparse.Namespace, record: dict[str, Any]) -> dict[str, list[Sample]] | None:
    """Held-out samples by group; None where there is no data and the model is not the demo's.

    Raises:
        UserError: the data has nothing left beside what calibrated, or a sample that is too long.
    """
    processor = load_processor(args.original)
    samples = samples_of(args.original, args.data, args.seed, processor)
    if samples is None:
        print("no --data: answers are not compared", flush=True)
        return None
    if "calibrated_on" not in record:
        print("which samples calibrated is not recorded: they may be among the questions", flush=True)
    adapter = record.get("merge_adapter")
    if adapter and isinstance(samples, DemoSamples):  # it changed how the demo answers
        groups = {adapter: samples.adapter_questions(args.number)}
    else:
        groups = samples.held_out(set(record.get("calibrated_on", [])), args.number, SKILLS)
    for group in groups.values():
        longest_sample(group, processor)
    return groups
