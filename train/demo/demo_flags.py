"""The flags of `qwen-vqa demo-train`."""

import argparse
from pathlib import Path

from qwen_vqa.plugin.command.command_parser import seed_number

ENCODER_STEPS, PICTURES, STEPS, ADAPTER_STEPS = 1_043, 30_000, 2_500, 80


def build_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The flags of `qwen-vqa demo-train`."""
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for all stages; the result is in OUT/checkpoint")
    add("--start-from", type=Path, metavar="CHECKPOINT", help="go on from this demo checkpoint: its encoder stays")
    add("--learning-rate", type=float, default=2e-3, help="of the language stage (default: %(default)s)")
    add("--encoder-steps", type=int, default=ENCODER_STEPS, help="of 192 pictures (default: %(default)s)")
    add("--pictures", type=int, default=PICTURES, help="for the language stage (default: %(default)s)")
    add("--steps", type=int, default=STEPS, help="of 32 conversations (default: %(default)s)")
    add("--adapter-steps", type=int, default=ADAPTER_STEPS, help="(default: %(default)s)")
    add("--evaluate", type=int, default=400, metavar="N", help="pictures a skill at the end (default: %(default)s)")
    add("--workers", type=int, default=2, help="CPU cores to use (default: %(default)s)")
    add("--seed", type=seed_number, default=0, help="(default: %(default)s)")
    return parser
