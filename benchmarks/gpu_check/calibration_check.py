"""Calibration to int4 of one layer of the shape, and from it what a whole model takes."""

import time
from dataclasses import replace
from typing import Any

from qwen_vqa.benchmarks.gpu_check.check_row import CheckSetting, check
from qwen_vqa.benchmarks.gpu_check.training_check import processor_of_the_shape, shape_of
from qwen_vqa.benchmarks.machine.model_shapes import random_model, shape_config
from qwen_vqa.train.verify.verify_cases import built_in_cases

ITERATIONS, FULL_ITERATIONS = 20, 200


def one_layer(setting: CheckSetting) -> dict[str, Any]:
    """By AutoRound over the conversations of `qwen-vqa verify`, with answers."""
    setting.needs("auto_round")
    setting.needs("compressed_tensors")
    import torch

    from qwen_vqa.quantize.calibration import calibrate
    from qwen_vqa.quantize.schemes.int4 import Int4

    processor, shape = processor_of_the_shape(), shape_of(setting)
    model = random_model(shape_config(replace(shape, layers=1), processor), 0).eval()
    answer = {"role": "assistant", "content": "A circle."}
    samples = [
        {"sample_id": case.name, "messages": [*case.messages, answer], "images": case.images}
        for case in built_in_cases()
    ]
    iterations = 2 if setting.tiny else ITERATIONS
    original = model.language_model.model.layers[0].mlp.up_proj.weight.detach().float().clone()
    started = time.monotonic()
    scheme = Int4(128)
    found = calibrate(model, processor, samples, scheme, iterations, 0, torch.device(setting.device))
    seconds = time.monotonic() - started
    rounded = scheme.dequantise(found["language_model.model.layers.0.mlp.up_proj"])
    error = float((rounded - original).norm() / original.norm())
    check(len(found) == 7, f"{len(found)} layers were rounded, not 7")
    check(error < 0.2, f"a rounded weight differs by {error:.0%}")
    full = seconds / iterations * FULL_ITERATIONS * shape.layers
    return {"samples": len(samples), "s a step": seconds / iterations, "hours for all layers": full / 3600}
