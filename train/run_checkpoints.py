"""The checkpoints of a run: they appear whole or not at all."""

import os
import shutil
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from qwen_vqa.plugin.errors import UserError

STAGING = ".unfinished"


def check_run(output: Path, resume: bool) -> str | None:
    """The checkpoint to go on from, if there is to be one.

    Raises:
        UserError: `resume` with no checkpoint to resume from, or a run already there without `resume`.
    """
    last = get_last_checkpoint(str(output)) if output.is_dir() else None
    if resume and last is None:
        raise UserError(f"nothing to resume: {output} holds no checkpoint.")
    if last and not resume:
        raise UserError(f"{output} holds a run already: pass --resume to go on with it, or give another -o.")
    return last


def publish(output: Path, name: str) -> None:
    """Move a checkpoint that was written whole from the staging folder to its place, once it is on the disk."""
    staged = output / STAGING / name
    for path in [*staged.rglob("*"), staged]:
        _sync(path)
    if (output / name).exists():
        shutil.rmtree(output / name)
    staged.rename(output / name)
    _sync(output)
    shutil.rmtree(output / STAGING)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
