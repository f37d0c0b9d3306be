"""What `serve` refuses before it starts anything heavy, and in which words."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.adapters.adapter_slots import add_adapter_flags, slot_bytes
from qwen_vqa.serving.admission.admission import add_admission_flags
from qwen_vqa.serving.checked_checkpoint import checked_checkpoint
from qwen_vqa.serving.cli import JOBS, main
from qwen_vqa.serving.process.listener import add_life_flags
from qwen_vqa.serving.startup.image_flags import add_image_flags
from tests.server import SERVE, free_port
from tests.vllm_copy import command, in_a_copy, server


def serve(*arguments: str) -> tuple[int, str]:
    if "--port" not in arguments:
        arguments += ("--port", str(free_port()))
    run = subprocess.run([*SERVE, *arguments], capture_output=True, text=True, timeout=120, check=False)
    return run.returncode, run.stderr


def serve_in_a_copy(*arguments: str) -> tuple[int, str]:
    """What the server's own process says, and ends with: the command, whose child it is, ends with the same."""
    run = in_a_copy(server, *arguments)
    return run.returncode, run.stderr


def test_no_such_checkpoint_is_one_clear_line():
    status, printed = serve("/no/such/model")
    assert status == 2
    assert printed.splitlines()[-1].startswith("qwen-vqa: no checkpoint at /no/such/model: there is no such folder.")
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--no-restart /no/such/model", "no checkpoint at /no/such/model"),
        ("--model /no/such/model", "no checkpoint at /no/such/model"),
        ("--revision v1", "--revision v1"),
    ],
)
def test_wherever_the_checkpoint_stands_on_the_command_line_it_is_looked_at(words: str, named: str):
    status, printed = serve_in_a_copy(*words.split())
    assert status == 2
    assert named in printed.splitlines()[-1]


def test_a_port_that_is_taken_is_said_before_the_model_loads(tiny_checkpoint: Path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        status, printed = serve(str(tiny_checkpoint), "--port", str(port))
    assert status == 2
    assert f"port {port} on 127.0.0.1 cannot be used" in printed
    assert f"--port {port + 1}" in printed


def test_an_unknown_flag_is_vllms_to_refuse(tiny_checkpoint: Path):
    status, printed = serve_in_a_copy(str(tiny_checkpoint), "--no-such-flag")
    assert status == 2
    assert "--no-such-flag" in printed


def test_a_plugin_that_does_not_load_is_said_with_the_reason(tiny_checkpoint: Path):
    run = in_a_copy(serve_without_the_model, str(tiny_checkpoint))
    reason = "UserError: the vLLM plugin cannot be loaded: ModuleNotFoundError.*qwen-vqa doctor"
    assert re.search(reason, run.stderr)


def serve_without_the_model(*arguments: str) -> None:
    """An installed package of another version: the import of something that it no longer has."""
    sys.modules["qwen_vqa.plugin.vllm_model.model"] = None  # type: ignore[assignment]
    from qwen_vqa.serving.serve import serve

    serve(list(arguments), socket.socket(), None)


def test_vllm_need_not_import_itself_once_more_to_look_at_the_model():
    run = in_a_copy(registered_model)
    assert run.stdout.split()[-1] == "_RegisteredModel", run.stderr


def registered_model() -> None:
    from vllm import ModelRegistry

    from qwen_vqa.serving.checked_checkpoint import check_plugin, register_imported_model

    check_plugin()
    register_imported_model()
    print(type(ModelRegistry.models["QwenVqaForConditionalGeneration"]).__name__)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "chat_template.jinja"])
def test_a_file_that_is_missing_is_named(tiny_checkpoint: Path, tmp_path: Path, name: str):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "cut")
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"lacks {name}"):
        checked_checkpoint(folder)


def test_an_adapter_of_another_model_is_refused(tiny_checkpoint: Path, tiny_adapter: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "served")
    adapter = shutil.copytree(tiny_adapter, folder / "adapters" / "theirs")
    config = (adapter / "adapter_config.json").read_text()
    (adapter / "adapter_config.json").write_text(config.replace('"r": 4', '"r": 8'))
    status, printed = serve(str(folder))
    assert status == 2
    assert "theirs says rank 8" in printed


def test_adapters_of_the_command_line_are_looked_at_too(tiny_checkpoint: Path, tmp_path: Path):
    status, printed = serve_in_a_copy(str(tiny_checkpoint), "--lora-modules", f"mine={tmp_path}")
    assert status == 2
    assert f"no adapter at {tmp_path}" in printed


def test_adapter_slots_are_counted(tiny_checkpoint: Path):
    config = checked_checkpoint(tiny_checkpoint).config
    text = config.text_config
    kv = text.num_key_value_heads * text.hidden_size // text.num_attention_heads
    attention = 2 * (text.hidden_size + text.hidden_size) + 2 * (text.hidden_size + kv)
    widths = text.num_hidden_layers * (attention + 3 * (text.hidden_size + text.intermediate_size))
    args = Namespace(enable_lora=True, max_loras=3, max_lora_rank=16)
    assert slot_bytes(args, config, 2) == 3 * 16 * widths * 2
    assert slot_bytes(Namespace(enable_lora=False), config, 2) == 0


@pytest.mark.parametrize("job", sorted(JOBS))
def test_every_job_has_help_with_an_example(job: str, capsys):
    try:
        assert main([job, "--help"]) == 0
    except SystemExit as end:
        assert end.code == 0
    printed = capsys.readouterr().out
    assert "example" in printed
    assert f"qwen-vqa {job}" in printed


def test_the_help_of_serve_names_every_flag_of_ours_and_the_numbers_defaults(capsys):
    parser = ArgumentParser(add_help=False)
    for add in (add_admission_flags, add_life_flags, add_image_flags, add_adapter_flags):
        add(parser)
    assert main(["serve", "--help"]) == 0
    entries = re.split(r"\n  (?=--)", capsys.readouterr().out)
    for action in parser._actions:
        entry = next((each for each in entries if each.split()[0] == action.option_strings[0]), None)
        assert entry, action.option_strings[0]
        if type(action.default) is int:
            assert re.search(rf"\(default: {action.default}[);,]", entry), entry


def test_the_doctor_finds_everything_here():
    run = in_a_copy(command, "doctor")
    assert run.returncode == 0, run.stdout
    assert "registered" in run.stdout
    assert "everything is in place" in run.stdout
    [schemes] = [line.split(maxsplit=1)[1] for line in run.stdout.splitlines() if line.startswith("schemes")]
    assert schemes.endswith("nf4, int8-bnb")
    assert "fp8 needs a GPU of CUDA capability 8.9" in run.stdout


def test_the_doctor_says_when_the_plugin_is_kept_out():
    run = in_a_copy(command, "doctor", environment={**os.environ, "VLLM_PLUGINS": "another"})
    assert run.returncode == 1
    assert "VLLM_PLUGINS, if it is set, must name qwen_vqa" in run.stdout


def test_a_processor_of_another_encoder_is_refused(tiny_checkpoint: Path, tmp_path: Path):
    for file in tiny_checkpoint.iterdir():
        (tmp_path / file.name).symlink_to(file)
    settings = json.loads((tiny_checkpoint / "processor_config.json").read_text())
    settings["image_processor"]["patch_size"] = 16
    (tmp_path / "processor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"17 tokens of a view, and the encoder of config\.json 5"):
        checked_checkpoint(tmp_path)
