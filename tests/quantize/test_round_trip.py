"""Every scheme: quantise, serve, answer, and compare with the dequantised reference, without and with an adapter."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from qwen_vqa.quantize.checkpoint import load_dequantised
from qwen_vqa.train.adapter import attach_adapter
from qwen_vqa.train.checkpoint import load_processor, load_reference
from qwen_vqa.train.model import QwenVqaForConditionalGeneration
from tests.plugin.engine import Answer, Engine, Request
from tests.tiny import picture

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
PROMPT = f"<|im_start|>user\n{IMAGE}what is it<|im_end|>\n<|im_start|>assistant\n"
ONE_IMAGE = Request(PROMPT, [picture(1)])
TWO_IMAGES = Request(PROMPT.replace(IMAGE, IMAGE * 2), [picture(2), picture(3)])
# What the schemes' kernels take.
DTYPES = {"int8": "float32", "int4": "bfloat16", "nf4": "bfloat16", "int8-bnb": "float32"}
# Of log-probabilities. In bfloat16 each product is rounded; where activations are rounded to 8 bits, a value near the
# middle of two steps falls to either side by the last bit of a sum, and the answer moves by a step.
TOLERANCE = {"int8": 0.02, "int4": 0.1, "nf4": 0.1, "int8-bnb": 0.1}


@dataclass(frozen=True)
class Served:
    """A quantised checkpoint in vLLM, and its reference."""

    scheme: str
    engine: Engine
    checkpoint: Path

    def distance(self, model: QwenVqaForConditionalGeneration, request: Request, answer: Answer) -> float:
        """Mean difference of the log-probabilities that the engine reported from the model's at the same tokens."""
        inputs = load_processor(self.checkpoint)(text=request.prompt, images=request.images, return_tensors="pt")
        ids = torch.cat([inputs["input_ids"], torch.tensor([answer.token_ids])], dim=1)
        with torch.inference_mode():
            logits = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0].float()
        expected = logits[len(answer.prompt_ids) - 1 : -1].log_softmax(-1)
        steps = zip(expected, answer.logprobs, strict=True)
        return torch.tensor([abs(v - step[token].item()) for step, seen in steps for token, v in seen.items()]).mean()

    @property
    def reference(self) -> QwenVqaForConditionalGeneration:
        return load_dequantised(self.checkpoint, getattr(torch, DTYPES[self.scheme]))


@pytest.fixture(scope="module", params=DTYPES)
def served(request: pytest.FixtureRequest, quantised: Callable[..., Path]) -> Iterator[Served]:
    checkpoint = quantised(request.param)
    # One adapter slot stays empty: vLLM's CPU LoRA gives base requests what lies in the last one.
    with Engine(checkpoint, dtype=DTYPES[request.param], enable_lora=True, max_lora_rank=8, max_loras=2) as engine:
        yield Served(request.param, engine, checkpoint)


def test_served_as_the_dequantised_reference(served: Served, with_adapter: Path) -> None:
    requests = [ONE_IMAGE, TWO_IMAGES]
    reference, original = served.reference, load_reference(with_adapter, torch.float32)
    for request, answer in zip(requests, served.engine.generate(requests), strict=True):
        distance = served.distance(reference, request, answer)
        assert distance < TOLERANCE[served.scheme]
        if served.scheme != "int8-bnb":  # whose float16 products lose as much as its 8 bits
            assert served.distance(original, request, answer) > 3 * distance


def test_an_adapter_acts_on_the_quantised_base(served: Served) -> None:
    adapter = served.checkpoint / "adapters" / "tiny-lora"
    [plain, adapted] = served.engine.generate([ONE_IMAGE, Request(PROMPT, ONE_IMAGE.images, adapter)])
    reference = served.reference
    assert served.distance(reference, ONE_IMAGE, plain) < TOLERANCE[served.scheme]
    reference.language_model = attach_adapter(reference.language_model, adapter)
    assert served.distance(reference, ONE_IMAGE, adapted) < 2 * TOLERANCE[served.scheme]
    assert served.distance(reference, ONE_IMAGE, plain) > 10 * TOLERANCE[served.scheme]


def test_nf4_in_flight_leaves_the_encoder_alone(with_adapter: Path, quantised: Callable[..., Path]) -> None:
    with Engine(with_adapter, dtype="bfloat16", quantization="bitsandbytes") as engine:
        [answer] = engine.generate([ONE_IMAGE])
        made_before = Served("nf4", engine, quantised("nf4"))
        assert made_before.distance(made_before.reference, ONE_IMAGE, answer) < TOLERANCE["nf4"]


def test_int8_with_the_encoder(quantised: Callable[..., Path], with_adapter: Path) -> None:
    checkpoint = quantised("int8", encoder=True)
    with Engine(checkpoint) as engine:
        [answer] = engine.generate([ONE_IMAGE])
        served = Served("int8", engine, checkpoint)
        assert served.distance(served.reference, ONE_IMAGE, answer) < TOLERANCE["int8"]
