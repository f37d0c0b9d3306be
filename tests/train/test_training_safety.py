"""What may go wrong in a run: a kill, a full disk, numbers that are none. And several processes in place of one."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from qwen_vqa.plugin.command.installed_command import typed_command
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.cli import main
from qwen_vqa.train.model.reference_checkpoint import load_reference
from qwen_vqa.train.run_checkpoints import STAGING
from qwen_vqa.train.train import train
from qwen_vqa.train.training_config import TrainingConfig
from tests.train import fsdp_steps, releases

SETTINGS = {
    "batch_size": 2, "accumulation": 2, "rank": 4, "alpha": 8, "dropout": 0.1, "learning_rate": 1e-3,
    "connector_learning_rate": 2e-3, "max_steps": 8, "save_steps": 2, "precision": "float32", "epochs": 4,
}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """The three releases, with text alone among them."""
    return [releases.write_llava(tmp_path), releases.write_textvqa(tmp_path), releases.write_vizwiz(tmp_path)]


def arguments(checkpoint: Path, data: list[str], output: Path, **changes: object) -> list[str]:
    flags = [
        str(word) for name, value in (SETTINGS | changes).items() for word in (f"--{name.replace('_', '-')}", value)
    ]
    sources = [word for text in data for word in ("--data", text)]
    return ["train", str(checkpoint), *sources, "-o", str(output), *flags]


def losses(output: Path, step: int) -> list[float]:
    history = json.loads((output / f"checkpoint-{step}/trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_a_run_killed_while_it_saves_goes_on_to_the_same_losses(tiny_checkpoint: Path, data: list[str], tmp_path: Path):
    assert main(arguments(tiny_checkpoint, data, tmp_path / "whole")) == 0
    words = arguments(tiny_checkpoint, data, tmp_path / "cut")
    process = subprocess.Popen([sys.executable, "-m", "qwen_vqa.serving.cli", *words], stderr=subprocess.DEVNULL)
    until(process, (tmp_path / "cut/checkpoint-2").exists)
    # Steps 3 and 4 are done, and are lost. Should it be whole already, it goes on from there.
    until(
        process,
        lambda: (tmp_path / "cut" / STAGING / "checkpoint-4").exists() or (tmp_path / "cut/checkpoint-4").exists(),
    )
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "cut/model").exists()
    assert main([*words, "--resume"]) == 0
    assert losses(tmp_path / "cut", 8) == losses(tmp_path / "whole", 8)
    expected, actual = (load_reference(tmp_path / run / "model").state_dict() for run in ("whole", "cut"))
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def until(process: subprocess.Popen, there: Callable[[], bool]) -> None:
    """The moment matters: it is looked again and again, without a pause that would miss it."""
    while not there():
        assert process.poll() is None


class Sabotaged(Dataset):
    """Does something before it hands out its n-th sample."""

    def __init__(self, dataset: Dataset, after: int, act) -> None:
        self.dataset, self.left, self.act = dataset, after, act

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        self.left -= 1
        sample = self.dataset[index]
        return (self.act(sample) or sample) if self.left < 0 else sample


def test_the_checkpoint_before_survives_a_disk_that_is_full(tiny_checkpoint: Path, data: list[str], tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    dataset = releases.prepare(tmp_path / "run", *data)
    limit = 100_000  # the connector's file fits, the optimizer's does not

    def fill_the_disk(sample: dict) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    try:
        with pytest.raises(UserError, match=r"step 4 could not be saved: .*last good checkpoint is \S*checkpoint-2\."):
            train(tiny_checkpoint, Sabotaged(dataset, 12, fill_the_disk), tmp_path / "run", TrainingConfig(**SETTINGS))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in (tmp_path / "run").glob("*ch*")) == ["checkpoint-2"]
    assert not (tmp_path / "run/.unfinished").exists()
    resumed = train(tiny_checkpoint, dataset, tmp_path / "run", TrainingConfig(**SETTINGS), resume=True)
    assert resumed.state.global_step == 8


def test_a_loss_that_is_no_number_stops_the_run_with_step_and_samples(
    tiny_checkpoint: Path, data: list[str], tmp_path: Path
):
    dataset = releases.prepare(tmp_path / "run", data[1])

    def spoil(sample: dict) -> dict:
        return {**sample, "images": None, "image_features": torch.full((1, 5, 64), float("nan"))}

    with pytest.raises(
        UserError, match=r"the loss is nan at step 5, on the samples textvqa/\d, textvqa/\d\. The last .*checkpoint-4\."
    ):
        train(tiny_checkpoint, Sabotaged(dataset, 12, spoil), tmp_path / "run", TrainingConfig(**SETTINGS))
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


def test_weights_that_are_no_numbers_are_not_saved(tiny_checkpoint: Path, data: list[str], tmp_path: Path):
    config = TrainingConfig(**(SETTINGS | {"learning_rate": 1e30, "connector_learning_rate": 1e30, "save_steps": 1}))
    with pytest.raises(UserError, match=r"not numbers any more|the loss is (nan|inf)"):
        train(tiny_checkpoint, releases.prepare(tmp_path / "run", *data), tmp_path / "run", config)


TORCHRUN = ("torch.distributed.run", "--nproc-per-node", "2")
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")


def launch(launcher: tuple[str, ...], port_flag: str, *words: str) -> subprocess.CompletedProcess:
    """Two processes with one thread each, over gloo."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", *launcher, port_flag, str(port), *words]
    return subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(("launcher", "port_flag"), [(TORCHRUN, "--master-port"), (ACCELERATE, "--main_process_port")])
def test_two_processes_have_the_losses_of_one_with_the_same_global_batch(
    tiny_checkpoint: Path, data: list[str], tmp_path: Path, launcher: tuple[str, ...], port_flag: str
):
    same = {"dropout": 0.0, "max_steps": 4, "save_steps": 4, "max_samples": 8}  # two whole steps an epoch
    assert main(arguments(tiny_checkpoint, data, tmp_path / "one", **same)) == 0
    words = arguments(tiny_checkpoint, data, tmp_path / "two", **same, accumulation=1)
    done = launch(launcher, port_flag, "-m", "qwen_vqa.serving.cli", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "two", 4) == pytest.approx(losses(tmp_path / "one", 4), rel=1e-5)
    assert done.stdout.count(f"serve it: {typed_command()} serve") == 1


def test_the_model_sharded_over_two_processes_has_the_losses_of_the_whole_one(tmp_path: Path):
    done = launch(TORCHRUN, "--master-port", "-m", "tests.train.fsdp_steps", str(tmp_path / "losses.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    sharded, whole = json.loads((tmp_path / "losses.json").read_text()), fsdp_steps.losses(sharded=False)
    assert sharded == pytest.approx(whole, rel=1e-4)
    assert whole[-1] < whole[0] / 2


def test_fsdp_is_refused_before_anything_is_read(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert main(arguments(tiny_checkpoint, ["no-such.jsonl"], tmp_path / "run")) == 2
    assert "use DDP" in capsys.readouterr().err


def test_a_stopped_run_can_be_exported_without_training_on(
    tiny_checkpoint: Path, data: list[str], tmp_path: Path, capsys
):
    stopped = Sabotaged(releases.prepare(tmp_path / "run", *data), 12, lambda sample: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tiny_checkpoint, stopped, tmp_path / "run", TrainingConfig(**SETTINGS))
    assert main(["train", str(tiny_checkpoint), "-o", str(tmp_path / "run"), "--export"]) == 0
    assert f"serve it: {typed_command()} serve {tmp_path / 'run' / 'model'}" in capsys.readouterr().out
    assert (tmp_path / "run/final_lora_model/adapter_model.safetensors").is_file()
    load_reference(tmp_path / "run/model")
