"""The installed command `qwen-vqa`: to be run as a process of its own, to be typed; and how more is installed."""

import shutil
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from qwen_vqa.plugin.errors import UserError


def how_to_install(extra: str) -> str:
    """What to run for an extra's packages: the project is on no package index, so pip is given the checkout."""
    return f"in the folder of the checkout run `make setup`, or `pip install -e '.[{extra}]'` in your own environment."


def typed_command() -> str:
    """What to type for `qwen-vqa`: its name where the shell finds it, else the path to this environment's script."""
    script, found = Path(sysconfig.get_path("scripts")) / "qwen-vqa", shutil.which("qwen-vqa")
    if not script.exists() or (found is not None and script.samefile(found)):
        return "qwen-vqa"
    return str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)


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
