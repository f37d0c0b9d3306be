"""Everything a training run is told; the numbers are the original project's."""

from dataclasses import dataclass, field, fields
from typing import Any

from qwen_vqa.plugin.command.command_parser import MOST_SEED
from qwen_vqa.plugin.errors import UserError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
MODULE_GROUPS = {"attention": ATTENTION, "mlp": MLP}
PRECISIONS = ("auto", "bfloat16", "float16", "float32")
LOAD_IN = ("full", "8bit", "4bit")


def _said(default: Any, description: str) -> Any:
    """A field with its default and what --help says of it."""
    return field(default=default, metadata={"help": description})


@dataclass(frozen=True)
class TrainingConfig:
    """Connector and LoRA are trained, the encoder is frozen. Each field is a flag of `qwen-vqa train`.

    `target_modules` are names of the language model's layers; `attention` and `mlp` stand for those of MODULE_GROUPS.
    """

    learning_rate: float = _said(5e-5, "of the LoRA, or of the full language model: the peak, of a cosine schedule")
    connector_learning_rate: float = _said(5e-5, "of the connector: the peak, of a cosine schedule")
    encoder_layers: int = _said(0, "last layers of the vision encoder that are trained, too; -1: all of it")
    encoder_learning_rate: float = _said(2e-6, "of the vision encoder: the peak, as LLaVA-NeXT has it")
    rank: int = _said(64, "of the LoRA; 0 trains the connector alone")
    alpha: int = _said(128, "of the LoRA: its update is scaled by alpha / rank")
    dropout: float = _said(0.05, "of the LoRA's inputs, from 0 to below 1")
    target_modules: tuple[str, ...] = _said(("attention",), "layers with a LoRA: attention, mlp, or layers by name")
    full_language_model: bool = _said(False, "train all of the language model in place of a LoRA; with --rank 0")
    batch_size: int = _said(4, "samples at once on each GPU or CPU")
    accumulation: int = _said(16, "batches whose gradients make one optimiser step")
    epochs: float = _said(1.0, "times that all samples are seen; may be a fraction")
    max_steps: int = _said(-1, "optimiser steps at most, in place of --epochs; -1: as many as those take")
    warmup_ratio: float = _said(0.03, "share of the steps in which the learning rate rises to its peak")
    weight_decay: float = _said(0.0, "of AdamW")
    max_length: int = _said(2048, "tokens of a sample at most, image tokens included; longer ones are left out")
    max_samples: int = _said(200_000, "samples drawn at most, of all data sets together")
    max_dropped: float = _said(0.05, "share of a data set that may be unusable; with more, the run does not start")
    precision: str = _said("auto", "float type of frozen weights and arithmetic; auto: bfloat16 if the hardware has it")
    load_in: str = _said("full", "hold the frozen language model in 8 or 4 bits (QLoRA), or as it is stored")
    gradient_checkpointing: bool = _said(False, "compute activations again for the backward pass, to save memory")
    cache_features: bool = _said(False, "encode each picture once and keep its features on disk")
    merge_adapter: bool = _said(True, "put the LoRA into the resulting checkpoint's weights, or keep it beside them")
    workers: int = _said(-1, "processes that load data, beside each that trains; -1: as many as its cores allow")
    save_steps: int = _said(200, "optimiser steps between two checkpoints of the run")
    seed: int = _said(0, "of the samples' order, of dropout and of fresh weights")

    def __post_init__(self) -> None:
        modules = [name for group in self.target_modules for name in MODULE_GROUPS.get(group, (group,))]
        object.__setattr__(self, "target_modules", tuple(modules))
        rates = ("learning_rate", "connector_learning_rate", "encoder_learning_rate")
        sizes = ("batch_size", "accumulation", "epochs", "save_steps", "max_samples", "max_length")
        for name in (*rates, *sizes):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be greater than 0.")
        if self.rank < 0 or (self.rank and self.alpha <= 0):
            raise UserError(f"rank {self.rank} with alpha {self.alpha}: rank is 0 or more, alpha more than 0.")
        if self.full_language_model and self.rank:
            raise UserError("full_language_model trains what an adapter would sit on: set rank to 0 with it.")
        if self.full_language_model and self.load_in != "full":
            raise UserError(f"full_language_model trains weights that load_in {self.load_in} would hold rounded.")
        if not 0 <= self.dropout < 1 or not 0 <= self.warmup_ratio < 1:
            raise UserError(f"dropout {self.dropout} and warmup_ratio {self.warmup_ratio} must be at least 0, below 1.")
        if not 0 <= self.max_dropped <= 1:
            raise UserError(f"max_dropped is {self.max_dropped}; it is a share, from 0 to 1.")
        if self.encoder_layers < -1:
            raise UserError(f"encoder_layers is {self.encoder_layers}; it must be 0 or more, or -1 for all.")
        if not 0 <= self.seed <= MOST_SEED:
            raise UserError(f"seed is {self.seed}; it must be from 0 to {MOST_SEED}.")
        if self.workers < -1:
            raise UserError(f"workers is {self.workers}; it must be 0 or more, or -1 to have it chosen.")
        for name, choices in (("precision", PRECISIONS), ("load_in", LOAD_IN)):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}.")

    @classmethod
    def names(cls) -> list[str]:
        """The fields, in order."""
        return [field.name for field in fields(cls)]
