"""The flags of `qwen-vqa verify`, and what is said of them before PyTorch is imported."""

import argparse
from pathlib import Path

from qwen_vqa.plugin.command.server_address import server_url
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.hub_checkpoint import CHECKPOINT_HELP, add_revision_flag, local_checkpoint
from qwen_vqa.train.model.device_flag import add_device_flag


def build_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The flags of `qwen-vqa verify`."""
    add = parser.add_argument
    add("checkpoint", help=f"{CHECKPOINT_HELP}, as it was trained or assembled")
    add_revision_flag(parser)
    add("--url", help="a running server, with /v1 (default: one is started for the time of the check)")
    add("--api-key", default="none", help="of that server (default: none)")
    add("--model", help="its name there (default: the first that it lists, and the checkpoint's adapters)")
    add(
        "--against",
        type=Path,
        metavar="FILE",
        help="prompts, pixels, tokens or answers that a training script wrote as JSON (train/README.md has the lines "
        "that write it): the server is held to these, in place of the PyTorch reference",
    )
    add("--image", action="append", default=[], type=Path, help="a picture of your own; may be repeated")
    add(
        "--prompt", action="append", default=[], help="a question of your own, asked about all --image; may be repeated"
    )
    add(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="of the language model, on both sides (default: what the server computes in)",
    )
    add_device_flag(parser, "the PyTorch reference computes; beside a server on the same GPU it needs room")
    add("--max-tokens", type=int, default=16, help="answer tokens compared (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the results there, too")
    return parser


def check(args: argparse.Namespace) -> None:
    """What can be said before PyTorch is imported; `checkpoint` is a folder on this machine afterwards.

    Raises:
        UserError: no such checkpoint, or pictures without a question.
    """
    if args.image and not args.prompt:
        raise UserError("--image needs a --prompt to ask about it.")
    if args.url is not None:
        args.url = server_url(args.url)
    args.checkpoint = local_checkpoint(args.checkpoint, args.revision)
