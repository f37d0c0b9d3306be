"""`qwen-vqa train`: conversations about images to a connector, an adapter and a checkpoint that serves.

qwen-vqa train BASE --stage joint --data llava=llava_instruct_150k.json,images=coco/train2017 -o runs/mine
"""

import argparse
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from qwen_vqa.plugin.command.installed_command import typed_command
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.data.collator import ConversationCollator
from qwen_vqa.train.data.feature_cache import FeatureDataset
from qwen_vqa.train.data.mix_table import data_table
from qwen_vqa.train.data.preparation import prepare_data
from qwen_vqa.train.data.source import DataSource
from qwen_vqa.train.export import RESULTS, export_run
from qwen_vqa.train.model.reference_checkpoint import load_processor
from qwen_vqa.train.monitor.run_monitor import Monitor
from qwen_vqa.train.recipe import config_for, load_config, resumed_config, save_config
from qwen_vqa.train.run_checkpoints import check_run
from qwen_vqa.train.trainer import QwenVqaTrainer, load_for_training
from qwen_vqa.train.training_arguments import precision_note, training_arguments
from qwen_vqa.train.training_config import TrainingConfig


def train(
    base: Path,
    dataset: Dataset,
    output: Path,
    config: TrainingConfig,
    resume: bool = False,
    monitor: Monitor | None = None,
    **overrides: Any,
) -> QwenVqaTrainer:
    """Train from a checkpoint folder; the run's checkpoints go to `output`, see `export` for its result.

    Raises:
        UserError: `resume` with no checkpoint to resume from, a run already there without `resume`, a loss that is
            not a number, or a checkpoint that could not be saved.
    """
    check_cached_features(config, base)
    last = check_run(output, resume)
    output.mkdir(parents=True, exist_ok=True)
    arguments = training_arguments(config, output, **overrides)
    processor = load_processor(base)
    model = load_for_training(base, config, arguments)
    if config.cache_features:
        dataset = FeatureDataset(dataset, model, processor, output, arguments.device)
    trainer = QwenVqaTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=ConversationCollator(processor, config.max_length, with_sample_ids=True),
        processing_class=processor,
        config=config,
    )
    if trainer.is_world_process_zero():
        save_config(config, output)
    (monitor or Monitor()).attach(trainer, output)
    trainer.train(resume_from_checkpoint=last)
    return trainer


def check_cached_features(config: TrainingConfig, base: Path) -> None:
    """Raises UserError where features cannot be kept: the encoder is trained, or images differ in their views."""
    if not config.cache_features:
        return
    if config.encoder_layers:
        raise UserError("--cache-features keeps what a frozen encoder gives: leave it or --encoder-layers out.")
    rule = load_processor(base).image_processor.view_rule
    if rule.fixed_views is None:
        raise UserError(
            f"--cache-features needs images that all have as many views; with the rule {rule.name!r} they differ. "
            "Train without it."
        )


def run(args: argparse.Namespace) -> int:
    """`qwen-vqa train`."""
    if args.export:
        return _export(args.base, args.output)
    check_run(args.output, args.resume)
    config = resumed_config(args.output, args) if args.resume else config_for(args.stage, args)
    check_cached_features(config, args.base)  # before the data are read
    sources = [DataSource.parse(text) for text in args.data]
    arguments = training_arguments(config, args.output)  # which makes the processes known to each other
    # Arrow files are made by one process of a machine, behind the lock of the library `datasets`.
    monitor = Monitor.of(args, config.seed)
    dataset = prepare_data(sources, load_processor(args.base), config, args.output)
    is_main = arguments.process_index == 0
    if is_main:
        print(data_table(dataset.mix.tallies))
        if note := precision_note(config.precision, arguments):
            print(note)
        print(f"training on {len(dataset):,} samples", flush=True)
    trainer = train(args.base, dataset, args.output, config, args.resume, monitor)
    if not is_main:
        return 0
    del trainer  # and its model, before the base is loaded as it is stored
    return _export(args.base, args.output)


def _export(base: Path, output: Path) -> int:
    last = check_run(output, resume=True)
    assert last is not None
    folder = export_run(base, Path(last), load_config(output), output)
    print(f"wrote {', '.join(str(path) for path in sorted(folder.parent.iterdir()) if path.name in RESULTS)}")
    print(f"serve it: {typed_command()} serve {folder}")
    return 0
