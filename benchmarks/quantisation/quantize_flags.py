"""The flags of `qwen-vqa quantize` and `qwen-vqa quantize report`, without PyTorch."""

import argparse
from pathlib import Path

from qwen_vqa.plugin.command.command_parser import CommandParser, seed_number
from qwen_vqa.plugin.hub_checkpoint import CHECKPOINT_HELP, add_revision_flag
from qwen_vqa.plugin.quantization import FACTS
from qwen_vqa.train.model.device_flag import add_device_flag

HELP = """\
Turn a checkpoint's language model into 8 or 4 bits. Encoder, connector and output layer stay in 16 bits, and so do
the embeddings. Without CHECKPOINT: the bundled demo. `qwen-vqa quantize report A B` measures what was gained and lost.
"""
EPILOG = """\
examples:
  qwen-vqa quantize my-model --scheme int8 -o my-model-int8
  qwen-vqa quantize my-model --scheme int4 --data train.jsonl -o my-model-int4
  qwen-vqa quantize report my-model my-model-int8 --data train.jsonl
"""


def parser() -> argparse.ArgumentParser:
    """The parser of `qwen-vqa quantize`."""
    schemes = "\n".join(f"  {f.name:<10s}{f.summary}; served by {f.served_by}" for f in FACTS.values())
    made = CommandParser(
        prog="qwen-vqa quantize",
        description=f"{HELP}\nschemes:\n{schemes}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return build_parser(made)


def build_parser(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The flags of `qwen-vqa quantize`, added to a parser."""
    add = made.add_argument
    add("source", nargs="?", metavar="CHECKPOINT", help=f"{CHECKPOINT_HELP} (default: the bundled demo)")
    add_revision_flag(made)
    add("--scheme", required=True, choices=list(FACTS), help="see above")
    add("-o", "--output", required=True, type=Path, metavar="DIR", help="the checkpoint folder to write")
    add("--encoder", action="store_true", help="quantise the vision encoder, too (int4: without calibration)")
    add("--group-size", type=int, help="int4: inputs that share a scale (default: 128, 64 or 32, the first to divide)")
    add("--data", help="conversations, as `train --data` names them (default, for the demo: its own pictures)")
    add("--samples", type=int, default=128, help="int4: conversations to calibrate with (default: %(default)s)")
    add("--iterations", type=int, default=200, help="int4: tuning steps for each layer (default: %(default)s)")
    add("--seed", type=seed_number, default=0, help="of the samples' order and of the tuning (default: %(default)s)")
    add("--merge-adapter", metavar="NAME", help="merge adapters/NAME in 16 bits first; no adapter is kept apart then")
    add(
        "--adapter-bound",
        type=float,
        default=2.0,
        metavar="POINTS",
        help="leave out adapters that lose more right answers than this on the quantised base (default: %(default)s)",
    )
    add(
        "--no-adapter-check",
        dest="adapter_check",
        action="store_false",
        help="take adapters over without asking them questions, which can take minutes; `serve` says so",
    )
    add_device_flag(made, "int4 is calibrated and adapters are measured")
    add("--elsewhere", action="store_true", help="make it although this machine cannot serve it")
    add(
        "--report", action="store_true", help="measure it against the original afterwards, see `quantize report --help`"
    )
    return made


def report_parser() -> argparse.ArgumentParser:
    """The parser of `qwen-vqa quantize report`."""
    made = CommandParser(
        prog="qwen-vqa quantize report",
        description="Measure a quantised checkpoint against its original: disk, memory, load time, speed with one and "
        "with many users (two servers, asked in turns), the answers' VQA accuracy (exact match where few people "
        "answered a question), KL divergence of the next token, and the layers with the largest errors.",
        epilog="example: qwen-vqa quantize report my-model my-model-int8 --data train.jsonl -o my-report",
    )
    add = made.add_argument
    add("original", metavar="A", help=f"in 16 bits: {CHECKPOINT_HELP}")
    add("quantised", metavar="B", help=f"what `qwen-vqa quantize` made of it: {CHECKPOINT_HELP}")
    add("--data", help="questions with answers, as `train --data` names them (default, for the demo: its skills)")
    add("-n", "--number", type=int, default=300, help="questions, for the demo of each skill (default: %(default)s)")
    add(
        "--seed",
        type=seed_number,
        help="of the samples' order and of the load (default: the seed that B was made with, or 0)",
    )
    add("--users", type=int, nargs="+", default=[1, 16], help="at once (default: 1 16)")
    add("--tokens", type=int, default=64, help="of an answer when decoding is timed (default: %(default)s)")
    add("--rounds", type=int, default=2, help="turns that each server gets (default: %(default)s)")
    add("--dtype", default="auto", help="of what is not quantised, when speed is measured (default: %(default)s)")
    add_device_flag(made, "answers are compared and layers' errors measured")
    add("--no-speed", action="store_true", help="leave out the servers: disk and answers alone")
    add("-o", "--output", type=Path, metavar="DIR", help="where the report goes (default: B-report)")
    return made
