"""Errors that a user can mend: shown as one message, without a traceback. And the exit status of Ctrl-C."""

INTERRUPTED = 130  # as a shell has it


class UserError(ValueError):
    """Bad input. The message says what was wrong and what to do."""


def reason_of(error: BaseException) -> str:
    """What a library's error says, to be put into a sentence: in one line, and without a full stop at its end."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def first_line_of(error: BaseException) -> str:
    """As `reason_of`, of errors that go on with hints for programmers: their first line with words in it."""
    lines = (line.strip().rstrip(".") for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
