"""The flags of `qwen-vqa train`, and what is said of them before PyTorch is imported."""

import argparse
import os
from pathlib import Path

from qwen_vqa.plugin.command.output_folder import check_writable
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.hub_checkpoint import CHECKPOINT_HELP, add_revision_flag, local_checkpoint
from qwen_vqa.train.data.source import DATA_SETS, EXAMPLES, DataSource
from qwen_vqa.train.recipe import STAGES, add_config_flags, config_for


def build_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The flags of `qwen-vqa train`."""
    add = parser.add_argument
    add("base", metavar="BASE", help=f"{CHECKPOINT_HELP}, to start from; `qwen-vqa assemble` makes one")
    add_revision_flag(parser)
    add(
        "--data",
        action="append",
        default=[],
        metavar="NAME=LOCATION[,images=DIR][,weight=W][,split=S][,samples=N]",
        help=f"a data set, known are {', '.join(DATA_SETS)}; may be repeated. For example: {'; '.join(EXAMPLES)}",
    )
    add("-o", "--output", required=True, type=Path, metavar="DIR", help="where the run goes")
    add(
        "--stage",
        choices=STAGES,
        default="joint",
        help="align: the connector alone; finetune: connector and LoRA; joint: the original's single stage "
        "(default: %(default)s). Its numbers are in train/recipes/, and the flags below change them",
    )
    add("--resume", action="store_true", help="go on from the last checkpoint in DIR, with the config it began with")
    add("--export", action="store_true", help="train nothing: write the result of the last checkpoint in DIR")
    _add_monitor_flags(parser)
    add_config_flags(parser)
    return parser


def check(args: argparse.Namespace) -> None:
    """What can be said before PyTorch is imported; `base` is a folder on this machine afterwards.

    Raises:
        UserError: what is wrong with the flags, or with the folder to start from.
    """
    if not args.export:
        if not args.data:
            raise UserError(f"what to train on? Give --data, for example --data {EXAMPLES[0]}")
        if os.environ.get("ACCELERATE_USE_FSDP") == "true":
            raise UserError(
                "accelerate is set to FSDP, whose pieces of the weights are not saved or resumed here: use DDP "
                "(torchrun, or accelerate launch --multi_gpu). Each GPU holds the frozen model then; --load-in 4bit "
                "makes it small."
            )
        if not args.resume:
            config_for(args.stage, args)
        sources = [DataSource.parse(text) for text in [*args.data, *(args.eval_data or [])]]
    check_writable(args.output)
    args.base = local_checkpoint(args.base, args.revision)
    if not args.export:
        for source in sources:
            source.check_location()


def _add_monitor_flags(parser: argparse.ArgumentParser) -> None:
    """`--eval-data`, `--eval-samples`, `--eval-steps` and `--tensorboard`."""
    add = parser.add_argument
    add(
        "--eval-data",
        action="append",
        default=[],
        metavar="NAME=LOCATION[,...]",
        help="held-out questions, named as in --data, to be answered during the run; may be repeated",
    )
    add("--eval-samples", type=int, default=200, help="of each held-out data set (default: %(default)s)")
    add("--eval-steps", type=int, default=200, help="steps between two evaluations (default: %(default)s)")
    add("--tensorboard", action="store_true", help="write TensorBoard logs into the run's folder, too")
