"""Checkpoints by their hub id: the commands, through the real huggingface_hub, against a hub on loopback."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from qwen_vqa.plugin.checkpoint_files import check_checkpoint
from qwen_vqa.plugin.command.installed_command import installed_command
from qwen_vqa.plugin.hub_checkpoint import checkpoint_name
from tests.hub_server import Hub, Repository, hub_server, surroundings

MIB = 2**20
SECONDS = 15
RESOLVE = """
import sys
from qwen_vqa.plugin.hub_checkpoint import local_checkpoint
print(local_checkpoint(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def other_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with another system prompt."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("other") / "checkpoint")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text("{# v1 #}" + template)
    return folder


@pytest.fixture
def hub(tiny_checkpoint: Path, other_checkpoint: Path, tmp_path: Path) -> Iterator[Hub]:
    """A hub with models of every kind of trouble."""
    qwen = tmp_path / "qwen"
    qwen.mkdir()
    (qwen / "config.json").write_text('{"model_type": "qwen2"}')
    (qwen / "model.safetensors").write_bytes(b"0" * MIB)
    half = shutil.copytree(tiny_checkpoint, tmp_path / "half")
    (half / "tokenizer.json").unlink()
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "README.md").write_text("nothing yet")
    with hub_server() as running:
        running.models = {
            "me/tiny": Repository({"main": tiny_checkpoint, "v1": other_checkpoint}),
            "me/private": Repository({"main": tiny_checkpoint}, token="hf_mine"),
            "me/gated": Repository({"main": tiny_checkpoint}, gated=True),
            "me/qwen": Repository({"main": qwen}),
            "me/half": Repository({"main": half}),
            "me/empty": Repository({"main": empty}),
        }
        yield running


def resolve(hub: Hub, home: Path, *words: str, **variables: str) -> Path:
    """What a command makes of a hub id and a revision."""
    command = [sys.executable, "-c", RESOLVE, *words]
    environment = surroundings(hub, home, **variables)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def refused(hub: Hub, home: Path, *words: str, **variables: str) -> str:
    """What a command says that ends with 2: one line, after the progress."""
    command, environment = installed_command(*words), surroundings(hub, home, **variables)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=SECONDS)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("qwen-vqa: ")
    return last


def test_an_id_becomes_a_folder_with_the_hubs_files(hub: Hub, tiny_checkpoint: Path, tmp_path: Path):
    folder = resolve(hub, tmp_path, "me/tiny")
    for file in tiny_checkpoint.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()
    assert checkpoint_name(folder) == "me/tiny"
    hub.requests.clear()
    assert resolve(hub, tmp_path, "me/tiny") == folder
    assert hub.sent() == []


def test_a_revision_is_another_commit(hub: Hub, tmp_path: Path):
    main, tagged = resolve(hub, tmp_path, "me/tiny"), resolve(hub, tmp_path, "me/tiny", "v1")
    assert not (main / "chat_template.jinja").read_text().startswith("{# v1 #}")
    assert (tagged / "chat_template.jinja").read_text().startswith("{# v1 #}")
    assert resolve(hub, tmp_path, "me/tiny", tagged.name) == tagged
    assert "no branch, tag or commit" in refused(hub, tmp_path, "verify", "me/tiny", "--revision", "v2")


def test_a_folder_of_that_name_comes_first(hub: Hub, tiny_checkpoint: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_checkpoint, tmp_path / "me" / "tiny")
    assert resolve(hub, tmp_path, "me/tiny") == Path("me/tiny")
    assert hub.requests == []
    assert "--revision v1" in refused(hub, tmp_path, "verify", "me/tiny", "--revision", "v1")


def test_what_is_not_a_checkpoint_repository_brings_no_weights(hub: Hub, tmp_path: Path):
    assert "'qwen2'" in refused(hub, tmp_path, "verify", "me/qwen")
    assert "config.json" in refused(hub, tmp_path, "verify", "me/empty")
    assert "model.safetensors" not in hub.sent()


def test_a_file_that_is_missing_on_the_hub_is_named(hub: Hub, tmp_path: Path):
    assert "lacks tokenizer.json" in refused(hub, tmp_path, "verify", "me/half")


@pytest.mark.parametrize(
    ("variables", "named"), [({}, "HF_TOKEN"), ({"HF_TOKEN": "hf_theirs"}, "the token that is set may not")]
)
@pytest.mark.parametrize("name", ["me/private", "me/no-such"])
def test_a_private_repository_and_one_that_is_not_there_read_alike(
    hub: Hub, tmp_path: Path, name: str, variables: dict[str, str], named: str
):
    said = refused(hub, tmp_path, "verify", name, **variables)
    assert "no such folder" in said
    assert f"{hub.url} has no {name}" in said
    assert named in said
    assert "hf_theirs" not in said


def test_the_token_opens_a_private_repository(hub: Hub, tmp_path: Path):
    check_checkpoint(resolve(hub, tmp_path, "me/private", HF_TOKEN="hf_mine"))


def test_a_gated_repository_says_where_to_ask(hub: Hub, tmp_path: Path):
    assert f"{hub.url} keeps me/gated" in refused(hub, tmp_path, "verify", "me/gated", HF_TOKEN="hf_mine")


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: Hub, tiny_checkpoint: Path, tmp_path: Path):
    # The client keeps what came in whole blocks of 10 MiB.
    large = shutil.copytree(tiny_checkpoint, tmp_path / "large")
    weights = {"weights": np.random.default_rng(0).integers(0, 256, 24 * MIB, np.uint8)}
    save_file(weights, large / "model.safetensors")
    hub.models["me/large"] = Repository({"main": large})
    hub.cut_after = 11 * MIB
    folder = resolve(hub, tmp_path, "me/large")
    assert (folder / "model.safetensors").read_bytes() == (large / "model.safetensors").read_bytes()
    assert [asked for _, _, asked in hub.requests if asked] == [f"bytes={10 * MIB}-", f"bytes={20 * MIB}-"]


def test_after_an_interruption_only_what_was_not_whole_is_downloaded(hub: Hub, tmp_path: Path):
    hub.cut_after = 300_000  # the weights are larger, and the other files are not
    assert "broke off" in refused(hub, tmp_path, "verify", "me/tiny")
    hub.cut_after = None
    hub.requests.clear()
    offline = refused(hub, tmp_path, "verify", "me/tiny", HF_HUB_OFFLINE="1")
    assert "not whole" in offline
    assert hub.requests == []
    check_checkpoint(resolve(hub, tmp_path, "me/tiny"))
    assert "model.safetensors" in hub.sent()
    assert "config.json" not in hub.sent()


def test_offline_the_cache_is_enough(hub: Hub, tmp_path: Path):
    folder, tagged = resolve(hub, tmp_path, "me/tiny"), resolve(hub, tmp_path, "me/tiny", "v1")
    hub.requests.clear()
    assert resolve(hub, tmp_path, "me/tiny", HF_HUB_OFFLINE="1") == folder
    assert resolve(hub, tmp_path, "me/tiny", "v1", HF_HUB_OFFLINE="1") == tagged
    assert "hf download me/private" in refused(hub, tmp_path, "verify", "me/private", HF_HUB_OFFLINE="1")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("verify runs/mien", "no checkpoint at runs/mien: there is no such folder"),
        ("assemble --vision-encoder me/vit --language-model me/qwen -o out", "no vision encoder at me/vit"),
        ("assemble --vision-encoder {here} --language-model gpt2 -o out", "no language model at gpt2"),
    ],
)
def test_without_a_network_it_is_said_at_once(hub: Hub, tmp_path: Path, words: str, named: str):
    """The hub's client, left alone, would ask again for 20 seconds."""
    nowhere = "http://127.0.0.1:9"
    said = refused(hub, tmp_path, *words.format(here=tmp_path).split(), HF_ENDPOINT=nowhere)
    assert named in said
    assert f"{nowhere} cannot be reached" in said


@pytest.mark.parametrize("given", ["mine", "/no/such/model", "../me/tiny", "./me/tiny", "a/b/c", "me/tiny/"])
def test_what_no_id_looks_like_is_not_asked_for(hub: Hub, tmp_path: Path, given: str):
    said = refused(hub, tmp_path, "verify", given)
    assert f"no checkpoint at {Path(given)}: there is no such folder" in said
    assert "ORG/MODEL" in said
    assert hub.requests == []


def test_every_job_takes_an_id(hub: Hub, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (
        "train me/private --data local=x.jsonl -o run",
        "evaluate me/private --data local=x.jsonl -o out",
        "verify me/private",
        "quantize me/private --scheme int8 -o out",
        "assemble --vision-encoder me/private --language-model me/private -o out",
        "serve me/private",
        "serve me/private --host 127.0.0.1 --revision=main",
    ):
        assert f"{hub.url} has no me/private" in refused(hub, tmp_path, *words.split()), words


def test_quantising_from_the_hub_leaves_its_cache_as_it_was(hub: Hub, tmp_path: Path):
    folder = resolve(hub, tmp_path, "me/tiny")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    command = installed_command("quantize", "me/tiny", "--scheme", "int8", "-o", str(tmp_path / "int8"))
    done = subprocess.run(command, capture_output=True, text=True, env=surroundings(hub, tmp_path), check=False)
    assert done.returncode == 0, done.stderr
    check_checkpoint(tmp_path / "int8")
    assert json.loads((tmp_path / "int8" / "quantization.json").read_text())["source"] == "me/tiny"
    assert not any(file.is_symlink() for file in (tmp_path / "int8").iterdir())
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
