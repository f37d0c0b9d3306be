"""Text files that users write: UTF-8, with the mark that Windows puts before it or without."""

from collections.abc import Generator
from pathlib import Path

from qwen_vqa.plugin.errors import UserError

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def text_lines(path: Path) -> Generator[str, None, None]:
    """A file's lines, one after the other.

    Raises:
        UserError: as `read_text`.
    """
    try:
        with path.open(encoding="utf-8-sig") as lines:
            yield from lines
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError | UnicodeDecodeError) -> UserError:
    if isinstance(error, OSError):
        return UserError(f"{path} cannot be read: {error.strerror or error}.")
    with path.open("rb") as file:
        if file.read(2) in _UTF_16:
            return UserError(f"{path} is UTF-16: save it as UTF-8 (iconv -f UTF-16 -t UTF-8 {path.name}).")
    return UserError(f"{path} is not text in UTF-8. If it is text, save it as UTF-8.")
