"""Environments of the benchmark's own, for packages that the project itself does not need.

python -m qwen_vqa.benchmarks.alternatives.environments torchvision --folder runs/environments

Each sees this interpreter's packages and has a few of its own before them; the project's environment stays as it is.
"""

import argparse
import subprocess
import sys
import venv
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from qwen_vqa.benchmarks.script import run
from qwen_vqa.plugin.errors import UserError

FOLDER = Path("runs/environments")
MADE = "made"


@dataclass(frozen=True)
class Environment:
    """What is put into it; `alone`: without what the packages ask for, which is there already; `module` proves it."""

    name: str
    packages: tuple[str, ...]
    module: str
    alone: bool = False


def torchvision_release() -> str:
    """The one built for this torch: 0.(minor + 15), as PyTorch's table of versions has it."""
    minor = int(version("torch").split(".")[1])
    return f"torchvision=={'.'.join(('0', str(minor + 15), '0'))}"


def environments() -> dict[str, Environment]:
    """By name."""
    every = (
        Environment("torchvision", (torchvision_release(),), "torchvision.transforms.v2", alone=True),
        Environment("llama", ("llama-cpp-python[server]", "gguf"), "llama_cpp.server"),
        Environment("guidellm", ("guidellm",), "guidellm"),
    )
    return {one.name: one for one in every}


def environment_python(name: str, folder: Path = FOLDER) -> str:
    """Its interpreter; the environment is made if it is not there, which for `llama` compiles for minutes.

    Raises:
        UserError: a package cannot be had or cannot be imported.
    """
    environment = environments()[name]
    root = (folder / name).absolute()
    python = root / "bin" / "python"
    if (root / MADE).exists():
        return str(python)
    venv.create(root, clear=True, symlinks=True)
    _show_this_ones_packages(root)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps"] if environment.alone else []
    done = subprocess.run([*command, *environment.packages], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"{', '.join(environment.packages)} cannot be installed:\n{done.stderr[-800:]}")
    if name == "torchvision":
        _keep_the_python_part(root, python)
    done = _imports(python, environment.module)
    if done.returncode != 0:
        raise UserError(f"{environment.module} cannot be imported in {root}:\n{done.stderr[-800:]}")
    (root / MADE).touch()
    return str(python)


def _show_this_ones_packages(root: Path) -> None:
    """After its own. addsitedir, because editable installs are .pth files there."""
    folders = [path for path in sys.path if path.endswith("site-packages")]
    site = next(root.glob("lib/python3*/site-packages"))
    (site / "zz_beneath.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in folders))


def _imports(python: Path, module: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(python), "-c", f"import {module}"], capture_output=True, text=True, check=False)


def _keep_the_python_part(root: Path, python: Path) -> None:
    """PyPI has torchvision for CUDA alone. Its operators do not load beside CPU torch, and the file that describes
    them stops the import; resizing and normalising pictures, all that LLaVA wants of it, is Python. Where pip finds
    a build for this torch (PyTorch's own index has them), nothing is changed.
    """
    if _imports(python, "torchvision").returncode != 0:
        next(root.glob("lib/python3*/site-packages/torchvision/_meta_registrations.py")).write_text("")


def main() -> int:
    """Make one and print its interpreter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(environments()))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="(default: %(default)s)")
    args = parser.parse_args()
    print(environment_python(args.name, args.folder))
    return 0


if __name__ == "__main__":
    run("environments", main)
