"""Serving held against training, stage by stage: the first difference is the one that matters."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration, embedded_prompt
from qwen_vqa.train.verify.served_stages import ServedAnswer, ServedModel
from qwen_vqa.train.verify.verify_cases import VerifyCase

STAGES = ("prompt text", "token ids", "pixels", "features", "logits")
HIDDEN = "not shown by the server: start it with --verify"
ADVICE = {
    "prompt text": "the server renders another chat template: compare its chat_template.jinja, and --chat-template",
    "token ids": "the same text is tokenised otherwise: the server has another tokenizer.json",
    "pixels": "images are prepared otherwise: compare processor_config.json, and how images are opened",
    "features": "vision encoder or connector differ: other weights, or another float type",
    "logits": "the language model or the adapter differ: other weights, another adapter, or another float type",
}


@dataclass(frozen=True)
class Tolerance:
    """The largest absolute differences that count as equal."""

    pixels: float
    features: float
    logprobs: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> "Tolerance":
        """For both sides in this float type: rounding differs with the order of sums, and grows with the layers."""
        if dtype == torch.float32:
            return cls(pixels=1e-6, features=1e-3, logprobs=1e-3)
        return cls(pixels=2**-8, features=0.25, logprobs=0.25)


@dataclass(frozen=True)
class StageResult:
    """One stage of one case: equal or not, and what was seen. `compared` is False where it could not be."""

    stage: str
    equal: bool
    detail: str
    compared: bool = True


@dataclass(frozen=True)
class Reference:
    """The training side: the reference model (with an adapter in place or not) and the processor."""

    model: QwenVqaForConditionalGeneration
    processor: QwenVqaProcessor

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.device


def compare(
    case: VerifyCase, reference: Reference, served: ServedModel, tolerance: Tolerance, max_tokens: int = 16
) -> Iterator[StageResult]:
    """Yield the stages' results in order; nothing after the first that differs, since it follows from it."""
    for result in _stages(case, reference, served, tolerance, max_tokens):
        yield result
        if not result.equal:
            return


def compare_answer(case: VerifyCase, reference: Reference, answer: ServedAnswer, tolerance: Tolerance) -> StageResult:
    """The last stage alone, of an answer that was taken before."""
    return _compare_answers(reference, _inputs(case, reference.processor), answer, tolerance.logprobs)


def _inputs(case: VerifyCase, processor: QwenVqaProcessor) -> Any:
    prompt = processor.apply_chat_template(case.messages, tokenize=False, add_generation_prompt=True)
    return processor(text=prompt, images=case.images or None, return_tensors="pt")


def _stages(
    case: VerifyCase, reference: Reference, served: ServedModel, tolerance: Tolerance, max_tokens: int
) -> Iterator[StageResult]:
    processor = reference.processor
    inputs = _inputs(case, processor)
    served_prompt = served.prompt(case)

    yield _compare_text(processor, inputs["input_ids"][0].tolist(), served_prompt.token_ids)
    yield _compare_ids(inputs["input_ids"][0].tolist(), served_prompt.token_ids)
    if case.images:
        pixels = inputs["pixel_values"]
        if served_prompt.pixels is None:
            yield StageResult("pixels", True, HIDDEN, compared=False)
        else:
            yield _compare_arrays("pixels", pixels.numpy(), served_prompt.pixels, tolerance.pixels)
        together = reference.model.config.view_rule.fixed_views or 1
        features = served.image_features(pixels.numpy(), together)
        if features is None:
            yield StageResult("features", True, HIDDEN, compared=False)
        else:
            with torch.inference_mode():
                connected = reference.model.connector(reference.model.get_image_features(pixels.to(reference.device)))
                expected = connected.to(reference.model.dtype).float().cpu().numpy()
            yield _compare_arrays("features", expected, features, tolerance.features)
    yield _compare_answers(reference, inputs, served.answer(case, max_tokens), tolerance.logprobs)


def _compare_text(processor: QwenVqaProcessor, expected: list[int], actual: list[int]) -> StageResult:
    texts = [_readable(processor.tokenizer.decode(ids)) for ids in (expected, actual)]
    if texts[0] == texts[1]:
        return StageResult("prompt text", True, f"{len(texts[0])} characters")
    at = next((i for i, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1]), min(map(len, texts)))
    around = [text[max(0, at - 30) : at + 30] for text in texts]
    return StageResult("prompt text", False, f"at character {at}: training {around[0]!r}, server {around[1]!r}")


def _readable(text: str) -> str:
    return re.sub(r"(<\|image_pad\|>)+", lambda run: f"<image: {run[0].count('>')} tokens>", text)


def _compare_ids(expected: list[int], actual: list[int]) -> StageResult:
    if expected == actual:
        return StageResult("token ids", True, f"{len(expected)} tokens")
    at = next((i for i, pair in enumerate(zip(expected, actual, strict=False)) if pair[0] != pair[1]), None)
    at = min(len(expected), len(actual)) if at is None else at
    return StageResult(
        "token ids", False, f"at token {at}: training {expected[at : at + 6]}, server {actual[at : at + 6]}"
    )


def _compare_arrays(stage: str, expected: np.ndarray, actual: np.ndarray, tolerance: float) -> StageResult:
    if expected.shape != actual.shape:
        return StageResult(stage, False, f"training has shape {expected.shape}, server {actual.shape}")
    difference = np.abs(expected - actual)
    worst = np.unravel_index(int(difference.argmax()), difference.shape)
    detail = f"largest difference {difference.max():.2g}"
    if difference.max() <= tolerance:
        return StageResult(stage, True, detail)
    place = tuple(int(index) for index in worst)
    return StageResult(
        stage,
        False,
        f"{detail} (bound {tolerance:g}) at {place}: training {expected[worst]:.5g}, server {actual[worst]:.5g}",
    )


def _compare_answers(reference: Reference, inputs: Any, answer: ServedAnswer, tolerance: float) -> StageResult:
    inputs = inputs.to(reference.device)
    tokens = torch.tensor([answer.token_ids], device=reference.device)
    model = reference.model
    with torch.inference_mode():
        # The answer is embedded apart from the prompt: an image token that the model generates has no image.
        prompt = embedded_prompt(model, inputs)
        embeddings = torch.cat([prompt, model.get_input_embeddings()(tokens)], dim=1)
        logits = model(inputs_embeds=embeddings).logits[0].float().cpu()
    tokens = tokens.cpu()
    start = inputs["input_ids"].shape[1] - 1
    expected = logits[start : start + tokens.shape[1]].log_softmax(-1)  # [answer tokens, vocabulary]
    chosen = expected.gather(1, tokens.T).squeeze(1)
    differences = (chosen - torch.tensor(answer.logprobs)).abs()
    # Greedy on both sides takes the same token, unless two are as good as each other within the tolerance.
    greedy_gap = expected.max(dim=1).values - chosen
    same = int((expected.argmax(dim=1) == tokens[0]).sum())
    detail = (
        f"{same} of {tokens.shape[1]} greedy tokens equal, log-probabilities differ by "
        f"{differences.max():.2g} at most, {differences.mean():.2g} on average"
    )
    if differences.max() < tolerance and greedy_gap.max() < tolerance:
        return StageResult("logits", True, detail)
    at = int(torch.maximum(differences, greedy_gap).argmax())
    decode = reference.processor.tokenizer.decode
    return StageResult(
        "logits",
        False,
        f"{detail} (bound {tolerance:g}); worst at answer token {at}: training would say "
        f"{decode(expected[at].argmax())!r} ({expected[at].max():.4f}), the server said "
        f"{decode(answer.token_ids[at])!r} ({answer.logprobs[at]:.4f}, by training {chosen[at]:.4f})",
    )
