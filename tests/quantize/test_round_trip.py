"""Every scheme: quantise, serve, answer, and compare with the dequantised reference, without and with an adapter."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from openai import OpenAI

from qwen_vqa.quantize.quantised_checkpoint import load_dequantised
from qwen_vqa.train.data.row import Picture
from qwen_vqa.train.evaluation.server_model import picture_url
from qwen_vqa.train.model.reference_adapter import attach_adapter
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration
from qwen_vqa.train.verify.local_server import started_server
from tests.plugin.engine import Answer, Engine, Request
from tests.quantize.anywhere import skip_unless_served_here
from tests.tiny import picture, user

pytestmark = pytest.mark.cpu

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
PROMPT = f"<|im_start|>user\n{IMAGE}what is it<|im_end|>\n<|im_start|>assistant\n"
ONE_IMAGE = Request(PROMPT, [picture(1)])
TWO_IMAGES = Request(PROMPT.replace(IMAGE, IMAGE * 2), [picture(2), picture(3)])
SCHEMES = ("int8", "int4", "nf4", "int8-bnb")
# What the schemes' kernels take, of a checkpoint in float32; one in bfloat16 is served with `--dtype auto`.
DTYPES = {"int8": "float32", "int4": "bfloat16", "nf4": "bfloat16", "int8-bnb": "float32"}
# Of log-probabilities. In bfloat16 each product is rounded; where activations are rounded to 8 bits, a value near the
# middle of two steps falls to either side by the last bit of a sum, and the answer moves by a step.
TOLERANCE = {"int8": 0.02, "int4": 0.1, "nf4": 0.1, "int8-bnb": 0.1}
TOLERANCE_16_BITS = 0.1
LEAVES = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Served:
    """A quantised checkpoint, what it was made of, its reference's dtype, how near that is to be, and vLLM's engine."""

    scheme: str
    checkpoint: Path
    source: Path
    dtype: str
    tolerance: float
    engine: Engine | None = None

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
        return load_dequantised(self.checkpoint, getattr(torch, self.dtype))


@pytest.fixture(scope="module", params=[(s, whole) for whole in (False, True) for s in SCHEMES], ids=str)
def served(
    request: pytest.FixtureRequest, quantised: Callable[..., Path], with_adapter: Path, in_16_bits: Path
) -> Iterator[Served]:
    scheme, from_16_bits = request.param
    skip_unless_served_here(scheme)
    checkpoint = quantised(scheme, from_16_bits=from_16_bits)
    source, dtype, tolerance = with_adapter, DTYPES[scheme], TOLERANCE[scheme]
    if from_16_bits:
        source, dtype, tolerance = in_16_bits, "bfloat16", TOLERANCE_16_BITS
    # One adapter slot stays empty: vLLM's CPU LoRA gives base requests what lies in the last one.
    slots = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 2}
    with Engine(checkpoint, dtype="auto" if from_16_bits else dtype, **slots) as engine:
        yield Served(scheme, checkpoint, source, dtype, tolerance, engine)


def test_served_as_the_dequantised_reference(served: Served) -> None:
    requests = [ONE_IMAGE, TWO_IMAGES]
    reference, original = served.reference, load_reference(served.source, torch.float32)
    for request, answer in zip(requests, served.engine.generate(requests), strict=True):
        distance = served.distance(reference, request, answer)
        assert distance < served.tolerance
        # Products in float16 (int8-bnb) or bfloat16 lose as much as 8 bits do.
        if served.scheme in ("int4", "nf4") or (served.scheme, served.dtype) == ("int8", "float32"):
            assert served.distance(original, request, answer) > 3 * distance


def test_the_engine_holds_the_rounded_weights(served: Served) -> None:
    """Not weights that were turned back: what is near the reference could be those, too."""
    if served.scheme == "int8":
        kernels = served.engine.apply_to_model(int8_kernels)
        assert len(kernels) == 8
        for kind, weights, floats in kernels.values():
            assert kind == "CPUInt8ScaledMMLinearKernel"
            assert 0 < floats < weights / 10  # scales and bias
        return
    held = served.engine.apply_to_model(held_types)
    assert len(held) == 8  # of two blocks
    assert not any(dtype.is_floating_point for dtype in held.values()), held
    if served.scheme == "int8-bnb":
        assert set(held.values()) == {torch.int8}


def int8_kernels(model: torch.nn.Module) -> dict[str, tuple[str, int, int]]:
    """Of each Linear layer: what multiplies, how many 8-bit weights it has, and the floats beside them.

    oneDNN packs the weights where PyTorch does not see them; vLLM's kernel for AMX leaves them with the layer.
    """
    found = {}
    for name, layer in model.language_model.named_modules():
        if name.endswith(LEAVES):
            base = getattr(layer, "base_layer", layer)  # beside adapters
            kernel, tensors = base.scheme.kernel, base.state_dict().values()
            packed = getattr(kernel, "dnnl_handler", None)
            weights = packed.k * packed.n if packed else sum(t.numel() for t in tensors if t.dtype == torch.int8)
            found[name] = (type(kernel).__name__, weights, sum(t.numel() for t in tensors if t.is_floating_point()))
    return found


def held_types(model: torch.nn.Module) -> dict[str, torch.dtype]:
    """The dtype of the largest tensor of each Linear layer of the engine's language model."""
    layers = {n: m for n, m in model.language_model.named_modules() if n.endswith(LEAVES)}
    return {
        name: max(layer.state_dict().values(), key=lambda tensor: tensor.numel() * tensor.element_size()).dtype
        for name, layer in layers.items()
    }


def test_an_adapter_acts_on_the_quantised_base(served: Served) -> None:
    adapter = served.checkpoint / "adapters" / "tiny-lora"
    [plain, adapted] = served.engine.generate([ONE_IMAGE, Request(PROMPT, ONE_IMAGE.images, adapter)])
    reference = served.reference
    assert served.distance(reference, ONE_IMAGE, plain) < served.tolerance
    reference.language_model = attach_adapter(reference.language_model, adapter)
    assert served.distance(reference, ONE_IMAGE, adapted) < 2 * served.tolerance
    assert served.distance(reference, ONE_IMAGE, plain) > 10 * served.tolerance


@pytest.mark.parametrize("scheme", ["int4", "nf4", "int8-bnb"])  # int8 and 16 bits: test_report.py
def test_the_serve_command_answers(scheme: str, quantised: Callable[..., Path], in_16_bits: Path) -> None:
    """As a user starts it: float type, kernels and adapters are found by itself."""
    skip_unless_served_here(scheme)
    folder = quantised(scheme, from_16_bits=True)
    with started_server([str(folder), "--enforce-eager", "--max-model-len", "512"]) as (address, _):
        plain, adapted = ask(address, folder.name), ask(address, "tiny-lora")
    served = Served(scheme, folder, in_16_bits, "bfloat16", TOLERANCE_16_BITS)
    reference, processor = served.reference, load_processor(folder)
    messages = [user(*ONE_IMAGE.images, "what is it")]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    asked = Request(text, ONE_IMAGE.images)  # as the command's template has it
    assert served.distance(reference, asked, plain) < served.tolerance
    reference.language_model = attach_adapter(reference.language_model, folder / "adapters" / "tiny-lora")
    assert served.distance(reference, asked, adapted) < 2 * served.tolerance


def ask(address: str, model: str) -> Answer:
    """ONE_IMAGE through the OpenAI API."""
    buffer = io.BytesIO()
    ONE_IMAGE.images[0].save(buffer, "PNG")
    url = picture_url(Picture("", buffer.getvalue()))
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what is it"}]
    with OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        completion = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": content}],
            temperature=0,
            max_tokens=8,
            logprobs=True,
            top_logprobs=3,
            extra_body={
                "repetition_penalty": 1.0,
                "ignore_eos": True,
                "return_token_ids": True,
                "return_tokens_as_token_ids": True,
            },
        )
    choice = completion.choices[0]
    steps = [
        {int(one.token.partition(":")[2]): one.logprob for one in step.top_logprobs} for step in choice.logprobs.content
    ]
    return Answer(completion.prompt_token_ids, choice.token_ids, steps, 0)


def test_nf4_in_flight_leaves_the_encoder_alone(with_adapter: Path, quantised: Callable[..., Path]) -> None:
    with Engine(with_adapter, dtype="bfloat16", quantization="bitsandbytes") as engine:
        [answer] = engine.generate([ONE_IMAGE])
        made_before = Served("nf4", quantised("nf4"), with_adapter, "bfloat16", TOLERANCE["nf4"])
        assert made_before.distance(made_before.reference, ONE_IMAGE, answer) < TOLERANCE["nf4"]


def test_int8_with_the_encoder(quantised: Callable[..., Path], with_adapter: Path) -> None:
    skip_unless_served_here("int8")
    checkpoint = quantised("int8", encoder=True)
    with Engine(checkpoint) as engine:
        [answer] = engine.generate([ONE_IMAGE])
        served = Served("int8", checkpoint, with_adapter, "float32", TOLERANCE["int8"])
        assert served.distance(served.reference, ONE_IMAGE, answer) < TOLERANCE["int8"]


@pytest.mark.parametrize("encoder", [False, True])
def test_a_vision_side_in_float32_stays_so_unless_it_is_quantised(
    quantised: Callable[..., Path], in_16_bits: Path, encoder: bool
) -> None:
    checkpoint = quantised("int8", encoder=encoder, from_16_bits=True)
    model, original = load_dequantised(checkpoint), load_reference(in_16_bits)
    assert model.config.vision_in_float32 != encoder
    norm = model.vision_encoder.final_norm.weight
    assert norm.dtype == (torch.bfloat16 if encoder else torch.float32)
    assert torch.equal(norm, original.vision_encoder.final_norm.weight.to(norm.dtype))
