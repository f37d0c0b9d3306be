"""The comparison with vLLM's sources finds what a release may change, on small made-up packages."""

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement

from tests.vllm_surface import __main__ as command
from tests.vllm_surface.callers import uncalled
from tests.vllm_surface.names import missing_names, names_of
from tests.vllm_surface.server import unknown_flags, unruled_routes
from tests.vllm_surface.signatures import misfits
from tests.vllm_surface.sources import UnreachableError, extract, sources
from tests.vllm_surface.switches import switch_value

RELEASE = "0.33.0"
VLLM = {
    "vllm/__init__.py": """
        from typing import TYPE_CHECKING
        TABLE = {"LLM": ".llm:LLM"}
        if TYPE_CHECKING:
            from .llm import LLM
        def __getattr__(name):
            raise AttributeError(name)
        """,
    "vllm/llm.py": "class LLM:\n    def answer(self, prompt: str, seed: int = 0) -> str: return prompt\n",
    "vllm/moved/__init__.py": "from .inner import *\n",
    "vllm/moved/inner.py": "def connect(host: str, port: int) -> None: ...\n",
    "vllm/base.py": "class Base:\n    def fetch(self, url: str, *, mode: str = 'RGB') -> str: return url\n",
}
OURS = {
    "plugin/uses.py": """
        from vllm import LLM
        from vllm.base import Base
        from vllm.moved import connect

        def run() -> None:
            connect("here", port=1)
            LLM().answer("hello", seed=3)

        class Own(Base):
            def fetch(self, url: str, *, mode: str = "RGB") -> str:
                return url
        """
}


def written(folder: Path, files: dict[str, str]) -> Path:
    """A folder with files; what is indented in this one is not there."""
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        indent = re.match(r"\n( *)", text)
        file.write_text(text.replace("\n" + indent[1], "\n") if indent else text)
    return folder


def trees(folder: Path) -> dict[str, ast.Module]:
    return {str(file.relative_to(folder)): ast.parse(file.read_text()) for file in sorted(folder.rglob("*.py"))}


def found_in(tmp_path: Path, vllm: dict[str, str], ours: dict[str, str] = OURS) -> list[str]:
    """What names and signatures say of a made-up vLLM."""
    root = written(tmp_path / "release", VLLM | vllm)
    repository = written(tmp_path / "ours", ours)
    names = missing_names(trees(repository), root, RELEASE)
    found = misfits({"plugin": repository / "plugin"}, root, {"SINCE_0_33": True}, tmp_path / "mypy")
    return [*names, *map(str, found)]


def test_what_fits_is_not_reported(tmp_path: Path):
    assert found_in(tmp_path, {}) == []


@pytest.mark.parametrize(
    ("vllm", "expected"),
    [
        ({"vllm/moved/inner.py": "def other() -> None: ...\n"}, r"has no vllm.moved.connect"),
        (
            {"vllm/moved/inner.py": "def connect(address: str, port: int) -> None: ...\n"},
            None,  # by position, as we pass it, any name will do
        ),
        (
            {"vllm/moved/inner.py": "def connect(host: str, number: int) -> None: ...\n"},
            r'uses.py:7: Unexpected keyword argument "port" for "connect"',
        ),
        (
            {"vllm/moved/inner.py": "def connect(host: str, port: int, user: str) -> None: ...\n"},
            r'uses.py:7: Missing positional argument "user" in call to "connect"',
        ),
        (
            {"vllm/llm.py": "class LLM:\n    def reply(self, prompt: str, seed: int = 0) -> str: return prompt\n"},
            r'uses.py:8: "LLM" has no attribute "answer"',
        ),
        (
            {"vllm/base.py": "class Base:\n    def fetch(self, url: str, *, mode: str, budget: int = 0) -> str: ...\n"},
            r'uses.py:11: Signature of "fetch" incompatible with supertype',
        ),
    ],
)
def test_a_name_that_is_gone_and_a_signature_that_changed(tmp_path: Path, vllm: dict[str, str], expected: str | None):
    found = found_in(tmp_path, vllm)
    if expected is None:
        assert found == []
    else:
        assert re.search(expected, "\n".join(found)), found


def test_names_that_are_made_when_they_are_asked_for(tmp_path: Path):
    root = written(tmp_path, VLLM)
    assert {"LLM", "TABLE"} <= names_of(root, "vllm")
    assert "SamplingParams" not in names_of(root, "vllm")
    assert names_of(root, ".".join(["vllm", "moved"])) >= {"connect"}
    asked = {"a.py": ast.parse("from vllm import SamplingParams\nEXECUTOR = 'vllm.moved.inner.Executor'\n")}
    assert missing_names(asked, root, RELEASE) == [
        "a.py:1: vLLM 0.33.0 has no vllm.SamplingParams",
        "a.py:2: vLLM 0.33.0 has no vllm.moved.inner.Executor",
    ]


def test_of_two_places_of_a_name_the_releases_own_is_looked_at(tmp_path: Path):
    ours = """
        SINCE_0_33 = True
        if SINCE_0_33:
            from vllm.moved import connect
        else:
            from vllm.before import connect
        """
    assert found_in(tmp_path, {}, {"plugin/uses.py": ours}) == []
    of_the_older = missing_names(trees(tmp_path / "ours"), tmp_path / "release", "0.32.0")
    assert of_the_older == ["plugin/uses.py:6: vLLM 0.32.0 has no vllm.before.connect"]
    assert switch_value("SINCE_0_33", "0.32.1") is False
    assert switch_value("SINCE_0_33", "1.0.0") is True
    assert switch_value("CLIENTS", "0.33.0") is None


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("model.hook(tokens=3, kind='image')", []),
        ("model.hook(3, kind='image')", []),
        ("model.hook(**what)", []),
        ("model.hook(tokens=3)", ["calls it otherwise: model.hook(tokens=3)"]),
        ("model.hook(tokens=3, kind='image', more=1)", ["calls it otherwise"]),
        ("model.other()", ["no longer calls it"]),
    ],
)
def test_what_vllm_calls_on_our_classes(tmp_path: Path, call: str, expected: list[str]):
    root = written(tmp_path, {"vllm/v1/runner.py": f"def run(model, what):\n    {call}\n"})
    ours = {"plugin/m.py": ast.parse("class Model:\n    def hook(self, tokens, *, kind): ...\n")}
    found = uncalled(ours, root, RELEASE, [("plugin/m.py", "Model", "hook", "v1")])
    assert len(found) == len(expected)
    assert all(part in line for part, line in zip(expected, found, strict=True))


def test_a_default_for_a_flag_that_is_gone_is_found(tmp_path: Path):
    declared = "class EngineArgs:\n    max_model_len: int = 0\n"
    root = written(tmp_path, {"vllm/engine/arg_utils.py": declared})
    ours = "parser.add_argument('--own-flag')\nparser.set_defaults(max_model_len=1, own_flag=2, prompt_details=True)\n"
    ours += "args.threads = args.max_model_len + args.block\n"
    assert unknown_flags({"serving/serve.py": ast.parse(ours)}, root, RELEASE) == [
        "serving/serve.py:2: vLLM 0.33.0 has no flag prompt_details",
        "serving/serve.py:3: vLLM 0.33.0 has no flag block",
    ]


def test_a_new_route_needs_a_rule(tmp_path: Path):
    router = "@router.{method}('{path}')\nasync def answer(): ...\n"
    before = written(tmp_path / "0", {"vllm/entrypoints/a.py": router.format(method="get", path="/score")})
    more = "".join(router.format(method="post", path=path) for path in ("/score", "/v1/ruled", "/v1/new"))
    root = written(tmp_path / "1", {"vllm/entrypoints/a.py": more})
    rules = tmp_path / "rules.py"
    rules.write_text('Rule("POST", "/v1/ruled")')
    [found] = unruled_routes(rules, root, RELEASE, before)
    assert "new route /v1/new" in found


def test_of_a_wheel_the_python_sources_are_kept(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        for name in ("vllm/a.py", "vllm/py.typed", "vllm/_C.abi3.so", "vllm-1.dist-info/METADATA"):
            wheel.writestr(name, "")
    extract(tmp_path / "a.whl", tmp_path / "sources")
    kept = sorted(file.name for file in (tmp_path / "sources").rglob("*") if file.is_file())
    assert kept == ["a.py", "py.typed"]


def test_what_is_not_in_the_cache_and_cannot_be_fetched_is_said_and_fails_in_ci(tmp_path: Path, monkeypatch, capsys):
    with pytest.raises(UnreachableError, match="--offline"):
        sources(RELEASE, tmp_path, offline=True)
    arguments = ["--offline", "--cache", str(tmp_path), "--releases", RELEASE]
    monkeypatch.delenv("CI", raising=False)
    assert command.main(arguments) == 0
    assert "vLLM 0.33.0: NOT COMPARED" in capsys.readouterr().out
    monkeypatch.setenv("CI", "true")
    assert command.main(arguments) == 1


def test_the_releases_that_are_compared_are_those_that_can_be_installed():
    project = tomllib.loads((command.HERE / "pyproject.toml").read_text())["project"]
    [cuda] = map(Requirement, project["optional-dependencies"]["cuda"])
    assert all(cuda.specifier.contains(release) for release in command.SUPPORTED)
    newest = [int(part) for part in command.SUPPORTED[-1].split(".")]
    assert not cuda.specifier.contains(f"{newest[0]}.{newest[1] + 1}.0")
    [cpu] = map(Requirement, project["optional-dependencies"]["cpu"])
    assert cpu.specifier.contains(command.SUPPORTED[0])


def test_vllm_is_imported_in_few_files_of_ours():
    """Where a name's place may differ by release, there is one file for it on each side."""
    doors = {"plugin/vllm_model_api.py", "serving/vllm_server_api.py"}
    # Without the layers that vllm_model_api.py brings, when they are called: vLLM's front, the same in all releases.
    light = {
        "plugin/command/host_memory.py",
        "plugin/registration.py",
        "plugin/quantization.py",
        "plugin/cpu/kernel_support.py",
        "serving/startup/server_imports.py",
    }
    light |= {"plugin/vllm_model/worker_extension.py"}  # for mypy alone
    light |= {
        "train/verify/served_stages.py",
        "benchmarks/machine/output_layer_speed.py",
        "benchmarks/comparison/vllm_bench.py",
    }
    light |= {"benchmarks/server_cost/instant_executor.py"}  # an executor, which vLLM takes by its class's name
    importing = {
        file
        for file in command.tracked_python(command.HERE)
        if not file.startswith("tests/")
        and re.search(r"^\s*(from|import) vllm\b", (command.HERE / file).read_text(), re.MULTILINE)
    }
    assert importing == doors | light


def test_importing_the_plugin_pulls_in_neither_torch_nor_vllm():
    code = "import sys, qwen_vqa.plugin; print([name for name in ('torch', 'vllm') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
