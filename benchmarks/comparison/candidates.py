"""The servers that are compared: what each is called, how it is started, what it is asked.

Letters are those of what users would have instead: (a) transformers one request at a time, (b) in static batches,
(c) `transformers serve`, (d) stock vLLM with its own LLaVA of the same dimensions, (e) llama.cpp, text alone.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qwen_vqa.benchmarks.alternatives.environments import environment_python
from qwen_vqa.benchmarks.alternatives.vllm_llava import llava_checkpoint
from qwen_vqa.benchmarks.machine.model_shapes import shape_checkpoint
from qwen_vqa.plugin.errors import UserError

ALTERNATIVES = "qwen_vqa.benchmarks.alternatives"
VLLM = "vllm.entrypoints.openai.api_server"
CLI = "qwen_vqa.serving.cli"
SHORT = {"bfloat16": "", "float32": "-f32"}
# vLLM's own default is half of the memory; the longest of these runs need far less.
KV_GIB = "4"


@dataclass(frozen=True)
class Launch:
    """How a server is started. The port is put at the command's end; `extra_body` goes into each request."""

    command: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)
    extra_body: str = "{}"


@dataclass(frozen=True)
class Candidate:
    """`key` names its files and is what --only takes. `scheme`, of part_formats.py, is the limit it is held against.
    `make` makes what it needs and raises UserError where that cannot be had. `turns`: it is asked second questions.
    """

    key: str
    name: str
    scheme: str
    make: Callable[[], Launch]
    text_only: bool = False
    turns: bool = False


def bfloat16_is_native() -> bool | None:
    """Whether the processor multiplies bfloat16 itself; None where that cannot be told."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return None
    words = info.read_text().split()
    return any(flag in words for flag in ("avx512_bf16", "amx_bf16", "bf16"))


@dataclass(frozen=True)
class Maker:
    """Makes the candidates of a shape, and their checkpoints in `folder`."""

    shape: str
    folder: Path
    environments: Path
    output_tokens: int
    batch: int

    def candidates(self, ours: str, theirs: str) -> list[Candidate]:
        """`ours` and `theirs` are the float types that were the faster for vLLM and for transformers here; where
        the processor has no bfloat16, both sides are measured in float32 as well."""
        types = ["bfloat16"] if bfloat16_is_native() else ["bfloat16", "float32"]
        every = [Candidate(f"ours{SHORT[t]}", f"qwen-vqa, {t}", t, self._ours(t), turns=True) for t in types]
        every += [Candidate("ours-int8", "qwen-vqa, int8", "int8", self._int8(ours), turns=True)]
        every += [Candidate(f"a{SHORT[t]}", f"(a) transformers, {t}", t, self._transformers(t)) for t in types]
        b, c = f"(b) transformers, batch {self.batch}, {theirs}", f"(c) transformers serve, {theirs}"
        every += [
            Candidate("b", b, theirs, self._transformers(theirs, "--batch", str(self.batch))),
            Candidate("c", c, theirs, self._transformers_serve(theirs)),
            Candidate("d", f"(d) vLLM's LLaVA, {ours}", ours, self._llava(ours)),
            Candidate("d-cores", f"(d) the same, all cores, {ours}", ours, self._llava(ours, all_cores=True)),
            Candidate("ours-text", f"qwen-vqa, text, {ours}", ours, self._ours(ours), text_only=True),
            Candidate("ours-int8-text", "qwen-vqa, text, int8", "int8", self._int8(ours), text_only=True),
            Candidate("e", "(e) llama.cpp, text, float16", "bfloat16", self._llama("f16"), text_only=True),
            Candidate("e-q8", "(e) llama.cpp, text, 8 bits", "q8_0", self._llama("q8_0"), text_only=True),
        ]
        first = every[SHORT[ours] != ""]
        return [*every, Candidate("ours-again", f"{first.name}, again", ours, first.make)]

    def _checkpoint(self) -> Path:
        return shape_checkpoint(self.shape, self.folder / self.shape)

    def _ours(self, dtype: str) -> Callable[[], Launch]:
        return lambda: Launch((sys.executable, "-m", CLI, "serve", str(self._checkpoint()), "--dtype", dtype))

    def _int8(self, dtype: str) -> Callable[[], Launch]:
        def make() -> Launch:
            folder = self.folder / f"{self.shape}-int8"
            if not folder.exists():
                command = [sys.executable, "-m", CLI, "quantize", str(self._checkpoint()), "--scheme", "int8"]
                _run([*command, "-o", str(folder)])
            return Launch((sys.executable, "-m", CLI, "serve", str(folder), "--dtype", dtype))

        return make

    def _transformers(self, dtype: str, *more: str) -> Callable[[], Launch]:
        module = f"{ALTERNATIVES}.transformers_server"
        return lambda: Launch((sys.executable, "-m", module, str(self._checkpoint()), "--dtype", dtype, *more))

    def _transformers_serve(self, dtype: str) -> Callable[[], Launch]:
        tokens = self.output_tokens
        settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        body = json.dumps({"generation_config": json.dumps(settings)})
        module = f"{ALTERNATIVES}.transformers_serve"
        return lambda: Launch(
            (sys.executable, "-m", module, str(self._checkpoint()), "--dtype", dtype), extra_body=body
        )

    def _llava(self, dtype: str, all_cores: bool = False) -> Callable[[], Launch]:
        """As it comes, vLLM leaves a core to the API's process; `all_cores` binds it as `qwen-vqa serve` may."""

        def make() -> Launch:
            python = environment_python("torchvision", self.environments)
            folder = llava_checkpoint(self.shape, self.folder / f"llava-{self.shape}")
            variables = {"VLLM_CPU_KVCACHE_SPACE": KV_GIB, "VLLM_NO_USAGE_STATS": "1"}
            if all_cores:
                variables["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, sorted(os.sched_getaffinity(0))))
            command = (python, "-m", VLLM, "--model", str(folder), "--max-model-len", "2048", "--dtype", dtype)
            return Launch(command, variables)

        return make

    def _llama(self, kind: str) -> Callable[[], Launch]:
        """Requests wait for each other in it; by default a new one would even end the one that runs."""

        def make() -> Launch:
            python = environment_python("llama", self.environments)
            file = self.folder / f"{self.shape}-{kind}.gguf"
            if not file.exists():
                writer = f"{ALTERNATIVES}.gguf_checkpoint"
                _run([python, "-m", writer, str(self._checkpoint()), str(file), "--type", kind])
            threads = str(len(os.sched_getaffinity(0)))
            command = (python, "-m", "llama_cpp.server", "--model", str(file), "--model_alias", file.stem)
            settings = ("--n_threads", threads, "--n_threads_batch", threads, "--interrupt_requests", "false")
            return Launch((*command, *settings, "--n_ctx", "2048"))

        return make


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"{' '.join(command[1:4])} ended with {done.returncode}:\n{done.stderr[-800:]}")
