"""Adapters that are loaded and unloaded at run time are there after a restart: `--adapters-file`."""

import asyncio
import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from openai import OpenAI

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.adapters.adapters_file import AdaptersFile
from qwen_vqa.serving.errors.refusals import RefusedError
from qwen_vqa.train.model.reference_adapter import attach_adapter
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from qwen_vqa.train.verify.served_stages import ServedModel
from qwen_vqa.train.verify.stage_comparison import Reference, Tolerance, compare_answer
from qwen_vqa.train.verify.verify_cases import case, picture
from tests.server import START_SECONDS, Server, serving
from tests.serving.adapters.test_adapters import completed
from tests.tiny import make_adapter

KEY = "operator-secret-0123456789"
HEADERS = {"Authorization": f"Bearer {KEY}"}


def written(folder: Path, **entries: str | None) -> Path:
    path = folder / "adapters.json"
    path.write_text(json.dumps(entries))
    return path


def change(file: AdaptersFile, name: str, folder: str | None) -> None:
    async def run() -> None:
        async with file.change(name, folder):
            pass

    asyncio.run(run())


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_what_was_loaded_and_unloaded_is_in_the_file(tmp_path: Path, umask: int, mode: int):
    file = AdaptersFile(tmp_path / "adapters.json", given=["own"])
    before = os.umask(umask)
    try:
        for name, folder in (("one", "/a"), ("two", "/b"), ("one", None), ("own", None), ("two", "/c")):
            change(file, name, folder)
    finally:
        os.umask(before)
    assert json.loads(file.path.read_text()) == {"own": None, "two": "/c"}
    assert AdaptersFile(tmp_path / "adapters.json").entries == file.entries
    assert stat.S_IMODE(file.path.stat().st_mode) == mode
    assert [path.name for path in tmp_path.iterdir()] == ["adapters.json"]


def test_a_change_that_fails_is_not_kept(tmp_path: Path):
    file = AdaptersFile(written(tmp_path, one="/a"))

    async def fails() -> None:
        async with file.change("two", "/b"):
            raise RuntimeError("the engine does not take it")

    with pytest.raises(RuntimeError):
        asyncio.run(fails())
    assert json.loads(file.path.read_text()) == {"one": "/a"} == file.entries


def test_where_nothing_can_be_written_nothing_is_changed(tmp_path: Path):
    folder = tmp_path / "folder"
    folder.mkdir()
    file = AdaptersFile(folder / "adapters.json")
    folder.rmdir()
    with pytest.raises(RefusedError, match="--adapters-file") as error:
        change(file, "one", "/a")
    assert error.value.status == 500
    assert file.entries == {}


@pytest.mark.parametrize("content", ["", "[]", '{"one": 1}', '{"one": "/a"', '{"one": ["/a"]}'])
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, content: str):
    path = tmp_path / "adapters.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"--adapters-file .*adapters\.json"):
        AdaptersFile(path)
    assert path.read_text() == content


def test_a_place_where_none_can_be_is_refused(tmp_path: Path):
    for path in (tmp_path, tmp_path / "none" / "adapters.json"):
        with pytest.raises(UserError, match="--adapters-file"):
            AdaptersFile(path)


def test_the_server_begins_with_what_the_file_says(
    tiny_with_adapter: Path, tiny_adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = ["--open-routes", "adapters", "--adapters-file"]
    path = written(tmp_path, more=str(tiny_adapter), gone=str(tmp_path / "gone"), empty=str(tmp_path))
    args = completed(tiny_with_adapter, True, *flags, str(path))
    assert {module.name: module.path for module in args.lora_modules} == {
        "tiny-lora": str(tiny_with_adapter / "adapters" / "tiny-lora"),
        "more": str(tiny_adapter),
    }
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(said) == 2
    assert "adapter gone" in said[0] and str(tmp_path / "gone") in said[0] and "adapter empty" in said[1]
    for entries in ({"tiny-lora": None}, {"tiny-lora": str(tmp_path / "gone")}):
        args = completed(tiny_with_adapter, True, *flags, str(written(tmp_path, **entries)))
        assert args.lora_modules == [], "nor does another answer for it"


def test_a_file_for_adapters_that_cannot_come_is_refused(tiny_with_adapter: Path, tmp_path: Path):
    with pytest.raises(UserError, match="--open-routes adapters"):
        completed(tiny_with_adapter, True, "--adapters-file", str(tmp_path / "adapters.json"))


@dataclass(frozen=True)
class Started:
    server: Server
    file: Path

    def post(self, route: str, **body: str) -> httpx.Response:
        return httpx.post(f"{self.server.url}/{route}", json=body, headers=HEADERS, timeout=60)

    def names(self) -> list[str]:
        client = OpenAI(base_url=self.server.url, api_key=KEY, max_retries=0)
        return sorted(model.id for model in client.models.list())

    def kill_engine_and_wait(self) -> None:
        tree = psutil.Process(self.server.process.pid).children(recursive=True)
        next(one for one in tree if "EngineCore" in " ".join(one.cmdline())).send_signal(signal.SIGKILL)
        psutil.wait_procs(tree, timeout=20)
        deadline = time.monotonic() + START_SECONDS
        while httpx.get(f"{self.server.url.removesuffix('/v1')}/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.fixture(scope="module")
def started(tiny_with_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    folder = tmp_path_factory.mktemp("kept")
    (folder / "keys.json").write_text(json.dumps({"keys": [{"name": "operator", "key": KEY, "admin": True}]}))
    flags = ["--api-keys-file", str(folder / "keys.json"), "--served-model-name", "tiny", "--dtype", "float32"]
    flags += ["--open-routes", "adapters", "--adapters-file", str(folder / "adapters.json")]
    with serving(folder / "log", str(tiny_with_adapter), *flags) as server:
        yield Started(server, folder / "adapters.json")


def test_a_restart_brings_back_what_was_loaded_and_not_what_was_unloaded(
    started: Started, tiny_with_adapter: Path, tmp_path: Path
):
    other = make_adapter(tiny_with_adapter, tmp_path / "other", seed=7)
    assert started.names() == ["tiny", "tiny-lora"]
    assert started.post("load_lora_adapter", lora_name="bad", lora_path=str(tmp_path)).status_code == 400
    assert not started.file.exists(), "what was refused is not kept"
    assert started.post("load_lora_adapter", lora_name="other", lora_path=str(other)).status_code == 200
    assert started.post("unload_lora_adapter", lora_name="tiny-lora").status_code == 200
    assert json.loads(started.file.read_text()) == {"other": str(other), "tiny-lora": None}
    started.kill_engine_and_wait()
    assert started.names() == ["other", "tiny"]
    adapted = load_reference(tiny_with_adapter, torch.float32)
    adapted.language_model = attach_adapter(adapted.language_model, other)
    asked = case("picture", picture(1, 90, 60), "What is it?")
    answer = ServedModel(started.server.url, "other", KEY, {"ignore_eos": True}).answer(asked, 8)
    result = compare_answer(
        asked, Reference(adapted, load_processor(tiny_with_adapter)), answer, Tolerance.of(torch.float32)
    )
    assert result.equal, result.detail
    assert started.post("unload_lora_adapter", lora_name="other").status_code == 200
    assert json.loads(started.file.read_text()) == {"tiny-lora": None}
