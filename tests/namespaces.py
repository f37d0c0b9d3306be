"""Namespaces of Linux, by which a test has a /dev/shm, a network or process ids of its own."""

import shutil
import subprocess


def may_unshare(*flags: str) -> bool:
    """Whether this user may have them; the flags are those of unshare(1)."""
    command = ["unshare", *flags, "true"]
    return bool(shutil.which("unshare")) and not subprocess.run(command, capture_output=True, check=False).returncode
