"""A row of the check: what it measures, in a process of its own, and what may become of it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

SHAPE_FOLDER = "shape"
PASSED, FAILED, NOT_POSSIBLE = "passed", "failed", "not possible here"


class NotPossible(Exception):  # noqa: N818 - it is no error: the message says what the machine lacks
    """This machine cannot do it, and why."""


@dataclass(frozen=True)
class CheckSetting:
    """Where and how large: the device, a tiny shape in place of the 3B one, and a folder that the rows share."""

    device: str
    tiny: bool
    folder: Path

    @property
    def on_gpu(self) -> bool:
        """Whether memory and clocks of a GPU are measured."""
        return torch.device(self.device).type == "cuda"

    def needs(self, module: str) -> None:
        """Raises NotPossible where a package is not installed."""
        try:
            import_module(module)
        except ImportError as error:
            raise NotPossible(f"{module} cannot be imported: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True)
class CheckRow:
    """`function` is MODULE:NAME, called with a Setting and the options; `seconds` it may take."""

    name: str
    part: str
    function: str
    seconds: int
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, setting: CheckSetting) -> "Result":
        """What became of it; only what ends the process is not caught."""
        module, name = self.function.split(":")
        try:
            act: Callable[..., dict[str, Any]] = getattr(import_module(module), name)
            return Result(PASSED, measured=act(setting, **self.options))
        except NotPossible as reason:
            return Result(NOT_POSSIBLE, str(reason))
        except ModuleNotFoundError as error:
            return Result(NOT_POSSIBLE, str(error))
        except torch.OutOfMemoryError as error:
            return Result(NOT_POSSIBLE, f"not enough GPU memory: {str(error).splitlines()[0]}")
        except Exception as error:  # a failing row stops no other
            return Result(FAILED, f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Result:
    """A row's end; `message` says why where it did not pass."""

    status: str
    message: str = ""
    measured: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Its fields."""
        return asdict(self)


def checkpoint_of(setting: CheckSetting) -> Path:
    """The checkpoint of the shape, which one of the rows makes.

    Raises:
        NotPossible: it did not.
    """
    folder = setting.folder / SHAPE_FOLDER
    if not (folder / "config.json").is_file():
        raise NotPossible("the row that makes the checkpoint did not pass")
    return folder


def check(condition: bool, message: str) -> None:
    """Raises AssertionError, which fails the row."""
    if not condition:
        raise AssertionError(message)
