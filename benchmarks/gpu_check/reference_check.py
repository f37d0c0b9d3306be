"""The reference model on a GPU against the same on the CPU."""

import time
from typing import Any

import torch

from qwen_vqa.benchmarks.gpu_check.check_row import CheckSetting, check, checkpoint_of
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.serving import DEMO_CHECKPOINT
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration
from qwen_vqa.train.verify.stage_comparison import Tolerance
from qwen_vqa.train.verify.verify_cases import VerifyCase, built_in_cases

NEW_TOKENS = 16


def equals_the_cpu(setting: CheckSetting, dtype: str) -> dict[str, Any]:
    """Log-probabilities of the tokens that the CPU chooses in float32, within the bounds of `qwen-vqa verify`."""
    processor, cpu = load_processor(DEMO_CHECKPOINT), load_reference(DEMO_CHECKPOINT, torch.float32)
    other = load_reference(DEMO_CHECKPOINT, getattr(torch, dtype)).to(setting.device)
    bound = Tolerance.of(getattr(torch, dtype)).logprobs
    worst = 0.0
    for case in built_in_cases():
        expected, actual = (_log_probs(model, processor, case) for model in (cpu, other))
        chosen = expected.argmax(-1, keepdim=True)
        worst = max(worst, float((expected.gather(-1, chosen) - actual.gather(-1, chosen)).abs().max()))
    check(worst <= bound, f"log-probabilities differ by {worst:.2g}, above the bound of {bound:g}")
    return {"cases": len(built_in_cases()), "largest difference": worst, "bound": bound}


def same_answers(setting: CheckSetting) -> dict[str, Any]:
    """Greedy answers in float32, token by token."""
    processor, model = load_processor(DEMO_CHECKPOINT), load_reference(DEMO_CHECKPOINT, torch.float32)
    here = [_answer(model, processor, case) for case in built_in_cases()]
    model.to(setting.device)
    there = [_answer(model, processor, case) for case in built_in_cases()]
    different = [case.name for case, one, other in zip(built_in_cases(), here, there, strict=True) if one != other]
    check(not different, f"other answers to: {', '.join(different)}")
    return {"answers": len(here), "tokens": sum(map(len, here))}


@torch.inference_mode()
def generate(setting: CheckSetting, batch: int) -> dict[str, Any]:
    """Output tokens/s of the shape in bfloat16 by transformers alone: what a server's are to be held against."""
    if setting.tiny:
        batch = min(batch, 2)
    folder = checkpoint_of(setting)
    processor, model = load_processor(folder), load_reference(folder, torch.bfloat16).to(setting.device)
    [case] = [one for one in built_in_cases() if one.name == "one image"]
    prompt = processor.apply_chat_template(case.messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[prompt] * batch, images=case.images * batch, return_tensors="pt").to(model.device)
    tokens = 4 if setting.tiny else 64
    length = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "repetition_penalty": 1.0}
    model.generate(**inputs, **(length | {"max_new_tokens": 2, "min_new_tokens": 2}))  # chooses its kernels
    started = time.monotonic()
    found = model.generate(**inputs, **length)
    found.cpu()  # waits for the GPU
    seconds = time.monotonic() - started
    check(found.shape[1] == inputs["input_ids"].shape[1] + tokens, "an answer ended early")
    return {
        "at once": batch,
        "output tokens/s": batch * tokens / seconds,
        "prompt tokens": inputs["input_ids"].shape[1],
    }


@torch.inference_mode()
def _log_probs(model: QwenVqaForConditionalGeneration, processor: QwenVqaProcessor, case: VerifyCase) -> torch.Tensor:
    """[tokens, vocabulary] in float32, on the CPU."""
    return model(**_inputs(model, processor, case)).logits[0].float().log_softmax(-1).cpu()


@torch.inference_mode()
def _answer(model: QwenVqaForConditionalGeneration, processor: QwenVqaProcessor, case: VerifyCase) -> list[int]:
    inputs = _inputs(model, processor, case)
    tokens = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, repetition_penalty=1.0)
    return tokens[0, inputs["input_ids"].shape[1] :].tolist()


def _inputs(model: QwenVqaForConditionalGeneration, processor: QwenVqaProcessor, case: VerifyCase) -> Any:
    prompt = processor.apply_chat_template(case.messages, tokenize=False, add_generation_prompt=True)
    return processor(text=prompt, images=case.images or None, return_tensors="pt").to(model.device)
