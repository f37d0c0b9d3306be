"""The .py files of vLLM's wheel for GPUs, from pip, kept in a cache folder; the wheel itself is not kept."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# Wheels of this platform whatever the machine is: only text is read.
PLATFORM = ["--platform=manylinux_2_28_x86_64", "--implementation=cp", "--abi=abi3", "--python-version=3.12"]


class UnreachableError(Exception):
    """The registry of packages does not answer."""


def sources(release: str, cache: Path, offline: bool = False) -> Path:
    """A folder that holds vllm/ of a release.

    Args:
        cache: where it is looked for, and put.
        offline: ask no registry.

    Raises:
        UnreachableError: it is not in the cache, and nothing can be fetched.
        ValueError: there is no such release.
    """
    folder = cache / f"vllm-{release}"
    if folder.is_dir():
        return folder
    if offline:
        raise UnreachableError(f"it is not in {cache}, and --offline was given")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as unfinished:
        wheel = _download(release, Path(unfinished))
        extract(wheel, Path(unfinished) / "sources")
        shutil.move(Path(unfinished) / "sources", folder)
    return folder


def extract(wheel: Path, folder: Path) -> None:
    """The wheel's Python sources, and nothing that was compiled."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.endswith((".py", "py.typed"))])


def _download(release: str, folder: Path) -> Path:
    print(f"vLLM {release}: downloading its wheel (over 300 MB, once)", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-cache-dir", "--no-deps", "--retries", "1"]
    command += ["--only-binary", ":all:", *PLATFORM, "--dest", str(folder), f"vllm=={release}"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode == 0:
        return next(folder.glob("*.whl"))
    # Of a registry that answers, pip lists the releases that it has.
    if "from versions:" in run.stderr and "from versions: none" not in run.stderr:
        raise ValueError(f"there is no vLLM {release}: {run.stderr.strip().splitlines()[-2]}")
    raise UnreachableError(f"pip cannot download it: {run.stderr.strip().splitlines()[-1]}")
