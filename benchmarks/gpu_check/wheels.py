"""Wheels for a machine without a network: what part A of `make gpu-check` needs beside torch.

python benchmarks/gpu_check/wheels.py --python 3.12
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "gpu-check-wheels"
# With the releases that the project was tested with; the others as they come.
PACKAGES = (
    "accelerate>=1.10",
    "peft>=0.21",
    "bitsandbytes>=0.50",
    "auto-round>=0.16,<0.17",
    "compressed-tensors>=0.17,<0.18",
    "py-cpuinfo",
    "loguru",
    "threadpoolctl",
    # For a machine whose transformers is older than the project's: it, and what it asks for in newer releases.
    "transformers>=5.19,<5.21",
    "huggingface-hub>=1.31,<2",
    "tokenizers>=0.23.1,<0.24",
    "safetensors>=0.8",
    "regex",
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux2014_x86_64", "any")
MOST_BYTES = 64 * 2**20


def main() -> int:
    """Download them; 1 where they are more than may be carried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", help="of the other machine (default: %(default)s)")
    args = parser.parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", args.python, *platforms, "--dest", str(FOLDER)]
    for package in PACKAGES:
        subprocess.run([*command, package], check=True)
    wheels = sorted(FOLDER.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{FOLDER}: {len(wheels)} wheels, {size / 2**20:.1f} MiB of {MOST_BYTES / 2**20:.0f}")
    return 1 if size > MOST_BYTES else 0


if __name__ == "__main__":
    sys.exit(main())
