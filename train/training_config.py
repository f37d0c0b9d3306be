"""Everything a training run is told; the numbers are the original project's."""

from dataclasses import dataclass, fields

from qwen_vqa.plugin.errors import UserError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
MODULE_GROUPS = {"attention": ATTENTION, "mlp": MLP}
PRECISIONS = ("auto", "bfloat16", "float16", "float32")
LOAD_IN = ("full", "8bit", "4bit")


@dataclass(frozen=True)
class TrainingConfig:
    """Connector and LoRA are trained, the encoder is frozen; `rank` 0 trains the connector alone.

    Learning rates are peak values (cosine, after `warmup_ratio` of the steps). One optimiser step sees
    `batch_size` x `accumulation` samples a process. `max_length` is in tokens, image tokens included.
    Of all data sets together `max_samples` are drawn; when more than the share `max_dropped` of one cannot be used,
    the run does not start. `target_modules` are names of the language model's layers, or `attention` and `mlp`.
    `full_language_model` trains all of the language model in place of an adapter, for small models. `load_in` 8bit or
    4bit holds the frozen language model so (QLoRA). `cache_features` encodes each picture once, on disk. With
    `merge_adapter`, the checkpoint that the run leaves has the adapter in its weights; otherwise it lies beside them.
    `workers` open pictures and make batches beside each process that trains; -1 takes as many as its cores allow.
    """

    learning_rate: float = 5e-5
    connector_learning_rate: float = 5e-5
    rank: int = 64
    alpha: int = 128
    dropout: float = 0.05
    target_modules: tuple[str, ...] = ("attention",)
    full_language_model: bool = False
    batch_size: int = 4
    accumulation: int = 16
    epochs: float = 1.0
    max_steps: int = -1
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_length: int = 2048
    max_samples: int = 200_000
    max_dropped: float = 0.05
    precision: str = "auto"
    load_in: str = "full"
    gradient_checkpointing: bool = False
    cache_features: bool = False
    merge_adapter: bool = True
    workers: int = -1
    save_steps: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        modules = [name for group in self.target_modules for name in MODULE_GROUPS.get(group, (group,))]
        object.__setattr__(self, "target_modules", tuple(modules))
        rates = ("learning_rate", "connector_learning_rate")
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
        if self.workers < -1:
            raise UserError(f"workers is {self.workers}; it must be 0 or more, or -1 to have it chosen.")
        for name, choices in (("precision", PRECISIONS), ("load_in", LOAD_IN)):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}.")

    @classmethod
    def names(cls) -> list[str]:
        """The fields, in order."""
        return [field.name for field in fields(cls)]
