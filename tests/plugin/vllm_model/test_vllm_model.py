"""The served model against the reference: greedy tokens and log-probabilities, images, caches, adapters."""

import os
import shutil
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.train.model.reference_adapter import attach_adapter
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference, save_checkpoint
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration
from tests.plugin.engine import MODEL_RUNNER_V2, Answer, Engine, EngineError, Request
from tests.tiny import make_adapter, make_checkpoint, picture, tiny_config, tiny_model, tiny_processor

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
# As PEFT writes them for the language model alone, for this project's model, for transformers' own
# vision-language models, and as vLLM calls them.
ADAPTER_PREFIXES = {
    "language-model": "base_model.model.model.layers.",
    "our-model": "base_model.model.language_model.model.layers.",
    "transformers": "base_model.model.model.language_model.layers.",
    "vllm": "language_model.model.layers.",
}
TOLERANCE = 1e-3
V1_RUNNER = "vllm.v1.worker.gpu_model_runner"


def turn(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


NO_IMAGE = Request(turn("hello"))
ONE_IMAGE = Request(turn(f"{IMAGE}what is it"), [picture(1)])
THREE_IMAGES = Request(
    turn(f"{IMAGE}a{IMAGE}b{IMAGE}which"), [picture(2, 64, 64), picture(3, 1, 300), picture(4, 37, 5)]
)


class Served:
    """One checkpoint: in vLLM, and as the reference, with an adapter whose names come in several shapes."""

    def __init__(self, engine: Engine, checkpoint: Path, adapters: dict[str, Path]) -> None:
        self.engine = engine
        self.checkpoint = checkpoint
        self.adapters = adapters
        self.reference = load_reference(checkpoint, torch.float32)
        self.processor: QwenVqaProcessor = AutoProcessor.from_pretrained(checkpoint)

    @cached_property
    def adapted_reference(self) -> QwenVqaForConditionalGeneration:
        """The reference with PEFT's LoRA in place."""
        model = load_reference(self.checkpoint, torch.float32)
        model.language_model = attach_adapter(model.language_model, self.adapters["language-model"])
        return model

    def check(self, request: Request, answer: Answer, model: QwenVqaForConditionalGeneration | None = None) -> None:
        """Prompt ids, greedy tokens and their log-probabilities are the reference's."""
        model = model or self.reference
        text = request.prompt if isinstance(request.prompt, str) else self.processor.decode(request.prompt)
        inputs = self.processor(text=text, images=request.images or None, return_tensors="pt")
        assert answer.prompt_ids == inputs["input_ids"][0].tolist()
        ids = torch.cat([inputs["input_ids"], torch.tensor([answer.token_ids])], dim=1)
        with torch.inference_mode():
            logits = model(input_ids=ids, pixel_values=inputs.get("pixel_values")).logits[0]
        expected = logits[len(answer.prompt_ids) - 1 : -1].log_softmax(-1)  # [steps, vocabulary]
        assert answer.token_ids == expected.argmax(-1).tolist()
        for step, logprobs in zip(expected, answer.logprobs, strict=True):
            for token, logprob in logprobs.items():
                assert logprob == pytest.approx(step[token].item(), abs=TOLERANCE)


@pytest.fixture(scope="module", params=["qwen2", "llama", "qwen2 by model runner V2"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """V1 is what vLLM takes on a CPU, V2 what it takes on a GPU."""
    family, _, v2 = request.param.partition(" ")
    environment = MODEL_RUNNER_V2 if v2 else None
    folder = tmp_path_factory.mktemp(family)
    checkpoint = make_checkpoint(folder / "checkpoint", family, tied=family == "qwen2")
    adapter = make_adapter(checkpoint, folder / "adapter")
    adapters = {shape: renamed(adapter, folder / shape, prefix) for shape, prefix in ADAPTER_PREFIXES.items()}
    # One slot more than adapters: on the CPU, vLLM 0.32 takes "no adapter" (-1) for the last slot, and a
    # request to the base model would get the answer of the adapter there.
    with Engine(checkpoint, environment, enable_lora=True, max_lora_rank=8, max_loras=len(adapters) + 1) as engine:
        assert engine.apply_to_worker(model_runner) == ("vllm.v1.worker.gpu.model_runner" if v2 else V1_RUNNER)
        yield Served(engine, checkpoint, adapters)


def model_runner(worker: Any) -> str:
    """The module of the runner that stands behind the CPU's."""
    return type(worker.model_runner).__mro__[1].__module__


def renamed(adapter: Path, folder: Path, prefix: str) -> Path:
    """A copy of an adapter with another prefix before the layers' numbers."""
    shutil.copytree(adapter, folder)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name.replace(ADAPTER_PREFIXES["language-model"], prefix): t for name, t in tensors.items()}, path)
    return folder


@pytest.mark.parametrize("request_", [NO_IMAGE, ONE_IMAGE, THREE_IMAGES], ids=["0 images", "1 image", "3 images"])
def test_answers_are_the_references(served: Served, request_: Request) -> None:
    [answer] = served.engine.generate([request_])
    served.check(request_, answer)


def test_requests_with_different_images_share_a_batch(served: Served) -> None:
    requests = [THREE_IMAGES, NO_IMAGE, Request(turn(f"{IMAGE}?"), [picture(5, 300, 2)]), ONE_IMAGE]
    for request, answer in zip(requests, served.engine.generate(requests), strict=True):
        served.check(request, answer)


def test_token_ids_are_taken_as_text_is(served: Served) -> None:
    ids = served.processor.tokenizer.encode(ONE_IMAGE.prompt)
    [answer] = served.engine.generate([Request(ids, ONE_IMAGE.images)])
    served.check(ONE_IMAGE, answer)


def test_as_many_images_as_the_limit_allows(served: Served) -> None:
    request = Request(turn(IMAGE * 8), [picture(seed) for seed in range(8)])
    [answer] = served.engine.generate([request])
    served.check(request, answer)


def test_the_prefix_cache_changes_no_answer(served: Served) -> None:
    long = Request(turn(f"{IMAGE}look " + "at this " * 60 + IMAGE), [picture(6), picture(7)])
    [first] = served.engine.generate([long])
    [second] = served.engine.generate([long])
    assert (first.cached_tokens, second.cached_tokens > 0) == (0, True)
    served.check(long, second)


def test_another_image_in_the_same_place_is_not_cached(served: Served) -> None:
    text = turn(f"{IMAGE}read " + "it to me " * 60)
    [first] = served.engine.generate([Request(text, [picture(8)])])
    other = Request(text, [picture(9)])
    [answer] = served.engine.generate([other])
    assert answer.cached_tokens == 0
    assert answer.logprobs != first.logprobs
    served.check(other, answer)


@pytest.mark.parametrize("shape", ADAPTER_PREFIXES)
def test_an_adapter_acts_as_in_peft_whatever_its_names(served: Served, shape: str) -> None:
    adapter = served.adapters[shape]
    [plain, adapted] = served.engine.generate([ONE_IMAGE, Request(ONE_IMAGE.prompt, ONE_IMAGE.images, adapter)])
    served.check(ONE_IMAGE, plain)
    served.check(ONE_IMAGE, adapted, served.adapted_reference)
    assert adapted.logprobs[0] != pytest.approx(plain.logprobs[0], abs=10 * TOLERANCE)


def test_the_prefix_cache_keeps_adapters_apart(served: Served) -> None:
    adapter = served.adapters["language-model"]
    long = Request(turn(f"{IMAGE}tell " + "me more " * 60), [picture(10)])
    adapted = Request(long.prompt, long.images, adapter)
    answers = [served.engine.generate([request])[0] for request in (long, adapted, long, adapted)]
    assert [answer.cached_tokens > 0 for answer in answers] == [False, False, True, True]
    for answer, model in zip(answers, [served.reference, served.adapted_reference] * 2, strict=True):
        served.check(long, answer, model)


def test_the_workers_image_features_are_the_references(served: Served) -> None:
    pixels = served.processor(text=IMAGE, images=[picture(11)], return_tensors="pt")["pixel_values"]
    features = served.engine.apply_to_worker(partial(image_features, pixels.tolist()))
    with torch.inference_mode():
        expected = served.reference.connector(served.reference.get_image_features(pixels))
    torch.testing.assert_close(torch.tensor(features), expected, rtol=TOLERANCE, atol=TOLERANCE)


def image_features(pixels: list, worker: Any) -> list:
    """Through the extension that `verify` uses."""
    return worker.image_features(pixels)


def test_a_request_cannot_choose_how_images_are_processed(served: Served) -> None:
    request = Request(ONE_IMAGE.prompt, ONE_IMAGE.images, processor_options={"image_size": 128})
    with pytest.raises(EngineError, match=r"mm_processor_kwargs \['image_size'\] are not supported"):
        served.engine.generate([request])


@pytest.mark.parametrize(("text", "placeholders"), [("no place for it", 0), (IMAGE * 2, 2), ("<|image_pad|>" * 5, 5)])
def test_placeholders_and_images_must_match(served: Served, text: str, placeholders: int) -> None:
    with pytest.raises(EngineError, match=rf"ValueError: the prompt has {placeholders} .* placeholders for 1 images"):
        served.engine.generate([Request(turn(text), [picture(1)])])


def test_more_images_than_the_limit_are_refused(served: Served) -> None:
    with pytest.raises(EngineError, match="ValidationError: At most 8 image"):
        served.engine.generate([Request(turn(IMAGE * 9), [picture(1)] * 9)])


def test_peft_names_an_adapter_of_this_projects_model_as_expected(tmp_path: Path) -> None:
    model = tiny_model(tiny_config(tiny_processor()))
    targets = r"language_model\..*\.(q_proj|up_proj)"
    get_peft_model(model, LoraConfig(r=2, target_modules=targets)).save_pretrained(str(tmp_path))
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert len(names) == 8
    assert all(name.startswith(ADAPTER_PREFIXES["our-model"]) for name in names)


@pytest.mark.cpu
@pytest.mark.parametrize("environment", [None, MODEL_RUNNER_V2], ids=["V1", "V2"])
def test_a_vision_side_in_float32_beside_a_language_model_in_16_bits(tmp_path: Path, environment) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", dtype=torch.bfloat16, vision_in_float32=True)
    reference = load_reference(checkpoint)
    pixels = load_processor(checkpoint).image_processor(picture(1), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = reference.connector(reference.get_image_features(pixels))
    assert expected.dtype == torch.float32
    with Engine(checkpoint, environment, dtype="bfloat16") as engine:
        assert engine.apply_to_worker(float_types) == {
            "language_model": "bfloat16",
            "vision_encoder": "float32",
            "connector": "float32",
        }
        features = engine.apply_to_worker(partial(image_features, pixels.tolist()))
        [answer] = engine.generate([ONE_IMAGE])
    # The language model gets them in its own float type: rounded once, at the end.
    assert torch.equal(torch.tensor(features).bfloat16(), torch.tensor(features))
    torch.testing.assert_close(torch.tensor(features), expected, atol=0, rtol=2**-8)
    inputs = load_processor(checkpoint)(text=ONE_IMAGE.prompt, images=ONE_IMAGE.images, return_tensors="pt")
    with torch.inference_mode():
        first = reference(**inputs).logits[0, -1].float().log_softmax(-1)
    assert answer.logprobs[0][answer.token_ids[0]] == pytest.approx(first[answer.token_ids[0]].item(), abs=0.1)


def float_types(worker: Any) -> dict[str, str]:
    """By the extension that `verify` uses."""
    return worker.float_types()


@pytest.mark.cpu
@pytest.mark.parametrize("encoder", ["weights", "data"])
def test_two_tensor_parallel_ranks_answer_alike(tmp_path: Path, encoder: Literal["weights", "data"]) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    if encoder == "data":  # one head: it cannot be split, and each rank computes some of the images
        processor = tiny_processor()
        config = tiny_config(processor)
        config.vision_config.num_attention_heads = 1
        save_checkpoint(checkpoint := tmp_path / "one-head", tiny_model(config), processor)
    cores = sorted(os.sched_getaffinity(0))
    one_core_each = {"VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}|{cores[-1]}"}
    # Without LoRA, so that the plain layers are compared somewhere, too.
    requests = [ONE_IMAGE, NO_IMAGE, THREE_IMAGES]
    with Engine(checkpoint, one_core_each, tensor_parallel_size=2, mm_encoder_tp_mode=encoder) as engine:
        served = Served(engine, checkpoint, {})
        for request, answer in zip(requests, engine.generate(requests), strict=True):
            served.check(request, answer)
