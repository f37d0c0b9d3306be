"""The flags of `qwen-vqa evaluate`, and what is said of them before PyTorch is imported."""

import argparse
from pathlib import Path

from qwen_vqa.plugin.command.command_parser import seed_number
from qwen_vqa.plugin.command.output_folder import check_writable
from qwen_vqa.plugin.command.server_address import server_url
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.hub_checkpoint import CHECKPOINT_HELP, add_revision_flag, local_checkpoint
from qwen_vqa.train.data.source import DATA_SETS, EXAMPLES, DataSource
from qwen_vqa.train.evaluation.metric_rules import RULES
from qwen_vqa.train.model.device_flag import add_device_flag

BASELINES = ("no-picture", "other-picture")
RESULTS_FILE, PAGE_FILE = "results.json", "wrong_answers.html"


def build_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The flags of `qwen-vqa evaluate`."""
    add = parser.add_argument
    add("checkpoint", nargs="?", metavar="CHECKPOINT", help=f"{CHECKPOINT_HELP}, asked in plain PyTorch")
    add_revision_flag(parser)
    add("--url", help="a running server in its place, with /v1")
    add("--model", metavar="NAME", help="adapter of the checkpoint, or name on the server (default: base, or first)")
    add("--api-key", help="of the server (default: $OPENAI_API_KEY)")
    add(
        "--data",
        required=True,
        action="append",
        metavar="NAME=LOCATION[,images=DIR][,split=S][,samples=N]",
        help=f"a data set, known are {', '.join(DATA_SETS)}; may be repeated. For example: {'; '.join(EXAMPLES)}",
    )
    add("-o", "--output", required=True, type=Path, metavar="DIR", help=f"for {RESULTS_FILE} and {PAGE_FILE}")
    add(
        "--baseline",
        nargs="*",
        choices=BASELINES,
        help="ask everything blind, too; none with no value (default: no-picture, and other-picture where there are "
        "enough pictures)",
    )
    add(
        "--metric",
        choices=list(RULES),
        default="vqa",
        help="by whose rules answers are equal: vqa, the official ones, or m4c, as LLaVA's and lmms-eval's figures are "
        "(default: %(default)s)",
    )
    add("--max-tokens", type=int, default=64, help="of an answer (default: %(default)s)")
    add("--concurrency", type=int, default=16, help="requests to a server at once (default: %(default)s)")
    add("--timeout", type=float, default=300, help="seconds for a request to a server (default: %(default)s)")
    add("--batch-size", type=int, default=16, help="prompts to a checkpoint at once (default: %(default)s)")
    add(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="of the checkpoint (default: as stored)",
    )
    add_device_flag(parser, "a checkpoint computes")
    add("--seed", type=seed_number, default=0, help="of drawn samples and other pictures (default: %(default)s)")
    return parser


def check(args: argparse.Namespace) -> None:
    """What can be said before PyTorch is imported; `checkpoint` is a folder on this machine afterwards.

    Raises:
        UserError: what is wrong with the flags, or with the checkpoint.
    """
    if (args.checkpoint is None) == (args.url is None):
        raise UserError("give a checkpoint folder or --url of a server: one of them.")
    if args.url is not None and args.revision is not None:
        raise UserError(f"--revision {args.revision} is of a checkpoint, and --url names a server: leave it out.")
    for name in ("max_tokens", "concurrency", "timeout", "batch_size"):
        if getattr(args, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be greater than 0.")
    check_writable(args.output)
    sources = [DataSource.parse(text) for text in args.data]
    if args.url is not None:
        args.url = server_url(args.url)
    if args.checkpoint is not None:
        args.checkpoint = local_checkpoint(args.checkpoint, args.revision)
    for source in sources:
        source.check_location()
