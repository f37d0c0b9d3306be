"""Do our calls and overrides fit a release's signatures? mypy says so, with the release's sources in its path.

It knows what is passed by position and by name, which methods of vLLM's classes ours stand in for, and what attributes
there are. What it finds also without vLLM is not about vLLM, and left out (`make lint` has its own run).
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

CONFIG = """\
[mypy]
python_version = 3.11
follow_imports = silent
ignore_missing_imports = True
[mypy-vllm.*]
ignore_missing_imports = {hidden}
follow_imports = {follow}
"""


@dataclass(frozen=True)
class Finding:
    """An error of mypy's in one of our files."""

    file: str
    line: int
    code: str
    message: str

    @property
    def place(self) -> tuple[str, int, str]:
        """What tells errors apart: several of one kind on a line are counted."""
        return self.file, self.line, self.code

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message} [{self.code}]"


def misfits(
    packages: dict[str, Path], root: Path, switches: dict[str, bool], cache: Path, name: str = "qwen_vqa"
) -> list[Finding]:
    """mypy's errors about vLLM in our code.

    Args:
        packages: our packages below `name`, and their folders.
        root: holds vllm/ of the release.
        switches: the values of `SINCE_...` for the release.
        cache: for mypy, which is fast the second time.
    """
    with tempfile.TemporaryDirectory() as view:
        # setuptools' editable install maps qwen_vqa.plugin to plugin/ in a way that mypy does not read.
        (Path(view) / name).mkdir()
        (Path(view) / name / "__init__.py").touch()
        for package, folder in packages.items():
            (Path(view) / name / package).symlink_to(folder.resolve())
        with_vllm = _mypy(Path(view), name, [root], switches, cache / root.name, hidden=False)
        without = _mypy(Path(view), name, [], {}, cache / "without", hidden=True)
    # Not by their messages: mypy words the same error otherwise when it comes from its cache.
    known = Counter(finding.place for finding in without)
    found = []
    for finding in with_vllm:
        known[finding.place] -= 1
        if known[finding.place] < 0:
            found.append(finding)
    return sorted(found, key=lambda finding: (finding.file, finding.line))


def _mypy(
    view: Path, name: str, roots: list[Path], switches: dict[str, bool], cache: Path, hidden: bool
) -> list[Finding]:
    config = view / f"mypy-{hidden}.ini"
    config.write_text(CONFIG.format(hidden=hidden, follow="skip" if hidden else "silent"))
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(cache)]
    command += ["--output", "json"]
    command += [word for switch, value in switches.items() for word in (f"--always-{str(value).lower()}", switch)]
    environment = os.environ | {"MYPYPATH": os.pathsep.join(map(str, [view, *(root.resolve() for root in roots)]))}
    run = subprocess.run([*command, "-p", name], capture_output=True, text=True, check=False, cwd=view, env=environment)
    if run.returncode not in (0, 1):
        raise RuntimeError(f"mypy ended with {run.returncode}: {run.stdout}{run.stderr}")
    lines = (json.loads(line) for line in run.stdout.splitlines() if line.startswith("{"))
    return [
        Finding(line["file"].removeprefix(f"{name}/"), line["line"], str(line["code"]), line["message"])
        for line in lines
        if line["severity"] == "error"
    ]
