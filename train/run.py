"""`qwen-vqa train`: conversations about images to a connector, an adapter and a checkpoint that serves.

qwen-vqa train BASE --data train.jsonl -o runs/mine
"""

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers.trainer_utils import get_last_checkpoint

from qwen_vqa.plugin.checkpoint import ADAPTER_FOLDER
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.train.checkpoint import load_processor, load_reference, save_checkpoint
from qwen_vqa.train.collator import ConversationCollator
from qwen_vqa.train.connector_file import save_connector
from qwen_vqa.train.data.preparation import prepare_data
from qwen_vqa.train.data.registry import ADAPTERS
from qwen_vqa.train.data.source import EXAMPLES, DataSource
from qwen_vqa.train.data.table import data_table
from qwen_vqa.train.dataset import ConversationDataset
from qwen_vqa.train.model import QwenVqaForConditionalGeneration
from qwen_vqa.train.trainer import QwenVqaTrainer, prepare_model, training_arguments
from qwen_vqa.train.training_config import PRECISIONS, TrainingConfig

ADAPTER_NAME = "final_lora_model"
CONNECTOR_NAME = "final_connector.pth"
CHECKPOINT_NAME = "model"
RESULTS = (ADAPTER_NAME, CONNECTOR_NAME, CHECKPOINT_NAME)


def train(
    base: Path,
    dataset: ConversationDataset,
    output: Path,
    config: TrainingConfig,
    resume: bool = False,
    **overrides: Any,
) -> QwenVqaTrainer:
    """Train from a checkpoint folder; the run's checkpoints go to `output`, see `export` for its result.

    Raises:
        UserError: `resume` with no checkpoint to resume from, or a run already there without `resume`.
    """
    last = check_run(output, resume)
    output.mkdir(parents=True, exist_ok=True)
    (output / "training_config.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
    processor = load_processor(base)
    torch.manual_seed(config.seed)  # the adapter's initial weights
    model = load_reference(base)
    prepare_model(model, config)
    trainer = QwenVqaTrainer(
        model=model,
        args=training_arguments(config, output, **overrides),
        train_dataset=dataset,
        data_collator=ConversationCollator(processor, config.max_length),
        processing_class=processor,
        config=config,
    )
    trainer.train(resume_from_checkpoint=last)
    return trainer


def check_run(output: Path, resume: bool) -> str | None:
    """The checkpoint to go on from, if there is to be one.

    Raises:
        UserError: `resume` with no checkpoint to resume from, or a run already there without `resume`.
    """
    last = get_last_checkpoint(output) if output.is_dir() else None
    if resume and last is None:
        raise UserError(f"nothing to resume: {output} holds no checkpoint.")
    if last and not resume:
        raise UserError(f"{output} holds a run already: pass --resume to go on with it, or give another -o.")
    return last


def export(model: QwenVqaForConditionalGeneration, processor: QwenVqaProcessor, output: Path) -> Path:
    """Write the original's pair, `final_connector.pth` and `final_lora_model/`, and `model/`, which `serve` takes.

    The adapter stays apart from the language model, whose weights are the base's.
    """
    save_connector(model.connector.state_dict(), output / CONNECTOR_NAME)
    folder = output / CHECKPOINT_NAME
    if isinstance(model.language_model, PeftModel):
        model.language_model.save_pretrained(str(output / ADAPTER_NAME))
        model.language_model = model.language_model.unload()
        shutil.copytree(output / ADAPTER_NAME, folder / ADAPTER_FOLDER / ADAPTER_NAME, dirs_exist_ok=True)
    model.to(model.vision_encoder.patch_embedding.weight.dtype)
    save_checkpoint(folder, model, processor)
    return folder


def build_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The flags of `qwen-vqa train`."""
    add, default = parser.add_argument, TrainingConfig()
    add("base", type=Path, metavar="BASE", help="checkpoint folder to start from (`qwen-vqa assemble` makes one)")
    add(
        "--data",
        required=True,
        action="append",
        metavar="NAME=LOCATION[,images=DIR][,weight=W][,split=S][,samples=N]",
        help=f"a data set, known are {', '.join(ADAPTERS)}; may be repeated. For example: {'; '.join(EXAMPLES)}",
    )
    add("-o", "--output", required=True, type=Path, metavar="DIR", help="where the run goes")
    add("--resume", action="store_true", help="go on from the last checkpoint in DIR")
    for name in (
        "learning_rate",
        "connector_learning_rate",
        "dropout",
        "epochs",
        "warmup_ratio",
        "weight_decay",
        "max_dropped",
    ):
        add(_flag(name), type=float, default=getattr(default, name), help="(default: %(default)s)")
    for name in (
        "rank",
        "alpha",
        "batch_size",
        "accumulation",
        "max_steps",
        "max_length",
        "max_samples",
        "save_steps",
        "seed",
    ):
        add(_flag(name), type=int, default=getattr(default, name), help="(default: %(default)s)")
    add("--target-modules", nargs="+", default=default.target_modules, help="(default: %(default)s)")
    add("--full-language-model", action="store_true", help="train all of a small language model (with --rank 0)")
    add("--precision", choices=PRECISIONS, default=default.precision, help="(default: %(default)s)")
    return parser


def run(args: argparse.Namespace) -> int:
    """`qwen-vqa train`."""
    fields = {name: getattr(args, name) for name in TrainingConfig.names()}
    fields["target_modules"] = tuple(fields["target_modules"])
    config = TrainingConfig(**fields)
    check_run(args.output, args.resume)
    sources = [DataSource.parse(text) for text in args.data]
    dataset = prepare_data(sources, load_processor(args.base), config, args.output)
    print(data_table(dataset.mix.tallies))
    print(f"training on {len(dataset):,} samples")
    trainer = train(args.base, dataset, args.output, config, args.resume)
    folder = export(trainer.model, trainer.processing_class, args.output)
    print(f"wrote {', '.join(str(path) for path in sorted(args.output.iterdir()) if path.name in RESULTS)}")
    print(f"serve it: qwen-vqa serve {folder}")
    return 0


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
