"""Products with the output layer against each other."""

import pytest

pytest.importorskip("vllm")

from qwen_vqa.benchmarks.machine.output_layer_speed import products
from qwen_vqa.plugin.cpu.output_layout import FEW


def test_each_number_of_answers_is_measured_in_turns():
    found = products(vocabulary=512, width=64, turns=3)
    assert [one["answers"] for one in found] == list(range(1, FEW + 1))
    for one in found:
        assert len(one["packed_ms"]) == len(one["table_ms"]) == 3
        assert one["ratio"] > 0
