"""Errors that a user can mend: shown as one message, without a traceback. And the exit status of Ctrl-C."""

INTERRUPTED = 130  # as a shell has it


class UserError(ValueError):
    """Bad input. The message says what was wrong and what to do."""
