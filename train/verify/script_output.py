"""What a training script wrote of its own prompts, pixels and answers, and a server held to it.

The file is a JSON list of cases (or an object with a list "cases"). Of a case, `question` or `messages` are needed, and
one thing to compare; paths are relative to the file:

    {"image": "photo.jpg", "question": "What is it?",
     "prompt": "<|im_start|>system ...",   the text that the script tokenised
     "prompt_ids": [151644, ...],          its tokens; a negative number or the image token's id stands for the picture
     "pixels": "pixels.npy",               what the encoder was given: [images, 3, size, size] or [3, size, size]
     "answer_ids": [...], "logprobs": [...], "answer": "..."}   decoded greedily, without penalties
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen_vqa.plugin.errors import UserError, first_line_of
from qwen_vqa.plugin.images.image_loader import load_image
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.train.verify.served_stages import ServedAnswer, ServedModel
from qwen_vqa.train.verify.stage_comparison import HIDDEN, StageResult, Tolerance
from qwen_vqa.train.verify.verify_cases import VerifyCase

ADVICE_FOR_SCRIPTS = {
    "prompt text": "assemble with the script's --system-prompt and --image-position, or with --like",
    "token ids": "the server has another tokenizer than the script, or the image elsewhere (--image-position)",
    "pixels": "pictures are prepared otherwise: assemble with the script's --fit, and with the encoder's own "
    "preprocessor file beside it",
    "answer": "prompt and pixels, where they were compared, are the script's. Is its adapter in the checkpoint, did it "
    "decode greedily and without penalties (do_sample=False, repetition_penalty=1.0), and are the weights the same?",
}
_COMPARED = ("prompt", "prompt_ids", "pixels", "answer_ids", "answer")
_FIELDS = {"question", "messages", "image", "images", "logprobs", "name", *_COMPARED}
_ANSWER_TOKENS = 64  # where only the answer's text is known
_PICTURE = "<picture>"


@dataclass(frozen=True)
class ScriptCase:
    """A conversation, and what the script made of it; None where it did not write that down."""

    case: VerifyCase
    prompt: str | None = None
    prompt_ids: list[int] | None = None
    pixels: np.ndarray | None = None
    answer_ids: list[int] | None = None
    logprobs: list[float] | None = None
    answer: str | None = None


def read_script_output(path: Path) -> list[ScriptCase]:
    """The cases of a script's JSON file.

    Raises:
        UserError: it cannot be read, or a case lacks what is needed; the message names the case.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"--against {path}: it is not readable JSON ({error}).") from error
    cases = found.get("cases") if isinstance(found, dict) else found
    if not isinstance(cases, list) or not cases:
        raise UserError(f"--against {path}: expected a list of cases; train/README.md shows one.")
    return [_script_case(one, f"case {number}", path) for number, one in enumerate(cases)]


def _script_case(one: Any, name: str, path: Path) -> ScriptCase:
    where = f"--against {path}, {name}"
    if not isinstance(one, dict):
        raise UserError(f"{where}: expected an object, found {type(one).__name__}.")
    if unknown := sorted(set(one) - _FIELDS):
        raise UserError(f"{where}: unknown fields {', '.join(unknown)}; known are {', '.join(sorted(_FIELDS))}.")
    if not any(one.get(field) is not None for field in _COMPARED):
        raise UserError(f"{where}: nothing to compare; give one of {', '.join(_COMPARED)}.")
    if one.get("logprobs") is not None and len(one["logprobs"]) != len(one.get("answer_ids") or []):
        raise UserError(f"{where}: logprobs needs answer_ids of the same length.")
    pictures = one.get("images") or ([one["image"]] if one.get("image") else [])
    images = [load_image(path.parent / picture) for picture in pictures]
    return ScriptCase(
        VerifyCase(str(one.get("name", name)), _messages(one, len(images), where), images),
        prompt=one.get("prompt"),
        prompt_ids=one.get("prompt_ids"),
        pixels=_pixels(path.parent / one["pixels"], where) if one.get("pixels") else None,
        answer_ids=one.get("answer_ids"),
        logprobs=one.get("logprobs"),
        answer=one.get("answer"),
    )


def _messages(one: dict[str, Any], images: int, where: str) -> list[dict[str, Any]]:
    """In the OpenAI form; pictures that have no place yet come first in the first user turn."""
    messages = one.get("messages") or [{"role": "user", "content": one.get("question")}]
    first = next((message for message in messages if message.get("role") == "user"), None)
    if first is None or not first.get("content"):
        raise UserError(f"{where}: give a question, or messages with a user turn.")
    placed = any(
        part.get("type") == "image"
        for message in messages
        for part in (message["content"] if isinstance(message["content"], list) else [])
    )
    if not images or placed:
        return messages
    text = first["content"] if isinstance(first["content"], list) else [{"type": "text", "text": first["content"]}]
    with_images = {**first, "content": [{"type": "image"}] * images + text}
    return [with_images if message is first else message for message in messages]


def _pixels(path: Path, where: str) -> np.ndarray:
    try:
        if path.suffix == ".npy":
            found = np.load(path, allow_pickle=False)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True).float().numpy()
    except Exception as error:  # whatever numpy and torch raise for a file that is none of theirs
        raise UserError(f"{where}: {path} is no .npy array or saved tensor ({first_line_of(error)}).") from error
    return np.asarray(found, np.float32).reshape(-1, *found.shape[-3:])


def compare_with_script(
    one: ScriptCase, served: ServedModel, processor: QwenVqaProcessor, tolerance: Tolerance
) -> Iterator[StageResult]:
    """Yield the stages that the script wrote something of, in order; nothing after the first that differs."""
    for result in _stages(one, served, processor, tolerance):
        yield result
        if not result.equal:
            return


def _stages(
    one: ScriptCase, served: ServedModel, processor: QwenVqaProcessor, tolerance: Tolerance
) -> Iterator[StageResult]:
    if one.prompt is not None or one.prompt_ids is not None or one.pixels is not None:
        prompt = served.prompt(one.case)
        if one.prompt is not None:
            yield _compare_prompt(one.prompt, prompt.token_ids, processor)
        if one.prompt_ids is not None:
            yield _compare_ids(one.prompt_ids, prompt.token_ids, processor.image_token_id)
        if one.pixels is not None and prompt.pixels is None and one.case.images:
            yield StageResult("pixels", True, HIDDEN, compared=False)
        elif one.pixels is not None:
            yield _compare_pixels(one.pixels, prompt.pixels, tolerance.pixels)
    if one.answer_ids is not None:
        answer = served.answer(one.case, max(1, len(one.answer_ids)))
        yield _compare_tokens(one.answer_ids, one.logprobs, answer, tolerance.logprobs, processor)
    elif one.answer is not None:
        yield _compare_text(one.answer, served.answer(one.case, _ANSWER_TOKENS).text)


def _compare_prompt(script: str, served_ids: list[int], processor: QwenVqaProcessor) -> StageResult:
    """As text without the pictures, of which a script that joins embeddings writes nothing into its text."""
    served = processor.tokenizer.decode([token for token in served_ids if token != processor.image_token_id])
    if script == served:
        return StageResult("prompt text", True, f"{len(script)} characters")
    at = next((i for i, pair in enumerate(zip(script, served, strict=False)) if pair[0] != pair[1]), None)
    at = min(len(script), len(served)) if at is None else at
    around = [text[max(0, at - 30) : at + 50] for text in (script, served)]
    return StageResult("prompt text", False, f"at character {at}: script {around[0]!r}, server {around[1]!r}")


def _compare_ids(script: list[int], served: list[int], image_token: int) -> StageResult:
    """Each run of picture tokens counts as one mark; a script that marks no picture is compared without."""
    sides: list[list[int | str]] = []
    for ids in (script, served):
        marked: list[int | str] = [_PICTURE if token < 0 or token == image_token else token for token in ids]
        sides.append([t for i, t in enumerate(marked) if t != _PICTURE or i == 0 or marked[i - 1] != _PICTURE])
    if _PICTURE not in sides[0]:
        sides[1] = [token for token in sides[1] if token != _PICTURE]
    if sides[0] == sides[1]:
        return StageResult("token ids", True, f"{len(sides[0])} tokens")
    at = next((i for i, pair in enumerate(zip(*sides, strict=False)) if pair[0] != pair[1]), min(map(len, sides)))
    return StageResult("token ids", False, f"at token {at}: script {sides[0][at:][:6]}, server {sides[1][at:][:6]}")


def _compare_pixels(script: np.ndarray, served: np.ndarray | None, tolerance: float) -> StageResult:
    if served is None or script.shape != served.shape:
        shape = "no picture" if served is None else f"shape {served.shape}"
        return StageResult("pixels", False, f"the script has shape {script.shape}, the server {shape}")
    difference = np.abs(script - served)
    detail = f"largest difference {difference.max():.2g}"
    if difference.max() <= tolerance:
        return StageResult("pixels", True, detail)
    share = float((difference > tolerance).mean())
    return StageResult("pixels", False, f"{share:.0%} of the values differ, {detail} (bound {tolerance:g})")


def _compare_tokens(
    script: list[int],
    logprobs: list[float] | None,
    answer: ServedAnswer,
    tolerance: float,
    processor: QwenVqaProcessor,
) -> StageResult:
    largest = 0.0
    for at, (theirs, ours) in enumerate(zip(script, answer.token_ids, strict=False)):
        gap = abs(logprobs[at] - answer.logprobs[at]) if logprobs else 0.0
        if theirs != ours and logprobs and gap < tolerance:
            return StageResult("answer", True, f"{at} tokens equal, then two as likely as each other ({gap:.2g} apart)")
        if theirs != ours or gap >= tolerance:
            decode = processor.tokenizer.decode
            said = [f"{decode(theirs)!r}", f"{decode(ours)!r} ({answer.logprobs[at]:.4f})"]
            if logprobs:
                said[0] += f" ({logprobs[at]:.4f})"
            bound = f"; log-probabilities {gap:.2g} apart (bound {tolerance:g})" if logprobs else ""
            return StageResult("answer", False, f"at token {at}: script {said[0]}, server {said[1]}{bound}")
        largest = max(largest, gap)
    if len(answer.token_ids) < len(script):
        return StageResult("answer", False, f"the server ends after {len(answer.token_ids)} of {len(script)} tokens")
    detail = f", log-probabilities differ by {largest:.2g} at most" if logprobs else ""
    return StageResult("answer", True, f"{len(script)} tokens equal{detail}")


def _compare_text(script: str, served: str) -> StageResult:
    """Without white space at the ends, which many scripts strip; the longer one may go on."""
    ours, theirs = served.strip(), script.strip()
    cut = bool(ours and theirs) and (ours.startswith(theirs) or theirs.startswith(ours))
    if ours == theirs or cut:
        return StageResult("answer", True, f"{len(theirs)} characters")
    return StageResult("answer", False, f"script {theirs[:80]!r}, server {ours[:80]!r}")
