"""What is said of a checkpoint's files before anything is loaded."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_vqa.plugin.checkpoint_files import check_checkpoint
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.cli import main

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
ONE_SAMPLE = json.dumps(
    {"messages": [{"role": "user", "content": "which?"}, {"role": "assistant", "content": "this one"}]}
)


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data[:100], lambda data: b"", lambda data: POINTER]
)
def test_weights_that_are_cut_off_are_named(tiny_checkpoint: Path, tmp_path: Path, change):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "cut")
    file = folder / "model.safetensors"
    check_checkpoint(folder)
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match="not whole") as said:
        check_checkpoint(folder)
    assert str(file) in str(said.value)
    assert f"{file.stat().st_size:,} bytes" in str(said.value)


@pytest.fixture
def umask() -> Iterator[None]:
    """Files for the group to read, and for nobody else."""
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_weights_have_the_umasks_mode_as_all_other_files(
    tiny_checkpoint: Path, tiny_adapter: Path, tmp_path: Path, umask: None
):
    (tmp_path / "one.jsonl").write_text(ONE_SAMPLE)
    alone = shutil.copytree(tiny_checkpoint, tmp_path / "with-adapter")
    shutil.copytree(tiny_adapter, alone / "adapters" / "mine")
    for file in alone.rglob("*.safetensors"):
        file.chmod(0o600)
    run, data = tmp_path / "run", tmp_path / "one.jsonl"
    flags = "--max-steps 1 --rank 2 --batch-size 1 --no-merge-adapter --precision float32"
    assert main(f"train {tiny_checkpoint} --data {data} -o {run} {flags}".split()) == 0
    assert main(f"quantize {alone} --scheme int8 -o {tmp_path}/int8 --adapter-bound 100".split()) == 0
    written = [*run.rglob("*"), *(tmp_path / "int8").rglob("*.safetensors")]  # the others are copies
    modes = {file: oct(file.stat().st_mode & 0o777) for file in written if file.is_file()}
    assert sum(file.suffix == ".safetensors" for file in modes) >= 6
    assert set(modes.values()) == {"0o640"}, modes
