"""Training steps by the project's trainer: speed, and peak memory beside what train/memory predicts."""

import time
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoTokenizer, TrainerCallback

from qwen_vqa.benchmarks.gpu_check.check_row import SHAPE_FOLDER, CheckSetting, NotPossible, check, checkpoint_of
from qwen_vqa.benchmarks.machine.model_shapes import SHAPES, Shape, random_model, shape_config
from qwen_vqa.plugin.chat.chat_template import chat_template
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.plugin.views.image_processor import QwenVqaImageProcessor
from qwen_vqa.serving import DEMO_CHECKPOINT
from qwen_vqa.train.data.collator import ConversationCollator
from qwen_vqa.train.memory.memory_check import batch_of
from qwen_vqa.train.memory.memory_estimate import GIB, memory_of
from qwen_vqa.train.model.reference_checkpoint import load_processor, save_checkpoint
from qwen_vqa.train.trainer import QwenVqaTrainer, load_for_training
from qwen_vqa.train.training_arguments import training_arguments
from qwen_vqa.train.training_config import TrainingConfig

TINY = Shape(256, 2, 4, 2, 512, vocabulary=2048, encoder_layers=2)
SPARE = GIB  # what CUDA, the allocator's gaps and the encoder take beside what is counted; train/README.md says so
LABELLED = 256  # tokens of a sample in answers
STEPS, WARM_UP = 6, 2
DEMO_SECONDS, DEMO_SAMPLES = 120, 512


def shape_of(setting: CheckSetting) -> Shape:
    """Qwen2.5-3B's, or a tiny one."""
    return TINY if setting.tiny else SHAPES["3b"]


def processor_of_the_shape() -> QwenVqaProcessor:
    """With the demo's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO_CHECKPOINT)
    return QwenVqaProcessor(QwenVqaImageProcessor(384, 32), tokenizer, chat_template())


def make_checkpoint(setting: CheckSetting) -> dict[str, Any]:
    """Random weights behind ViT-B/32-384, for the rows below."""
    processor = processor_of_the_shape()
    config = shape_config(shape_of(setting), processor)
    config.vision_in_float32 = True  # as `assemble` writes it
    model = random_model(config, 0)
    model.to_float_type(torch.bfloat16)
    folder = setting.folder / SHAPE_FOLDER
    save_checkpoint(folder, model, processor)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {"parameters": sum(weight.numel() for weight in model.parameters()), "GiB": size / GIB}


def steps(setting: CheckSetting, load_in: str, precision: str, length: int) -> dict[str, Any]:
    """Steps at the recipe's batch of 4, with gradient checkpointing and LoRA of rank 64 on attention."""
    base = checkpoint_of(setting)
    if precision == "float16" and not setting.on_gpu:
        raise NotPossible("float16 trains on a GPU alone")
    if load_in != "full":
        setting.needs("bitsandbytes")
    if setting.tiny:
        length = 192
    labelled = min(LABELLED, length // 2)
    config = TrainingConfig(
        load_in=load_in,
        precision=precision,
        gradient_checkpointing=True,
        batch_size=1 if setting.tiny else 4,
        accumulation=1,
        max_steps=STEPS,
        workers=0,
    )
    predicted = memory_of(AutoConfig.from_pretrained(base), config, length, labelled).total
    _check_room(setting, predicted)
    arguments = training_arguments(config, setting.folder / "steps", **_quiet(setting))
    model = load_for_training(base, config, arguments)
    batch = batch_of(model, config.batch_size, length, labelled)
    clock = _Clock()
    trainer = QwenVqaTrainer(
        model=model,
        args=arguments,
        train_dataset=_Repeated(config.batch_size * STEPS),
        data_collator=lambda _: dict(batch),
        config=config,
        callbacks=[clock],
    )
    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    measured = {"steps/s": clock.steps_per_second, "predicted GiB": predicted / GIB}
    check(all(loss == loss for loss in clock.losses), "a loss is not a number")
    if setting.on_gpu:
        peak = torch.cuda.max_memory_allocated()
        measured |= {"peak GiB": peak / GIB, "reserved GiB": torch.cuda.max_memory_reserved() / GIB}
        check(
            peak <= predicted + SPARE,
            f"the peak of {peak / GIB:.2f} GiB is more than the arithmetic's {predicted / GIB:.2f} and a GiB",
        )
    return measured


def demo_adapter(setting: CheckSetting) -> dict[str, Any]:
    """The demo's weights, a new LoRA and the connector, on scenes that the demo's own renderer draws."""
    # Draws with OpenCV, which the other rows do without.
    from qwen_vqa.quantize.demo_samples import DemoSamples

    samples = DemoSamples().calibration(16 if setting.tiny else DEMO_SAMPLES)
    config = TrainingConfig(
        rank=16,
        batch_size=4 if setting.tiny else 32,
        accumulation=1,
        epochs=1000,
        max_steps=3 if setting.tiny else -1,
        learning_rate=2e-4,
        workers=0,
    )
    arguments = training_arguments(config, setting.folder / "demo", **_quiet(setting))
    processor = load_processor(DEMO_CHECKPOINT)
    clock = _Clock(DEMO_SECONDS)
    trainer = QwenVqaTrainer(
        model=load_for_training(DEMO_CHECKPOINT, config, arguments),
        args=arguments,
        train_dataset=samples,
        data_collator=ConversationCollator(processor),
        config=config,
        callbacks=[clock],
    )
    trainer.train()
    some = max(1, len(clock.losses) // 10)
    first, last = (sum(part) / some for part in (clock.losses[:some], clock.losses[-some:]))
    check(last == last and last < 2 * first, f"the loss went from {first:.3f} to {last:.3f}")
    return {"steps/s": clock.steps_per_second, "steps": len(clock.losses), "loss first": first, "loss last": last}


def _quiet(setting: CheckSetting) -> dict[str, Any]:
    return {"save_strategy": "no", "disable_tqdm": True, "use_cpu": not setting.on_gpu}


def _check_room(setting: CheckSetting, needed: int) -> None:
    if not setting.on_gpu:
        return
    free, _ = torch.cuda.mem_get_info()
    if needed + SPARE > free:
        raise NotPossible(f"needs about {(needed + SPARE) / GIB:.1f} GiB, and {free / GIB:.1f} are free")


class _Repeated(Dataset):
    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"index": index}


class _Clock(TrainerCallback):
    """Times of the steps' ends, and losses; stops the run after so many seconds."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds, self.ends = seconds, [time.monotonic()]
        self.losses: list[float] = []

    @property
    def steps_per_second(self) -> float:
        """Without the first ones, in which kernels are chosen."""
        warm = min(WARM_UP, len(self.ends) - 2)
        return (len(self.ends) - 1 - warm) / (self.ends[-1] - self.ends[warm])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.monotonic())
        if self.seconds is not None and self.ends[-1] - self.ends[0] > self.seconds:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
