"""A folder that a command shall write: whether it can, said before any long work."""

import os
import shutil
from collections.abc import Container
from pathlib import Path

from qwen_vqa.plugin.errors import UserError, reason_of

GIB = 2**30


def check_writable(folder: Path, needed: int = 0) -> None:
    """Whether a folder can be made, or written into, and its disk has room for so many bytes.

    Raises:
        UserError: it cannot, or has not.
    """
    try:
        there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    except OSError as error:  # a name that is too long, links in a circle
        raise UserError(f"-o {folder}: {error.strerror or reason_of(error)}. Give another folder.") from error
    if not there.is_dir():
        raise UserError(f"-o {folder}: {there} is a file. Give another folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"-o {folder}: {there} cannot be written to. Give another folder, or the right to write there.")
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"not enough disk: the checkpoint needs {needed / GIB:.2f} GiB, and {there} has {free / GIB:.2f} free. "
            "Free some, or give an -o on another disk."
        )


def check_new(folder: Path, leftovers: Container[str] = ()) -> None:
    """Whether a folder can be made, and holds nothing yet but `leftovers` of a run that was killed.

    Raises:
        UserError: it cannot, or is not empty.
    """
    check_writable(folder)
    if folder.is_symlink():
        raise UserError(f"-o {folder} is a link. Give the folder itself.")
    if folder.exists() and any(path.name not in leftovers for path in folder.iterdir()):
        raise UserError(f"-o {folder} exists and is not empty. Give another folder.")
