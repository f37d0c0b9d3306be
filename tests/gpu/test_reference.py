"""What only a GPU shows: the reference, training and calibration there give the CPU's numbers."""

from pathlib import Path

import pytest
import torch

from qwen_vqa.quantize.calibration import calibrate
from qwen_vqa.quantize.schemes.int4 import Int4
from qwen_vqa.train.model.compute_device import chosen_device
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from qwen_vqa.train.train import train
from qwen_vqa.train.training_config import TrainingConfig
from tests.tiny import picture, user
from tests.train import releases

pytestmark = pytest.mark.gpu
STEPS = {"batch_size": 2, "accumulation": 1, "rank": 4, "dropout": 0.0, "max_steps": 3, "learning_rate": 1e-3}


@pytest.fixture
def samples() -> list[dict]:
    answer = {"role": "assistant", "content": "a picture"}
    pictures = [picture(seed) for seed in range(4)]
    return [
        {"sample_id": str(number), "messages": [user(image, "what?"), answer], "images": [image]}
        for number, image in enumerate(pictures)
    ]


def test_auto_is_the_gpu():
    assert chosen_device("auto").type == "cuda"


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-3), (torch.bfloat16, 0.25), (torch.float16, 0.25)])
def test_the_reference_answers_as_on_the_cpu(tiny_checkpoint: Path, dtype: torch.dtype, bound: float):
    processor = load_processor(tiny_checkpoint)
    prompt = processor.apply_chat_template([user(picture(0), "what?")], tokenize=False, add_generation_prompt=True)
    inputs = processor(text=prompt, images=[picture(0)], return_tensors="pt")
    with torch.inference_mode():
        expected = load_reference(tiny_checkpoint, torch.float32)(**inputs).logits.log_softmax(-1)
        actual = load_reference(tiny_checkpoint, dtype).cuda()(**inputs.to("cuda")).logits.float().log_softmax(-1).cpu()
    assert (expected.exp() * (expected - actual)).sum(-1).abs().max() < bound


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("load_in", ["full", "4bit"])
def test_a_run_trains_in_every_precision(tiny_checkpoint: Path, tmp_path: Path, precision: str, load_in: str):
    dataset = releases.prepare(tmp_path / "run", releases.write_llava(tmp_path))
    config = TrainingConfig(**STEPS, precision=precision, load_in=load_in)
    trainer = train(tiny_checkpoint, dataset, tmp_path / "run", config)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.model.device.type == "cuda"
    assert len(losses) == 3 and all(0 < loss < 100 for loss in losses)


def test_calibration_tunes_there_and_gives_its_results_on_the_cpu(tiny_checkpoint: Path, samples: list[dict]):
    processor = load_processor(tiny_checkpoint)

    def tuned(device: str) -> dict:
        return calibrate(load_reference(tiny_checkpoint), processor, samples, Int4(64), 4, 0, torch.device(device))

    here, there = tuned("cpu"), tuned("cuda")
    assert here.keys() == there.keys()
    for name, tensors in there.items():
        assert {tensor.device.type for tensor in tensors.values()} == {"cpu"}
        assert torch.equal(tensors["weight_shape"], here[name]["weight_shape"])
