"""Compares every vLLM name, signature, flag and route that we rely on with the sources of vLLM's wheels for GPUs.

A wheel is downloaded once, without what it depends on; of it the .py files are kept (60 MB). Where no registry can be
reached, that is said, and the status is 0: whoever works without a network can go on. With CI set it is 1, for there it
would mean that nothing was compared and nobody noticed.

example: python -m tests.vllm_surface --releases 0.34.0
"""

import argparse
import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.vllm_surface.callers import HOOKS, uncalled
from tests.vllm_surface.names import missing_names
from tests.vllm_surface.server import unknown_flags, unruled_routes
from tests.vllm_surface.signatures import misfits
from tests.vllm_surface.sources import UnreachableError, sources
from tests.vllm_surface.switches import switch_value, switches

# The same as pyproject.toml's extra `cuda` allows, oldest first; tests/test_vllm_surface.py holds them together.
SUPPORTED = ("0.32.0", "0.33.0")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwen-vqa" / "vllm-sources"
PACKAGES = ("plugin", "train", "serving", "quantize", "benchmarks")
HERE = Path(__file__).resolve().parents[2]


def main(argv: list[str] | None = None) -> int:
    """Compare and print; 1 where something does not fit (or, with CI set, could not be compared)."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.vllm_surface", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--releases", default=",".join(SUPPORTED), help="with commas between (default: %(default)s)")
    parser.add_argument("--repository", type=Path, default=HERE, help="another checkout of ours (default: this one)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="for sources and mypy (default: %(default)s)")
    parser.add_argument("--offline", action="store_true", help="take releases from the cache alone")
    args = parser.parse_args(argv)
    status = 0
    for release in args.releases.split(","):
        try:
            found = list(findings(args.repository, release, args.cache, args.offline))
        except UnreachableError as error:
            print(f"vLLM {release}: NOT COMPARED, {error}")
            status |= 1 if os.environ.get("CI") else 0
            continue
        except ValueError as error:
            parser.error(str(error))
        print("\n".join([*found, f"vLLM {release}: {len(found) or 'nothing'} that does not fit"]), flush=True)
        status |= bool(found)
    return status


def findings(repository: Path, release: str, cache: Path, offline: bool = False) -> Iterator[str]:
    """What in our code does not fit a release, one line each."""
    root, oldest = (sources(each, cache, offline) for each in (release, SUPPORTED[0]))
    files = {file: ast.parse((repository / file).read_text(encoding="utf-8")) for file in tracked_python(repository)}
    yield from missing_names(files, root, release)
    yield from uncalled(files, root, release, HOOKS)
    yield from unknown_flags(files, root, release)
    yield from unruled_routes(repository / "serving" / "admission" / "route_rules.py", root, release, oldest)
    names = set().union(*map(switches, files.values()))
    values = {name: bool(switch_value(name, release)) for name in sorted(names)}
    packages = {name: repository / name for name in PACKAGES}
    yield from map(str, misfits(packages, root, values, cache / "mypy"))


def tracked_python(repository: Path) -> list[str]:
    """Paths of the checkout's Python files, those that are not committed yet included."""
    listed = subprocess.check_output(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"], text=True, cwd=repository
    )
    paths = (repository / file for file in listed.splitlines())
    return [str(path.relative_to(repository)) for path in paths if path.is_file() and not path.is_symlink()]


if __name__ == "__main__":
    sys.exit(main())
