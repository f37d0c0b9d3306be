"""The 8- and 4-bit schemes that a checkpoint can have, how its config.json says so, and what serves them."""

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qwen_vqa.plugin.errors import UserError

COMPRESSED_TENSORS = "compressed-tensors"
BITSANDBYTES = "bitsandbytes"
# What `qwen-vqa quantize` writes beside config.json: how the checkpoint was made and what was measured.
RECORD_FILE = "quantization.json"
# Of x86: what multiplies 8-bit integers and adds them in 32 bits.
INT8_INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8")


@dataclass(frozen=True)
class SchemeFacts:
    """What is known of a scheme without loading anything.

    Attributes:
        name: as `--scheme` takes it.
        method: vLLM's name of the format.
        summary: one line for `--help`.
        cpu: whether vLLM serves it on a CPU.
        x86: what an x86 processor must have for that, in words; empty where any will do.
        capability: the least CUDA capability that vLLM serves it on.
        only_16_bits: whether its kernels take activations in 16 bits alone.
        only_16_bits_on_cuda: whether those for CUDA do.
        one_gpu: whether a checkpoint of it cannot be split between GPUs.
    """

    name: str
    method: str
    summary: str
    cpu: bool
    capability: tuple[int, int]
    only_16_bits: bool = False
    only_16_bits_on_cuda: bool = False
    one_gpu: bool = False
    x86: str = ""

    @property
    def in_4_bits(self) -> bool:
        """Whether the weights take half a byte: what somebody takes who lacks memory."""
        return self.name in ("int4", "nf4")

    @property
    def served_by(self) -> str:
        """What serves it, in words."""
        cuda = f"CUDA capability {'.'.join(map(str, self.capability))} or newer"
        cpu = f"CPU{f' (x86: {self.x86})' if self.x86 else ''}, " if self.cpu else ""
        return f"{cpu}{cuda}{', one GPU' if self.one_gpu else ''}, {self.float_types}"

    @property
    def float_types(self) -> str:
        """As what the activations, and weights that are not quantised, are served, in words."""
        if self.only_16_bits or (self.only_16_bits_on_cuda and not self.cpu):
            return "in 16 bits"
        return f"in 16 or 32 bits{' (CUDA: 16)' if self.only_16_bits_on_cuda else ''}"

    def refuses(self, dtype: str) -> bool:
        """Whether what serves it on this machine does not take activations of this float type."""
        narrow = self.only_16_bits or (self.only_16_bits_on_cuda and _cuda_capability() is not None)
        return narrow and dtype in ("float32", "float")


# vLLM's cutlass_scaled_mm, which int8 and fp8 take on CUDA, gives float16 and bfloat16 alone.
FACTS = {
    facts.name: facts
    for facts in (
        SchemeFacts(
            "int8",
            COMPRESSED_TENSORS,
            "W8A8: weights per channel, activations per token",
            cpu=True,
            capability=(7, 5),
            only_16_bits_on_cuda=True,
            x86=" or ".join(INT8_INSTRUCTIONS),
        ),
        SchemeFacts(
            "int4",
            COMPRESSED_TENSORS,
            "W4A16 in groups, calibrated by AutoRound",
            cpu=True,
            capability=(7, 5),
            only_16_bits=True,
            x86="AVX-512",
        ),
        SchemeFacts(
            "nf4",
            BITSANDBYTES,
            "4-bit NormalFloat, as QLoRA has it",
            cpu=True,
            capability=(7, 0),
            only_16_bits=True,
            one_gpu=True,
        ),
        SchemeFacts("int8-bnb", BITSANDBYTES, "LLM.int8()", cpu=True, capability=(7, 5), one_gpu=True),
        SchemeFacts(
            "fp8",
            COMPRESSED_TENSORS,
            "W8A8 in float8_e4m3fn, activations per token",
            cpu=False,
            capability=(8, 9),
            only_16_bits_on_cuda=True,
        ),
    )
}


def quantization_config(folder: Path) -> dict[str, Any] | None:
    """config.json's `quantization_config`, or None for a checkpoint in 16 or 32 bits."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")


def scheme_of(config: dict[str, Any]) -> SchemeFacts:
    """The scheme that a `quantization_config` describes.

    Raises:
        UserError: it is none of ours.
    """
    method = config.get("quant_method")
    name = None
    if method == BITSANDBYTES:
        name = "int8-bnb" if config.get("load_in_8bit") else "nf4"
    elif method == COMPRESSED_TENSORS:
        groups = list((config.get("config_groups") or {}).values())
        weights = groups[0].get("weights") or {} if groups else {}
        name = {"int8": "int8", "int4": "int4", "float8": "fp8"}.get(
            f"{weights.get('type', 'int')}{weights.get('num_bits')}"
        )
    if name is None:
        raise UserError(
            f"config.json has a quantization_config of method {method!r} that is none of {', '.join(FACTS)}. "
            "Make the checkpoint with `qwen-vqa quantize`."
        )
    return FACTS[name]


def why_not_served_here(facts: SchemeFacts) -> str | None:
    """Why vLLM cannot serve a scheme on this machine, or None when it can."""
    if facts.method == BITSANDBYTES:
        missing = [package for package in ("bitsandbytes", "vllm_bnb_plugin") if find_spec(package) is None]
        if missing:
            return (
                f"{facts.name} needs {' and '.join(missing).replace('_', '-')}; run `make setup` again, or "
                "`pip install bitsandbytes && pip install --no-deps vllm-bnb-plugin`"
            )
    capability = _cuda_capability()
    needed = ".".join(map(str, facts.capability))
    if capability is None:
        if not facts.cpu:
            return f"{facts.name} needs a GPU of CUDA capability {needed}, and vLLM finds none here"
        return _why_not_on_this_cpu(facts)
    if capability >= facts.capability:
        return None
    return f"{facts.name} needs CUDA capability {needed}, and this GPU has {'.'.join(map(str, capability))}"


def _why_not_on_this_cpu(facts: SchemeFacts) -> str | None:
    if not facts.x86 or not _vllm_is_for_cpus():
        return None
    from qwen_vqa.plugin.cpu.kernel_support import int8_products_are_right, multiplies_4_bit_weights

    if facts.name == "int8" and not int8_products_are_right():
        return (
            "int8 would give wrong answers on this processor: it lacks an instruction that adds products of 8-bit "
            "integers in 32 bits, and in 16 they overflow"
        )
    if facts.name == "int4" and not multiplies_4_bit_weights():
        return "int4 needs a product of 4-bit weights, which vLLM does not have for this processor"
    return None


def _vllm_is_for_cpus() -> bool:
    if find_spec("vllm") is None:
        return False
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


def _cuda_capability() -> tuple[int, int] | None:
    """Of the GPU that vLLM would use; asked without starting CUDA in this process, from which servers are forked."""
    if find_spec("vllm") is None:
        return None
    from vllm.platforms import current_platform

    capability = current_platform.get_device_capability() if current_platform.is_cuda() else None
    return (capability.major, capability.minor) if capability else None


def schemes_served_here() -> list[str]:
    """Names of the schemes that this machine serves."""
    return [name for name, facts in FACTS.items() if why_not_served_here(facts) is None]
