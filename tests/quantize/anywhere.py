"""Tests of making checkpoints run on every machine, also where one of the schemes cannot be served."""

from typing import Any

import pytest

from qwen_vqa.plugin.quantization import FACTS, why_not_served_here
from qwen_vqa.quantize.options import Options


def anywhere(*fields: Any, **named: Any) -> Options:
    """Options for a checkpoint that may be served elsewhere."""
    return Options(*fields, **({"elsewhere": True} | named))


def skip_unless_served_here(scheme: str) -> None:
    """For tests of a server: what this machine refuses, and that it does, are tests of their own."""
    if reason := why_not_served_here(FACTS[scheme]):
        pytest.skip(reason)


def eight_bits() -> str:
    """int8, or LLM.int8() where the processor cannot multiply int8: for tests of what both have."""
    return "int8" if why_not_served_here(FACTS["int8"]) is None else "int8-bnb"
