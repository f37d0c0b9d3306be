"""The installed command `qwen-vqa`, for what runs it as a process of its own; and how more is installed."""

import sys
from importlib.metadata import PackageNotFoundError, distribution

from qwen_vqa.plugin.errors import UserError


def how_to_install(extra: str) -> str:
    """What to run for an extra's packages: the project is on no package index, so pip is given the checkout."""
    return f"in the folder of the checkout run `make setup`, or `pip install -e '.[{extra}]'` in your own environment."


def installed_command(*words: str) -> list[str]:
    """`qwen-vqa WORDS` as arguments of a process, run by this Python.

    Raises:
        UserError: the project is not installed in this Python.
    """
    try:
        [entry] = distribution("qwen-vqa").entry_points.select(group="console_scripts", name="qwen-vqa")
    except (PackageNotFoundError, ValueError) as error:
        raise UserError(f"qwen-vqa is not installed in {sys.prefix}: run `make setup`.") from error
    return [sys.executable, "-m", entry.module, *words]
