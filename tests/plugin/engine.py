"""A vLLM engine in a process of its own: its memory, threads and global state end with it."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

from PIL import Image

# One core for vLLM and no compilation: tiny models spend all their time on the latter.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",
}
OPTIONS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": 8,
    "kv_cache_memory_bytes": 2**26,
    "limit_mm_per_prompt": {"image": 8},
    "disable_log_stats": True,
    "worker_extension_cls": "qwen_vqa.plugin.vllm_model.worker_extension.VerifyExtension",
}
# On GPUs vLLM's default, and there without the interpreter; on a CPU its runner V2 is refused for want of a Triton.
MODEL_RUNNER_V2 = {"VLLM_USE_V2_MODEL_RUNNER": "1", "TRITON_INTERPRET": "1"}


@dataclass(frozen=True)
class Request:
    """A prompt, as text or token ids, with one `<|image_pad|>` for each of its images."""

    prompt: str | list[int]
    images: list[Image.Image] = field(default_factory=list)
    adapter: Path | None = None
    processor_options: dict[str, Any] | None = None


@dataclass(frozen=True)
class Answer:
    """What the engine generated greedily, with the likeliest tokens' log-probabilities at each step."""

    prompt_ids: list[int]
    token_ids: list[int]
    logprobs: list[dict[int, float]]
    cached_tokens: int


class EngineError(RuntimeError):
    """What went wrong in the engine's process, with its traceback."""


class Engine:
    """Context manager around the process; with variables in its environment, that is a new one."""

    def __init__(self, checkpoint: Path, environment: dict[str, str] | None = None, **options: Any) -> None:
        context = copies() if environment is None else multiprocessing.get_context("spawn")
        self._pipe, other_end = context.Pipe()
        self._process = context.Process(
            target=_run,
            args=(other_end, str(checkpoint), ENVIRONMENT | (environment or {}), OPTIONS | options),
        )
        self._process.start()
        other_end.close()

    def __enter__(self) -> "Engine":
        self._receive()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.join(60)
        self._process.kill()

    def generate(self, requests: list[Request], max_tokens: int = 8) -> list[Answer]:
        """Answers to requests that the engine gets all at once."""
        self._pipe.send((requests, max_tokens))
        return self._receive()

    def apply_to_model(self, function: Callable[[Any], Any]) -> Any:
        """What a function of a module says of the engine's model."""
        self._pipe.send(function)
        return self._receive()

    def apply_to_worker(self, function: Callable[[Any], Any]) -> Any:
        """What a function of a module says of the engine's worker."""
        self._pipe.send(("worker", function))
        return self._receive()

    def _receive(self) -> Any:
        try:
            succeeded, result = self._pipe.recv()
        except EOFError as error:
            raise EngineError(f"the engine's process ended with {self._process.exitcode}") from error
        if not succeeded:
            raise EngineError(result)
        return result


def copies() -> BaseContext:
    """For copies of a process that has imported vLLM, which is most of what a start takes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.plugin.engine_imports"])
    return context


def _run(pipe: Connection, checkpoint: str, environment: dict[str, str], options: dict[str, Any]) -> None:
    os.environ.update(environment)
    if environment.get("TRITON_INTERPRET") == "1":
        _let_triton_interpret()
    try:
        from vllm import LLM

        llm = LLM(checkpoint, **options)
    except Exception:
        pipe.send((False, traceback.format_exc()))
        return
    pipe.send((True, None))
    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        try:
            if callable(asked):
                result = llm.apply_model(asked)[0]
            elif asked[0] == "worker":
                result = llm.collective_rpc(asked[1])[0]
            else:
                result = _generate(llm, *asked)
            pipe.send((True, result))
        except Exception:
            pipe.send((False, traceback.format_exc()))


def _let_triton_interpret() -> None:
    """vLLM's build for CPUs wants a Triton with a backend for CPUs. The interpreter runs kernels as Python, and needs
    none: a name in the list of backends is enough."""
    from triton.backends import backends

    backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: False))


def _generate(llm: Any, requests: list[Request], max_tokens: int) -> list[Answer]:
    from vllm import SamplingParams

    outputs = llm.generate(
        [_prompt(request) for request in requests],
        SamplingParams(temperature=0, max_tokens=max_tokens, logprobs=3, ignore_eos=True),
        lora_request=[_adapter(request) for request in requests],
        use_tqdm=False,
    )
    return [
        Answer(
            list(output.prompt_token_ids),
            list(output.outputs[0].token_ids),
            [{token: entry.logprob for token, entry in step.items()} for step in output.outputs[0].logprobs],
            output.num_cached_tokens,
        )
        for output in outputs
    ]


def _prompt(request: Request) -> dict[str, Any]:
    prompt: dict[str, Any] = {"prompt" if isinstance(request.prompt, str) else "prompt_token_ids": request.prompt}
    if request.images:
        prompt["multi_modal_data"] = {"image": request.images}
    if request.processor_options:
        prompt["mm_processor_kwargs"] = request.processor_options
    return prompt


def _adapter(request: Request) -> Any:
    from vllm.lora.request import LoRARequest

    if request.adapter is None:
        return None
    path = str(request.adapter)
    return LoRARequest(path, abs(hash(path)) % 2**31 + 1, path)
