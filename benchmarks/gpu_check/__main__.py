"""`make gpu-check`: what this project claims of GPUs, measured on the one that is at hand.

    python benchmarks/gpu_check                        in any environment that has torch and transformers
    python benchmarks/gpu_check --device cpu --tiny    its machinery, on a small shape

Each row passes, fails with its message, or is not possible here, and why. Part A needs PyTorch alone, part B vLLM too.
Nothing is downloaded: the project is taken from the checkout where it is not installed, and packages that are missing
from the wheels that `make gpu-check-wheels` collected.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
WHEELS = REPOSITORY / "gpu-check-wheels"
PACKAGES = ("plugin", "train", "serving", "quantize", "benchmarks")
# Where the machine's transformers is older than the project's, these come from the wheels.
OLDEST_TRANSFORMERS = "5.19"
WITH_TRANSFORMERS = ("transformers", "huggingface_hub", "tokenizers", "safetensors", "regex")
SECONDS = 12 * 60


def main() -> int:
    """Run the check; 0 where no row failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", default="cuda", metavar="auto|cpu|cuda[:N]", help="(default: %(default)s)")
    add("--tiny", action="store_true", help="a tiny shape in place of Qwen2.5-3B's")
    add("--part", choices=["A", "B"], help="(default: both)")
    add("--only", nargs="+", default=[], metavar="WORD", help="rows with one of these words in their names")
    add("--minutes", type=float, default=SECONDS / 60, help="for all rows together (default: %(default)g)")
    add("--json", type=Path, default=Path("gpu-check.json"), metavar="FILE", help="(default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        place = Path(folder)
        if find_spec("qwen_vqa") is None:
            return _again_from_the_checkout(place)
        return _check(args, place)


def _again_from_the_checkout(folder: Path) -> int:
    """This command in a process that finds the project, and what wheels are carried along, without an installation."""
    packages, newer, missing = folder / "packages", folder / "newer", folder / "missing"
    (packages / "qwen_vqa").mkdir(parents=True)
    for name in PACKAGES:
        (packages / "qwen_vqa" / name).symlink_to(REPOSITORY / name, target_is_directory=True)
    is_old = _numbers(version("transformers")) < _numbers(OLDEST_TRANSFORMERS)
    for wheel in sorted(WHEELS.glob("*.whl")):
        name = wheel.name.split("-")[0]
        if name in WITH_TRANSFORMERS and is_old:
            _install(wheel, newer)
        elif find_spec(name) is None:
            _install(wheel, missing)
    paths = [str(packages), str(newer), *filter(None, [os.environ.get("PYTHONPATH")]), str(missing)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "qwen_vqa.benchmarks.gpu_check", *sys.argv[1:]]
    return subprocess.run(command, env=environment, check=False).returncode


def _numbers(release: str) -> list[int]:
    return [int(part) for part in release.split(".")[:2]]


def _install(wheel: Path, folder: Path) -> None:
    """One by one: a wheel for another Python is no reason to lack the others."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, str(wheel)], check=False)


def _check(args: argparse.Namespace, folder: Path) -> int:
    # Here, where the project can be imported.
    import torch

    from qwen_vqa.benchmarks.environment import environment
    from qwen_vqa.benchmarks.gpu_check.check_row import FAILED, CheckSetting
    from qwen_vqa.benchmarks.gpu_check.check_table import heading, line
    from qwen_vqa.benchmarks.gpu_check.rows import ROWS
    from qwen_vqa.benchmarks.gpu_check.runner import run_rows
    from qwen_vqa.plugin.errors import UserError
    from qwen_vqa.train.model.compute_device import GIB, chosen_device

    try:
        device = chosen_device(args.device)
    except UserError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2
    card = "no GPU"
    if device.type == "cuda":
        card = f"{torch.cuda.get_device_name(device)}, {torch.cuda.mem_get_info(device)[1] / GIB:.1f} GiB"
    about = environment(sys.argv) | {"card": card, "tiny": args.tiny}
    print(heading(about), flush=True)
    rows = [row for row in ROWS if args.part is None or args.part in row.part]
    if args.only:
        rows = [row for row in rows if any(word in row.name for word in args.only)]
    setting = CheckSetting(str(device), args.tiny, folder)
    found = run_rows(rows, setting, 60 * args.minutes, lambda *ended: print(line(*ended), flush=True))
    args.json.write_text(json.dumps({"environment": about, "rows": found}, indent=1) + "\n")
    print(f"wrote {args.json}")
    return 1 if any(row["status"] == FAILED for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
