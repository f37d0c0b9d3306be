"""The wheel, as users will have it: built, installed into an environment of its own, and run outside the checkout.

What it depends on is not installed once more: the new environment sees this one's packages, behind its own.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from qwen_vqa.train.verify.local_server import free_port, wait_until_ready
from tests.server import ONE_CORE, START_SECONDS
from tests.tiny import REPOSITORY

TOPS = ("plugin", "train", "serving", "quantize", "benchmarks")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "node_modules", "keys", "models")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing built before is in it."""
    source = tmp_path_factory.mktemp("source")
    for top in TOPS:
        shutil.copytree(REPOSITORY / top, source / top, ignore=LEFT_OUT)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", source / "dist", source)
    [built] = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment that has the wheel and, behind it, the packages of this one.

    A .pth file adds them as a folder alone: the editable install's own .pth in it, which leads to the checkout, is not
    read.
    """
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env")
    python = folder / "env/bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel)
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(packages) / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder


def run(*command: str | Path, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
    """What a command prints; it has to succeed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{' '.join(words)}:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_wheel_has_every_file_that_is_needed_and_no_tests(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = run("git", "-C", REPOSITORY, "ls-files", "-z", *TOPS).split("\0")
    # Guides, pictures in them, and files for operators stay in the repository.
    data = (".py", ".jinja", ".html", ".yaml", ".safetensors", "tokenizer.json")
    needed = {name for name in tracked if name.endswith(data) and not name.startswith("serving/deploy/")}
    needed = {name for name in needed if (REPOSITORY / name).exists()}
    assert {f"qwen_vqa/{name}" for name in needed} - names == set()
    assert [name for name in names if "test" in name.split("/")[0]] == []


def test_it_is_the_wheels_code_that_runs(installed: Path):
    code = "from importlib.metadata import entry_points as found, version; import qwen_vqa.serving.cli as cli; "
    code += "print(cli.__file__); print(version('qwen-vqa')); "
    code += "print([one.module for one in found(group='vllm.general_plugins') if one.name == 'qwen_vqa'])"
    file, _, plugins = run(installed / "env/bin/python", "-c", code, cwd=installed).splitlines()
    assert Path(file).is_relative_to(installed)
    assert plugins == "['qwen_vqa.plugin']"


def test_doctor_is_content_with_it(installed: Path):
    said = run(installed / "env/bin/qwen-vqa", "doctor", cwd=installed)
    assert str(REPOSITORY / "serving") not in said
    assert "qwen-vqa" in said


@pytest.mark.cpu
def test_the_demo_in_it_answers(installed: Path):
    """Outside the checkout: the server, its model, its example picture, and the client."""
    command, port = installed / "env/bin/qwen-vqa", free_port()
    [picture] = installed.glob("env/lib/*/site-packages/qwen_vqa/serving/demo_images/number.png")
    environment = {**os.environ, **ONE_CORE}
    with (installed / "server.log").open("w") as log:
        words = [str(command), "serve", "--port", str(port)]
        server = subprocess.Popen(words, cwd=installed, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until_ready(server, f"http://127.0.0.1:{port}", START_SECONDS)
            question = "What number is written here?"
            said = run(command, "ask", question, picture, "--url", f"http://127.0.0.1:{port}/v1", cwd=installed)
        finally:
            server.terminate()
            server.wait(timeout=60)
    assert said.strip() == "436"
    assert str(REPOSITORY / "serving") not in (installed / "server.log").read_text()
