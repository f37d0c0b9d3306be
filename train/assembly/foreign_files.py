"""What goes wrong while Transformers reads somebody's files, in one line: cut off, or contradicting each other."""

import contextlib
from collections.abc import Iterator

from qwen_vqa.plugin.errors import UserError, first_line_of

_SHOWN = 300  # characters of what the library says


@contextlib.contextmanager
def reading(what: str, name: str) -> Iterator[None]:
    """While `what`, which is at `name`, is read.

    Whatever Transformers, PyTorch and safetensors raise for such files (OSError, RuntimeError, KeyError, classes of
    their own) is about the files: it is said with its first line.

    Raises:
        UserError: it cannot be read.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        told = first_line_of(error)[:_SHOWN]
        raise UserError(
            f"the {what} {name} cannot be read ({type(error).__name__}: {told}). Copy its files again, and look "
            "whether its config.json is that of its weights."
        ) from error
