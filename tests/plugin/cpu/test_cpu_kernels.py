"""Schemes that vLLM cannot compute on a processor, or computes wrongly there, are found out and refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qwen_vqa.plugin.cpu.kernel_support import int8_products_are_right, multiplies_4_bit_weights
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.quantization import FACTS, INT8_INSTRUCTIONS, why_not_served_here
from qwen_vqa.quantize.options import Options
from qwen_vqa.quantize.quantize import quantise
from tests.quantize.anywhere import anywhere

pytestmark = pytest.mark.cpu

on_x86 = pytest.mark.skipif(
    torch.cpu.get_capabilities().get("architecture") != "x86_64", reason="about processors of the x86 family"
)
# oneDNN does as if the processor had no more than AVX2.
OLD_PROCESSOR = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
ASK = """
import sys
from pathlib import Path
from qwen_vqa.plugin.cpu.kernel_support import int8_products_are_right
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.quantize.options import Options
from qwen_vqa.quantize.quantize import quantise
from qwen_vqa.serving.checked_checkpoint import checked_checkpoint

original, quantised, output = map(Path, sys.argv[1:])
print(int8_products_are_right(63), int8_products_are_right(127))
for job in (lambda: quantise(Options(original, output, "int8")), lambda: checked_checkpoint(quantised)):
    try:
        job()
    except UserError as error:
        print(error)
"""


@on_x86
def test_what_the_kernels_say_is_what_the_processor_has() -> None:
    processor = torch.cpu.get_capabilities()
    assert int8_products_are_right() == any(processor.get(name) for name in INT8_INSTRUCTIONS)
    assert multiplies_4_bit_weights() == processor["avx512_f"]
    assert int8_products_are_right(63), "64 * 2 * 127 has room in 16 bits"


@on_x86
def test_int8_is_refused_where_its_products_overflow(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """There, a server would answer, and wrongly: nothing fails."""
    quantise(anywhere(tiny_checkpoint, tmp_path / "int8", "int8"))
    command = [sys.executable, "-c", ASK, str(tiny_checkpoint), str(tmp_path / "int8"), str(tmp_path / "out")]
    environment = {**os.environ, **OLD_PROCESSOR}
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    products, made, served = [line for line in run.stdout.splitlines() if "True" in line or "int8" in line]
    assert products == "True False"
    assert made.startswith("int8 would give wrong answers on this processor")
    assert made.endswith("nf4, int8-bnb. Pass --elsewhere to make it for another machine.")
    assert "cannot be served here: int8 would give wrong answers on this processor" in served
    assert "avx512_vnni or avx_vnni or amx_int8" in served
    assert not (tmp_path / "out").exists()


def test_int4_is_refused_where_vllm_has_no_product_for_it(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_vqa.plugin.cpu.kernel_support.multiplies_4_bit_weights", lambda: False)
    with pytest.raises(UserError, match=r"int4 needs a product of 4-bit weights.*x86: AVX-512.*nf4.*--elsewhere"):
        quantise(Options(tiny_checkpoint, tmp_path / "out", "int4"))


@pytest.mark.parametrize("scheme", ["nf4", "int8-bnb"])
def test_bitsandbytes_asks_nothing_of_the_processor(scheme: str) -> None:
    assert why_not_served_here(FACTS[scheme]) is None
