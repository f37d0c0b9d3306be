"""`--device`: which one is chosen, and that everything computed goes there."""

import argparse
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.cli import main
from qwen_vqa.train.data.source import DataSource
from qwen_vqa.train.evaluation.checkpoint_model import CheckpointModel
from qwen_vqa.train.evaluation.questions import OWN, prompts, read_questions
from qwen_vqa.train.model.compute_device import CPU, GIB, Gpus, check_room, chosen_device
from qwen_vqa.train.model.device_flag import add_device_flag
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from qwen_vqa.train.verify.served_stages import ServedAnswer, ServedPrompt
from qwen_vqa.train.verify.stage_comparison import STAGES, Reference, Tolerance, compare
from qwen_vqa.train.verify.verify_cases import built_in_cases
from tests.other_device import other_device
from tests.train import releases
from tests.vllm_copy import passes_in_a_copy

TWO = Gpus(("NVIDIA A10G", "NVIDIA T4"))
NONE = Gpus(reason="the driver is too old")


@pytest.mark.parametrize(
    ("asked", "gpus", "expected"),
    [
        ("auto", TWO, "cuda:0"),
        ("auto", NONE, "cpu"),
        ("cpu", TWO, "cpu"),
        ("cuda", TWO, "cuda:0"),
        ("cuda:1", TWO, "cuda:1"),
    ],
)
def test_the_device_that_is_chosen(asked: str, gpus: Gpus, expected: str):
    assert chosen_device(asked, gpus) == torch.device(expected)


@pytest.mark.parametrize(
    ("asked", "gpus", "message"),
    [
        ("cuda", NONE, r"no GPU to use: the driver is too old\. Pass --device cpu"),
        ("cuda:2", TWO, r"no such GPU\. Here: cuda:0 \(NVIDIA A10G\), cuda:1 \(NVIDIA T4\)"),
        ("tpu", TWO, "must be auto, cpu, cuda or cuda:N"),
        ("cuda:x", TWO, "must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_a_device_that_is_not_there(asked: str, gpus: Gpus, message: str):
    with pytest.raises(UserError, match=message):
        chosen_device(asked, gpus)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_why_there_is_no_gpu_here_is_said():
    with pytest.raises(UserError, match=r"no GPU to use: .*(built for CPUs alone|NVIDIA|CUDA)"):
        chosen_device("cuda")


def test_a_gpu_without_the_room_is_left_or_refused(capsys: pytest.CaptureFixture[str]):
    gpu = torch.device("cuda", 0)
    assert check_room("auto", gpu, 3 * GIB, 3 * GIB, "the model") == gpu
    assert check_room("auto", gpu, 3 * GIB, 2 * GIB, "the model") == CPU
    assert "on the CPU, since the model needs about 3.0 GiB, and cuda:0 has 2.0 free" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"the model needs about 3\.0 GiB.*lower --samples, or pass --device cpu"):
        check_room("cuda", gpu, 3 * GIB, 2 * GIB, "the model", "lower --samples")


@pytest.mark.parametrize(
    "command",
    [
        ["verify", "CHECKPOINT"],
        ["evaluate", "CHECKPOINT", "--data", "DATA", "-o", "OUTPUT"],
        ["quantize", "CHECKPOINT", "--scheme", "int8", "-o", "OUTPUT"],
        ["quantize", "report", "CHECKPOINT", "CHECKPOINT"],
    ],
)
def test_commands_say_so_before_they_do_anything(
    command: list[str], tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    places = {"CHECKPOINT": tiny_checkpoint, "DATA": releases.write_textvqa(tmp_path), "OUTPUT": tmp_path / "out"}
    assert main([*(str(places.get(word, word)) for word in command), "--device", "cuda:99"]) == 2
    assert "--device cuda:99: there is no" in capsys.readouterr().err
    assert not (tmp_path / "out/results.json").exists()


def test_the_flags_default_is_auto():
    parser = argparse.ArgumentParser()
    add_device_flag(parser, "it computes")
    assert parser.parse_args([]).device == "auto"


def test_the_other_device_refuses_a_tensor_that_is_not_there():
    passes_in_a_copy(tensors_of_two_devices)


def tensors_of_two_devices() -> None:
    with other_device() as device, pytest.raises(RuntimeError, match="all tensors must be on one device"):
        torch.ones(3, device=device) + torch.ones(3)


def test_a_checkpoint_is_evaluated_where_its_model_is(tiny_checkpoint: Path, tmp_path: Path):
    passes_in_a_copy(evaluated_here_and_there, tiny_checkpoint, releases.write_textvqa(tmp_path))


def evaluated_here_and_there(checkpoint: Path, data: Path) -> None:
    asked = prompts(read_questions([DataSource.parse(data)], 0)[0], [OWN], 0)
    model = CheckpointModel.load(checkpoint, None, torch.float32, 4, 2, "cpu")
    here: list[str] = []
    model.ask(asked, lambda reply: here.append(reply.answer))
    there: list[str] = []
    with other_device() as device:
        model.model.to(device)
        model.ask(asked, lambda reply: there.append(reply.answer))
    assert here == there and any(here)


def test_verifys_reference_computes_where_its_model_is(tiny_checkpoint: Path):
    passes_in_a_copy(compared_with_the_reference_there, tiny_checkpoint)


def compared_with_the_reference_there(checkpoint: Path) -> None:
    reference = Reference(load_reference(checkpoint, torch.float32), load_processor(checkpoint))
    one = built_in_cases()[1]
    inputs = reference.processor(
        text=reference.processor.apply_chat_template(one.messages, tokenize=False, add_generation_prompt=True),
        images=one.images,
        return_tensors="pt",
    )
    with torch.inference_mode():
        features = reference.model.connector(reference.model.get_image_features(inputs["pixel_values"])).numpy()
        logprobs = reference.model(**inputs).logits[0, -1].log_softmax(-1)
    server = SimpleNamespace(
        prompt=lambda _: ServedPrompt(inputs["input_ids"][0].tolist(), inputs["pixel_values"].numpy()),
        image_features=lambda *_: features,
        answer=lambda *_: ServedAnswer([int(logprobs.argmax())], [float(logprobs.max())]),
    )
    with other_device() as device:
        reference.model.to(device)
        results = list(compare(one, reference, server, Tolerance.of(torch.float32)))
    assert [result.stage for result in results if result.equal] == list(STAGES)
