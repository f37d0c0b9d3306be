"""One fault server for all tests of the load generator, and a way to run its command line."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.benchmarks.fault_server import FaultServer, fault_server
from tests.tiny import REPOSITORY

Load = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session")
def faults() -> Iterator[FaultServer]:
    """See `fault_server`."""
    with fault_server() as running:
        yield running


@pytest.fixture(scope="session")
def load() -> Load:
    """`python benchmarks/load.py ARGUMENTS`, to its end."""

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(REPOSITORY / "benchmarks" / "load.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    return run
