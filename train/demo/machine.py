"""What a measurement ran on."""

import platform
from pathlib import Path


def processor_name() -> str:
    """As the system calls it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()
