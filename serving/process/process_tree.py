"""Processes end with those that started them, and those that lost theirs are buried."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """Have the system kill this process when the one that started it is gone, also when that was killed itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def reap_orphans(own: int | None) -> None:
    """Take the status of children that ended and that nobody else will ask for.

    A container's first process inherits those whose parents are gone: they stay as zombies until it asks for them.

    Args:
        own: the child whose status somebody waits for.
    """
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None or ended.si_pid == own:
                return
            os.waitpid(ended.si_pid, os.WNOHANG)
        except ChildProcessError:
            return
