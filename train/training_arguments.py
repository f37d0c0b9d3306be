"""What transformers' Trainer is told for a run: its numbers, precision, and processes that make batches."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.float_instructions import lacking, multiplies
from qwen_vqa.train.ranks import cores
from qwen_vqa.train.training_config import TrainingConfig

MOST_WORKERS = 8


def training_arguments(config: TrainingConfig, output: str | Path, **overrides: Any) -> TrainingArguments:
    """The Trainer's arguments for a config; `overrides` go to TrainingArguments as they are.

    Raises:
        UserError: float16 without a GPU.
    """
    precision = training_precision(config.precision, has_bfloat16(), torch.cuda.is_available())
    if precision == "float16" and not torch.cuda.is_available():
        raise UserError(
            "--precision float16 needs a GPU: its gradients are scaled, which the trainer does there alone. Take "
            "bfloat16 or float32 on a CPU."
        )
    arguments: dict[str, Any] = {
        "output_dir": str(output),
        "learning_rate": config.learning_rate,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.accumulation,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps,
        "warmup_steps": config.warmup_ratio,
        "lr_scheduler_type": "cosine",
        "weight_decay": config.weight_decay,
        "bf16": precision == "bfloat16",
        "fp16": precision == "float16",
        # Without re-entry, inputs that need no gradient (a frozen embedding's) cut no graph.
        "gradient_checkpointing": config.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "dataloader_num_workers": data_workers(config.workers, cores(), torch.cuda.is_available()),
        "ddp_backend": None if torch.cuda.is_available() or "RANK" not in os.environ else "gloo",
        "ddp_find_unused_parameters": False,
        "logging_nan_inf_filter": False,
        "save_steps": config.save_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "seed": config.seed,
        "data_seed": config.seed,
        "report_to": [],
        "remove_unused_columns": False,
        "use_cpu": not torch.cuda.is_available(),
    }
    made = TrainingArguments(**{**arguments, **overrides})
    # Several GPUs are several processes (torchrun). In one, the Trainer would take torch's DataParallel, which splits
    # tensors by their first dimension: a sample's pictures would go to another GPU than its text.
    made._n_gpu = min(made.n_gpu, 1)
    return made


def data_workers(asked: int, cores: int, on_gpu: bool) -> int:
    """Processes that make batches; -1 leaves a core to the one that trains.

    On a CPU the steps themselves use all cores. More than 8 wait for the GPU (train/README.md has the rate of one).
    """
    if asked >= 0:
        return asked
    return min(MOST_WORKERS, cores - 1) if on_gpu else 0


def has_bfloat16() -> bool:
    """Whether the GPU, or without one the processor, multiplies bfloat16 by itself.

    Its emulation, which a T4 has, too, does not count: it is slow.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return multiplies("bfloat16", torch.cpu.get_capabilities())


def training_precision(asked: str, has_bfloat16: bool, on_gpu: bool = True) -> str:
    """bfloat16, float16 or float32; "auto" is bfloat16 where the hardware computes in it, else float16 on a GPU and
    float32 on a CPU.
    """
    if asked != "auto":
        return asked
    return "bfloat16" if has_bfloat16 else "float16" if on_gpu else "float32"


def precision_note(asked: str, arguments: TrainingArguments) -> str | None:
    """What is to be said of a precision that was chosen, where it is not the usual one."""
    if asked != "auto" or arguments.bf16 or arguments.fp16:
        return None
    return (
        f"--precision float32: {lacking('bfloat16')}. --precision bfloat16 takes half the memory for frozen weights, "
        "and longer"
    )
