"""Errors that a user can mend: shown as one message, without a traceback."""


class UserError(ValueError):
    """Bad input. The message says what was wrong and what to do."""
