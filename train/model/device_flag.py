"""`--device` of verify, evaluate and quantize; train/model/compute_device.py says what it chooses."""

import argparse


def add_device_flag(parser: argparse.ArgumentParser, what: str) -> None:
    """`--device`, for what is computed in PyTorch."""
    parser.add_argument(
        "--device",
        default="auto",
        metavar="auto|cpu|cuda[:N]",
        help=f"where {what} (default: %(default)s, a GPU that has the memory for it, or else the CPU)",
    )
