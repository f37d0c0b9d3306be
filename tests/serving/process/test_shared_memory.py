"""A /dev/shm that is full, read-only or small: one line and status 2, or a server without a cache of images."""

import os
import subprocess

import pytest

from tests.namespaces import may_unshare
from tests.server import ONE_CORE, SERVE, free_port
from tests.serving.process.test_leftovers import ready, running
from tests.serving.process.test_supervisor import until

FULL = "mount -t tmpfs -o size=1m tmpfs /dev/shm && head -c 2000000 /dev/zero > /dev/shm/x 2> /dev/null;"
READ_ONLY = "mount -t tmpfs -o ro tmpfs /dev/shm &&"
SMALL = "mount -t tmpfs -o size=64m tmpfs /dev/shm &&"

pytestmark = pytest.mark.skipif(not may_unshare("-Urmpf", "--mount-proc"), reason="no mounts of this user's own")


def with_shared_memory(mounted: str) -> tuple[str, ...]:
    """What comes before a command that is to see another /dev/shm."""
    return ("unshare", "-Urmpf", "--kill-child", "--mount-proc", "sh", "-c", f'{mounted} exec "$0" "$@"')


@pytest.mark.parametrize(
    ("mounted", "flags", "told"),
    [
        (FULL, [], "/dev/shm cannot be used (No space left on device)"),
        (READ_ONLY, [], "/dev/shm cannot be used (Read-only file system)"),
        (SMALL, ["--mm-processor-cache-gb", "1"], "--mm-processor-cache-gb is 1, and /dev/shm has 0.06 GiB free"),
    ],
    ids=["full", "read-only", "too small"],
)
def test_shared_memory_that_cannot_be_used_is_said_before_anything_loads(mounted: str, flags: list[str], told: str):
    command = [*with_shared_memory(mounted), *SERVE, "--port", str(free_port()), *flags]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, **ONE_CORE}, check=False
    )
    assert run.returncode == 2
    assert told in run.stderr.splitlines()[-1]
    assert len(run.stderr.splitlines()) < 5, run.stderr


def test_with_little_shared_memory_it_serves():
    with running(first=with_shared_memory(SMALL)) as (address, _):
        until(lambda: ready(address), 120)
